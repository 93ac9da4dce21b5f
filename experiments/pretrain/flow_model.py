"""Building, saving and sampling of the emoji flow-matching model, a small Stable Diffusion 3 (SD3) pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from string import ascii_lowercase

import torch
from diffusers import (
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.configuration_utils import FrozenDict
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from experiments.pretrain.distillation import UNCONDITIONAL_INDEX
from experiments.pretrain.training import (
    save_fp16,
)

TIMESTEPS = 1000  # the timestep input of the transformer is TIMESTEPS * sigma
WITHOUT_T5 = {
    "text_encoder_3": None,
    "tokenizer_3": None,
}  # diffusers requires that both components are explicitly None
T5_TOKENS = 256  # number of zero embeddings that the SD3 pipeline appends if it has no T5


def build_text_encoder(start: CLIPTextModel, layers: int) -> CLIPTextModelWithProjection:
    """Return a text encoder with ``layers`` layers, the weights of ``start``, and the identity as text projection.

    If ``layers`` is greater than the number of layers of ``start``, each additional layer returns its input unchanged.
    An additional layer is useful because Stable Diffusion 3 uses the hidden states before the last layer.
    """
    config = type(start.config).from_dict(start.config.to_dict() | {"num_hidden_layers": layers})
    encoder = CLIPTextModelWithProjection(config)
    inner = encoder.text_model
    shared = {name: tensor for name, tensor in start.state_dict().items() if name in inner.state_dict()}
    with torch.no_grad():
        for name in inner.load_state_dict(shared, strict=False).missing_keys:
            if "out_proj" in name or "fc2" in name:  # output layers of attention and MLP
                inner.get_parameter(name).zero_()
        nn.init.eye_(encoder.text_projection.weight)
    return encoder.eval()


def build_transformer(
    vae: nn.Module, *, text_width: int, pooled_width: int, width: int, layers: int, heads: int
) -> SD3Transformer2DModel:
    """Return a new transformer with zero-initialized modulation and output layers (adaLN-Zero, Peebles and Xie 2023).

    Args:
        vae: VAE whose latents the transformer denoises.
        text_width: dimension of the hidden states of the text encoders.
        pooled_width: dimension of the pooled states of the text encoders.
        width: dimension of the hidden states of the transformer.
        layers: number of transformer blocks.
        heads: number of attention heads.
    """
    side = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    transformer = SD3Transformer2DModel(
        sample_size=side,
        patch_size=2,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=layers,
        attention_head_dim=width // heads,
        num_attention_heads=heads,
        joint_attention_dim=text_width,
        caption_projection_dim=width,
        pooled_projection_dim=pooled_width,
        pos_embed_max_size=side // 2,
        qk_norm="rms_norm",
    )
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            if "norm" in name or name == "proj_out":
                nn.init.zeros_(layer.weight)
    return transformer


@torch.no_grad()
def standardize(layer: nn.Linear, inputs: Tensor) -> None:
    """Change the weights of ``layer`` so that the layer first scales its input features to zero mean and unit variance.

    The mean and standard deviation of each feature are computed from ``inputs [..., D]``. The inputs are hidden states
    of CLIP before the final layer normalization, of which some features are hundreds of times larger than others.
    """
    features = inputs.flatten(0, -2)
    mean = features.mean(0)
    std = features.std(0).clamp(min=1e-3)
    layer.weight /= std
    layer.bias -= layer.weight @ mean


class MergedPaddingAttention:
    """The joint attention of Stable Diffusion 3 (SD3) with an additive attention mask over the keys.

    An SD3 pipeline without T5 text encoder uses n zero tokens instead of the output of T5. The zero tokens are equal in
    every layer, because text tokens have no positional embedding. In the softmax, n equal tokens have the same effect
    as one token whose logit is increased by log n. The attention mask adds log n, so that one merged token can replace
    all zero tokens. A training step with one merged token takes a quarter of the time of a training step with n zero
    tokens.
    """

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        length = hidden_states.shape[1]
        image = [split_heads(layer(hidden_states), attn.heads) for layer in (attn.to_q, attn.to_k, attn.to_v)]
        text = [
            split_heads(layer(encoder_hidden_states), attn.heads)
            for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        ]
        query = torch.cat([attn.norm_q(image[0]), attn.norm_added_q(text[0])], 2)
        key = torch.cat([attn.norm_k(image[1]), attn.norm_added_k(text[1])], 2)
        mixed = F.scaled_dot_product_attention(query, key, torch.cat([image[2], text[2]], 2), attention_mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        context = mixed[:, length:]
        return attn.to_out[0](mixed[:, :length]), context if attn.context_pre_only else attn.to_add_out(context)


def split_heads(x: Tensor, count: int) -> Tensor:
    """Return ``x [B, L, D]`` split into ``count`` attention heads, ``[B, count, L, D / count]``."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


@contextmanager
def attention_processor(transformer: SD3Transformer2DModel, processor: object) -> Iterator[None]:
    """Context manager that sets the attention processor of ``transformer`` for the duration of the ``with`` block."""
    original = transformer.attn_processors
    transformer.set_attn_processor(processor)
    try:
        yield
    finally:
        transformer.set_attn_processor(original)


