"""Tiny, randomly initialized pipelines of FLUX.2 and Qwen-Image; nothing is downloaded."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.pipelines import LATENT_SHAPE, fixed_weights, randomize_zeros, tiny_chat_tokenizer

WIDTH = 16
PARTS = "{% for message in messages %}{{ message['role'] }} {{ message['content'][0]['text'] }} {% endfor %}"
"""Chat template for messages whose content is a list of parts."""
QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}


def tiny_flux2(*, guidance_embeds: bool = True, **scheduler_options: object) -> Flux2Pipeline:
    """Return FLUX.2 dev; latents ``[16,4,4]`` for images of 16 pixels."""
    with fixed_weights():
        tokenizer = _tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
        text = _text_options(tokenizer) | {"num_hidden_layers": 31}  # the pipeline uses the layers 10, 20 and 30
        config = Mistral3Config(
            text_config={"model_type": "mistral"} | text,
            vision_config=_vision_options() | {"model_type": "pixtral"},
            image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        )
        pipeline = Flux2Pipeline(
            transformer=_flux2_transformer(guidance_embeds),
            scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC | scheduler_options)),
            vae=_flux2_vae(),
            text_encoder=Mistral3ForConditionalGeneration(config).eval(),
            tokenizer=PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=PARTS),
        )
    pipeline.default_sample_size = LATENT_SHAPE[1]
    return pipeline


def tiny_flux2_klein(*, is_distilled: bool = False, **scheduler_options: object) -> Flux2KleinPipeline:
    """Return FLUX.2 klein base, or distilled klein; latents ``[16,4,4]`` for images of 16 pixels."""
    with fixed_weights():
        tokenizer = tiny_chat_tokenizer()
        config = Qwen3Config(**_text_options(tokenizer), head_dim=8)
        config.num_hidden_layers = 28  # the pipeline uses the layers 9, 18 and 27
        config.layer_types = ["full_attention"] * config.num_hidden_layers
        pipeline = Flux2KleinPipeline(
            transformer=_flux2_transformer(guidance_embeds=False),
            scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC | scheduler_options)),
            vae=_flux2_vae(),
            text_encoder=Qwen3ForCausalLM(config).eval(),
            tokenizer=tokenizer,
            is_distilled=is_distilled,
        )
    pipeline.default_sample_size = LATENT_SHAPE[1]
    return pipeline


def tiny_qwen_image(**scheduler_options: object) -> QwenImagePipeline:
    """Return Qwen-Image; latents ``[4,8,8]`` before packing."""
    with fixed_weights():
        tokenizer = _tokenizer(*QWEN_TOKENS)
        transformer = QwenImageTransformer2DModel(
            in_channels=4 * LATENT_SHAPE[0],
            out_channels=LATENT_SHAPE[0],
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        )
        vae = AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=LATENT_SHAPE[0],
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[-0.2, 0.1, 0.3, -0.1],
            latents_std=[0.5, 0.8, 0.6, 0.4],
        )
        config = Qwen2_5_VLConfig(
            text_config=_text_options(tokenizer) | _rope(),
            vision_config=_vision_options() | {"depth": 1, "num_heads": 2, "out_hidden_size": WIDTH},
            **_qwen_token_ids(tokenizer),
        )
        pipeline = QwenImagePipeline(
            transformer=randomize_zeros(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC | scheduler_options)),
            vae=vae.eval(),
            text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
            tokenizer=tokenizer,
        )
    pipeline.default_sample_size = LATENT_SHAPE[1]
    return pipeline


def tiny_qwen_image_21(*, sample_sigmas: list[float] | None = None, **scheduler_options: object) -> QwenImage21Pipeline:
    """Return Qwen-Image 2.1, whose VAE has four color channels; latents ``[4,2,2]`` for images of 32 pixels."""
    with fixed_weights():
        tokenizer = _tokenizer(*QWEN_TOKENS)
        transformer = QwenImage21Transformer2DModel(
            in_channels=LATENT_SHAPE[0],
            out_channels=LATENT_SHAPE[0],
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        )
        vae = AutoencoderKLQwenImage21(
            base_dim=8,
            decoder_base_dim=8,
            z_dim=LATENT_SHAPE[0],
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[-0.2, 0.1, 0.3, -0.1],
            latents_std=[0.5, 0.8, 0.6, 0.4],
        )
        vision = _vision_options() | {"depth": 1, "num_heads": 2, "out_hidden_size": WIDTH}
        config = Qwen3VLConfig(
            text_config=_text_options(tokenizer) | _rope() | {"head_dim": 8},
            vision_config=vision | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            **_qwen_token_ids(tokenizer),
        )
        processor = Qwen3VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen3VLVideoProcessor(), chat_template=PARTS)
        return QwenImage21Pipeline(
            transformer=randomize_zeros(transformer),
            scheduler=FlowMatchEulerDiscreteScheduler(**(DYNAMIC | scheduler_options)),
            vae=vae.eval(),
            text_encoder=Qwen3VLForConditionalGeneration(config).eval(),
            processor=processor,
            sample_sigmas=sample_sigmas,
        )


def _flux2_transformer(guidance_embeds: bool) -> torch.nn.Module:
    transformer = Flux2Transformer2DModel(
        in_channels=4 * LATENT_SHAPE[0],
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    return randomize_zeros(transformer)


def _flux2_vae() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        latent_channels=LATENT_SHAPE[0],
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_(std=0.2)
    vae.bn.running_var.uniform_(0.2, 0.8)
    return vae.eval()


def _tokenizer(*special: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_chat_tokenizer()
    tokenizer.model_max_length = 1024
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def _text_options(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }


def _vision_options() -> dict[str, object]:
    return {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _rope() -> dict[str, object]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}


def _qwen_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in zip(names, QWEN_TOKENS, strict=True)}
