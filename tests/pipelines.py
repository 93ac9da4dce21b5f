"""Pipelines of Stable Diffusion's architecture, tiny and randomly initialised, built without any download."""

from __future__ import annotations

import string

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.problems import scheduler

TEXT_WIDTH = 32
TOKENS = 16
LATENT_SHAPE = (4, 8, 8)
IMAGE_SIZE = 16


def tiny_tokenizer() -> CLIPTokenizer:
    """Letters as tokens; ends and pads as CLIP does."""
    letters = [*string.ascii_lowercase, *string.digits]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def tiny_stable_diffusion(
    prediction_type: str = "epsilon", *, unet: dict[str, object] | None = None, **scheduler_options: object
) -> StableDiffusionPipeline:
    """Latents ``[4,8,8]``, images ``[3,16,16]``; the same weights every time.

    ``unet`` changes the UNet's configuration, ``scheduler_options`` the DDIM scheduler's.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        return StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(_text_config(tokenizer)).eval(),
            tokenizer=tokenizer,
            unet=_unet(**(unet or {})),
            scheduler=scheduler(prediction_type=prediction_type, **scheduler_options),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def tiny_stable_diffusion_xl(**scheduler_options: object) -> StableDiffusionXLPipeline:
    """SDXL's two text encoders, pooled text and size conditioning, in the same sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        text = _text_config(tokenizer)
        return StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(text).eval(),
            text_encoder_2=CLIPTextModelWithProjection(text).eval(),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=_unet(
                cross_attention_dim=2 * TEXT_WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
            ),
            scheduler=scheduler(**scheduler_options),
            add_watermarker=False,
        )


def _unet(**changes: object) -> UNet2DConditionModel:
    options = {
        "sample_size": LATENT_SHAPE[1],
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(options | changes)).eval()


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
    ).eval()


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