class Velocity:
    """Predicts velocities with a transformer, in which one merged token replaces the zero tokens of a missing T5.

    The predictions are equal to the predictions of the transformer in an SD3 pipeline.

    Args:
        transformer: the transformer, whose attention processor must be :class:`MergedPaddingAttention`.
        states: hidden states of the CLIP text encoders for every caption, ``[captions, L, D]``.
        pooled: pooled states of the CLIP text encoders for every caption, ``[captions, P]``.
    """

    def __init__(self, transformer: SD3Transformer2DModel, states: Tensor, pooled: Tensor) -> None:
        self.transformer, self.states, self.pooled = transformer, states, pooled

    def __call__(self, x: Tensor, sigma: Tensor, captions: Tensor, zeros: Tensor) -> Tensor:
        """Return the predicted velocity, ``[B, 4, h, w]``.

        Args:
            x: noisy latents, ``[B, 4, h, w]``.
            sigma: noise level of each latent, ``[B]``.
            captions: caption index of each latent, ``[B]``.
            zeros: for each latent, the number of zero tokens after the caption, all of which one merged token replaces,
                ``[B]``.
        """
        text = F.pad(self.states[captions], (0, 0, 0, 1))
        size = self.transformer.config.patch_size
        keys = x.shape[-2] * x.shape[-1] // size**2 + text.shape[1]
        mask = torch.zeros(len(x), 1, 1, keys, device=x.device)
        mask[..., -1] = zeros.float().log()[:, None, None]
        return self.transformer(
            x, text, self.pooled[captions], sigma * TIMESTEPS, joint_attention_kwargs={"attention_mask": mask}
        ).sample


def latent_shape(pipeline: StableDiffusion3Pipeline) -> tuple[int, int, int]:
    """Return the shape ``(C, h, w)`` of the latents of ``pipeline``."""
    config = pipeline.transformer.config
    return config.in_channels, config.sample_size, config.sample_size


@torch.no_grad()
def sample_images(
    pipeline: StableDiffusion3Pipeline, prompts: list[str], seeds: Tensor, *, steps: int, guidance: float
) -> Tensor:
    """Return images ``[B, 3, H, W]`` in [0, 1], equal to the images that the call ``pipeline(...)`` would generate.

    Args:
        pipeline: the flow-matching model. The attention processor of its transformer must be
            :class:`MergedPaddingAttention`.
        prompts: one prompt per image.
        seeds: initial noise latents, ``[B, C, h, w]``.
        steps: number of sampling steps.
        guidance: guidance scale.
    """
    states, pooled = clip_states(pipeline, ["", *prompts])
    velocity = Velocity(pipeline.transformer, states, pooled)
    scheduler = deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps)
    x = seeds
    conditional = 1 + torch.arange(len(prompts))
    captions = torch.cat([torch.full_like(conditional, UNCONDITIONAL_INDEX), conditional])
    zeros = torch.full_like(captions, T5_TOKENS)
    for t in scheduler.timesteps:
        sigma = (t / TIMESTEPS).expand(len(captions))
        unconditional, with_text = velocity(torch.cat([x, x]), sigma, captions, zeros).chunk(2)
        x = scheduler.step(unconditional + guidance * (with_text - unconditional), t, x, return_dict=False)[0]
    x = x / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    return (pipeline.vae.decode(x).sample / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def clip_states(pipeline: StableDiffusion3Pipeline, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Return the hidden states ``[B, L, D]`` and the pooled states ``[B, P]`` of the CLIP text encoders.

    The hidden states do not include the zero tokens with which SD3 replaces the output of a missing T5 encoder.
    """
    encoded = pipeline.encode_prompt(captions, None, None, do_classifier_free_guidance=False, max_sequence_length=0)
    return encoded[0], encoded[2]


def save_pipeline(pipeline: StableDiffusion3Pipeline, folder: str | Path) -> None:
    """Save the pipeline to ``folder``, with weights in float16 and with a third text encoder that outputs zeros."""
    pipeline = StableDiffusion3Pipeline(**pipeline.components | zero_t5_embeddings(pipeline.transformer.config))
    pipeline.save_pretrained(folder)
    for name in ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"):
        save_fp16(getattr(pipeline, name), Path(folder) / name)


def zero_t5_embeddings(transformer: FrozenDict) -> dict[str, object]:
    """Return a minimal T5 encoder that outputs zeros, and its tokenizer, as components of an SD3 pipeline.

    The returned T5 encoder has the same effect as no T5 encoder, because an SD3 pipeline replaces the output of a
    missing T5 encoder by zeros. The returned encoder is needed because ``DiffusionPipeline.from_pretrained`` requires
    all three text encoders by default.
    """
    tokens = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -3.0) for letter in "\u2581" + ascii_lowercase)]
    width = transformer.joint_attention_dim
    config = T5Config(vocab_size=len(tokens), d_model=width, d_kv=1, d_ff=1, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config).eval()
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    tokenizer = T5TokenizerFast(vocab=tokens, extra_ids=0, model_max_length=T5_TOKENS)
    return {"text_encoder_3": encoder, "tokenizer_3": tokenizer}
