"""Tiny, randomly initialized pipelines of every supported architecture; nothing is downloaded."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tests.problems import scheduler

TEXT_WIDTH = 32
TOKENS = 16
LATENT_SHAPE = (4, 8, 8)
IMAGE_SIZE = 16


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Create networks whose weights are always the same; the global random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def tiny_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer with letters as tokens and the special tokens of CLIP."""
    letters = [*string.ascii_lowercase, *string.digits]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def tiny_stable_diffusion(
    prediction_type: str = "epsilon", *, unet: dict[str, object] | None = None, **scheduler_options: object
) -> StableDiffusionPipeline:
    """Return Stable Diffusion with latents ``[4,8,8]`` and images ``[3,16,16]``; its weights are always the same.

    ``unet`` changes the UNet's config, ``scheduler_options`` that of the DDIM scheduler.
    """
    with fixed_weights():
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
    """Return SDXL, with two text encoders, pooled text and size conditioning, in the same sizes."""
    with fixed_weights():
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


def tiny_sd3(*, t5: bool = True, **scheduler_options: object) -> StableDiffusion3Pipeline:
    """Return Stable Diffusion 3 with two or three text encoders; latents ``[4,8,8]``."""
    with fixed_weights():
        tokenizer = tiny_tokenizer()
        text = _text_config(tokenizer)
        transformer = SD3Transformer2DModel(
            sample_size=LATENT_SHAPE[1],
            patch_size=2,
            in_channels=LATENT_SHAPE[0],
            out_channels=LATENT_SHAPE[0],
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),  # as in Stable Diffusion 3.5
            qk_norm="rms_norm",
        )
        return StableDiffusion3Pipeline(
            transformer=randomize_zeros(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler_options)),
            vae=_vae(shift_factor=0.06),
            text_encoder=CLIPTextModelWithProjection(text).eval(),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(text).eval(),
            tokenizer_2=tokenizer,
            text_encoder_3=_t5(2 * TEXT_WIDTH) if t5 else None,
            tokenizer_3=tiny_t5_tokenizer() if t5 else None,
        )


def tiny_flux(*, guidance_embeds: bool = True, **scheduler_options: object) -> FluxPipeline:
    """Return FLUX.1 dev, or schnell without ``guidance_embeds``; latents ``[4,8,8]`` before packing."""
    dynamic = {"use_dynamic_shifting": True, "shift": 3.0} if guidance_embeds else {"shift": 1.0}
    with fixed_weights():
        tokenizer = tiny_tokenizer()
        text = _text_config(tokenizer)
        transformer = FluxTransformer2DModel(
            in_channels=4 * LATENT_SHAPE[0],
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 4, 8),
        )
        pipeline = FluxPipeline(
            transformer=randomize_zeros(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(**(dynamic | scheduler_options)),
            vae=_vae(shift_factor=0.12),
            text_encoder=CLIPTextModel(text).eval(),
            tokenizer=tokenizer,
            text_encoder_2=_t5(TEXT_WIDTH),
            tokenizer_2=tiny_t5_tokenizer(),
        )
    pipeline.default_sample_size = LATENT_SHAPE[1]
    return pipeline


def tiny_t5_tokenizer() -> T5TokenizerFast:
    """Return a tokenizer with letters as tokens and the special tokens of T5."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    return T5TokenizerFast(vocab=special + [(letter, -3.0) for letter in string.ascii_lowercase], extra_ids=0)


def _t5(width: int) -> T5EncoderModel:
    config = T5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    return T5EncoderModel(config).eval()


def randomize_zeros(transformer: torch.nn.Module) -> torch.nn.Module:
    """Randomize the weights that are initialized with zeros: the last layer and the gates of all blocks."""
    for weight in transformer.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return transformer.eval()


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


def _vae(**changes: object) -> AutoencoderKL:
    return AutoencoderKL(
        **changes,
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


CHAT = "{% for message in messages %}user {{ message['content'] }} {% endfor %}assistant "


def tiny_chat_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are letters, with a chat template."""
    letters = ["<pad>", "<unk>", " ", *string.ascii_lowercase, *string.digits]
    tokenizer = Tokenizer(models.WordLevel({letter: k for k, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = CHAT
    fast.model_max_length = 64
    return fast


def tiny_z_image(**scheduler_options: object) -> ZImagePipeline:
    """Return Z-Image; latents ``[4,h,w]``."""
    with fixed_weights():
        tokenizer = tiny_chat_tokenizer()
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[512, 64, 64],
        )
        for weight in transformer.parameters():  # some weights are created without values
            torch.nn.init.normal_(weight, std=0.05)
        text = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
        )
        return ZImagePipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler_options)),
            vae=_vae(shift_factor=0.11),
            text_encoder=Qwen3Model(text).eval(),
            tokenizer=tokenizer,
        )


def tiny_chroma(**scheduler_options: object) -> ChromaPipeline:
    """Return Chroma; latents ``[4,8,8]`` before packing."""
    with fixed_weights():
        transformer = ChromaTransformer2DModel(
            in_channels=4 * LATENT_SHAPE[0],
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        )
        pipeline = ChromaPipeline(
            transformer=randomize_zeros(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 1.0} | scheduler_options)),
            vae=_vae(shift_factor=0.12),
            text_encoder=_t5(TEXT_WIDTH),
            tokenizer=tiny_t5_tokenizer(),
        )
    pipeline.default_sample_size = LATENT_SHAPE[1]
    return pipeline


def tiny_pixart(**scheduler_options: object) -> PixArtSigmaPipeline:
    """Return PixArt-Sigma, whose transformer also predicts the variance; latents ``[4,8,8]``."""
    with fixed_weights():
        transformer = PixArtTransformer2DModel(
            sample_size=LATENT_SHAPE[1],
            patch_size=2,
            in_channels=LATENT_SHAPE[0],
            out_channels=2 * LATENT_SHAPE[0],
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            cross_attention_dim=32,
            caption_channels=TEXT_WIDTH,
        )
        return PixArtSigmaPipeline(
            transformer=randomize_zeros(transformer),
            scheduler=scheduler(**scheduler_options),
            vae=_vae(),
            text_encoder=_t5(TEXT_WIDTH),
            tokenizer=tiny_t5_tokenizer(),
        )


def tiny_sana(**scheduler_options: object) -> SanaPipeline:
    """Return SANA, whose autoencoder has no posterior distribution; latents ``[4,8,8]``."""
    with fixed_weights():
        tokenizer = tiny_chat_tokenizer()
        tokenizer.model_max_length = 4096  # the prefix of the prompts is long
        transformer = SanaTransformer2DModel(
            patch_size=1,
            in_channels=LATENT_SHAPE[0],
            out_channels=LATENT_SHAPE[0],
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=16,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=TEXT_WIDTH,
            sample_size=LATENT_SHAPE[1],
        )
        vae = AutoencoderDC(
            in_channels=3,
            latent_channels=LATENT_SHAPE[0],
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        )
        text = Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=4096,
            attn_implementation="eager",
        )
        return SanaPipeline(
            transformer=randomize_zeros(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler_options)),
            vae=vae.eval(),
            text_encoder=Gemma2Model(text).eval(),
            tokenizer=tokenizer,
        )
