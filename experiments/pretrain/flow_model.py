"""The embedded flow-matching model: a Stable Diffusion 3 transformer, how it is built, run, sampled and saved."""

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

TIMESTEPS = 1000  # the transformer's timestep input is sigma times this
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}  # diffusers requires explicit nulls
T5_TOKENS = 256  # zero embeddings that SD3's pipeline appends in place of a missing T5


def build_text_encoder(start: CLIPTextModel, layers: int) -> CLIPTextModelWithProjection:
    """The first ``layers`` layers of ``start``, then layers without effect; the projection is the identity.

    SD3 reads the states before the last layer and the pooled ones after it. A layer more than ``start`` has adds
    nothing to its input, so that the states are those of ``start``'s last layer.
    """
    config = type(start.config).from_dict(start.config.to_dict() | {"num_hidden_layers": layers})
    encoder = CLIPTextModelWithProjection(config)
    inner = encoder.text_model
    known = {name: tensor for name, tensor in start.state_dict().items() if name in inner.state_dict()}
    with torch.no_grad():
        for name in inner.load_state_dict(known, strict=False).missing_keys:
            if "out_proj" in name or "fc2" in name:  # what a layer adds to its input comes out of these two
                inner.get_parameter(name).zero_()
        nn.init.eye_(encoder.text_projection.weight)
    return encoder.eval()


def build_transformer(
    vae: nn.Module, text_width: int, pooled_width: int, width: int, layers: int, heads: int
) -> SD3Transformer2DModel:
    """Modulations and output begin at zero (adaLN-Zero, Peebles and Xie 2023): every block begins as the identity."""
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
    """Folds the standardizing of each feature of ``inputs [..., D]`` into the weights.

    CLIP's states before the final norm have features hundreds of times larger than others.
    """
    mean, std = inputs.flatten(0, -2).mean(0), inputs.flatten(0, -2).std(0).clamp(min=1e-3)
    layer.weight /= std
    layer.bias -= layer.weight @ mean


class MergedPaddingAttention:
    """SD3's joint attention with a mask over its keys.

    The tokens of zeros that stand for a missing T5 are all alike and stay so: the context has no positions. In the
    softmax n of them count as one whose logit is higher by log n, which makes a training step cost a quarter.
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
    """``[B, L, D]`` to ``[B, heads, L, D / heads]``"""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


@contextmanager
def processor(transformer: SD3Transformer2DModel, other: object) -> Iterator[None]:
    """Attention by another processor for a while."""
    usual = transformer.attn_processors
    transformer.set_attn_processor(other)
    try:
        yield
    finally:
        transformer.set_attn_processor(usual)


class Velocity:
    """The transformer as the pipeline runs it, with one token for all the zeros.

    Args:
        transformer: with processors of :class:`OneForMany`.
        states: CLIP states of every caption ``[captions, L, D]``; pooled: ``[captions, P]``.
    """

    def __init__(self, transformer: SD3Transformer2DModel, states: Tensor, pooled: Tensor) -> None:
        self.transformer, self.states, self.pooled = transformer, states, pooled

    def __call__(self, x: Tensor, sigma: Tensor, captions: Tensor, zeros: Tensor) -> Tensor:
        """Velocity ``[B, 4, h, w]`` at ``sigma [B]``, where ``zeros [B]`` tokens of zeros follow the caption's."""
        text = F.pad(self.states[captions], (0, 0, 0, 1))
        size = self.transformer.config.patch_size
        keys = x.shape[-2] * x.shape[-1] // size**2 + text.shape[1]
        mask = torch.zeros(len(x), 1, 1, keys, device=x.device)
        mask[..., -1] = zeros.float().log()[:, None, None]
        return self.transformer(
            x, text, self.pooled[captions], sigma * TIMESTEPS, joint_attention_kwargs={"attention_mask": mask}
        ).sample


def latent_shape(pipeline: StableDiffusion3Pipeline) -> tuple[int, int, int]:
    config = pipeline.transformer.config
    return config.in_channels, config.sample_size, config.sample_size


@torch.no_grad()
def sample_images(
    pipeline: StableDiffusion3Pipeline, prompts: list[str], seeds: Tensor, steps: int, guidance: float
) -> Tensor:
    """The pipeline's own images ``[B, 3, H, W]`` in [0, 1], at the lower cost of :class:`OneForMany`."""
    states, pooled = clip_states(pipeline, ["", *prompts])
    velocity = Velocity(pipeline.transformer, states, pooled)
    scheduler = deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps)
    told, x = 1 + torch.arange(len(prompts)), seeds
    captions = torch.cat([torch.full_like(told, UNCONDITIONAL_INDEX), told])
    for t in scheduler.timesteps:
        sigma = (t / TIMESTEPS).expand(len(captions))
        without, with_text = velocity(torch.cat([x, x]), sigma, captions, torch.full_like(captions, T5_TOKENS)).chunk(2)
        x = scheduler.step(without + guidance * (with_text - without), t, x, return_dict=False)[0]
    x = x / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    return (pipeline.vae.decode(x).sample / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def clip_states(pipeline: StableDiffusion3Pipeline, captions: list[str]) -> tuple[Tensor, Tensor]:
    """``[B, L, D]`` without the zeros, and pooled ``[B, P]``, as the pipeline makes them."""
    encoded = pipeline.encode_prompt(captions, None, None, do_classifier_free_guidance=False, max_sequence_length=0)
    return encoded[0], encoded[2]


def save_pipeline(pipeline: StableDiffusion3Pipeline, folder: str | Path) -> None:
    """``save_pretrained`` in half precision, part by part, with a third text encoder that says nothing."""
    pipeline = StableDiffusion3Pipeline(**pipeline.components | zero_t5_embeddings(pipeline.transformer.config))
    pipeline.save_pretrained(folder)
    for name in ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"):
        save_fp16(getattr(pipeline, name), Path(folder) / name)


def zero_t5_embeddings(transformer: FrozenDict) -> dict[str, object]:
    """A T5 of one unit whose states are the zeros that SD3's pipeline takes for a missing T5, and its tokenizer.

    ``DiffusionPipeline.from_pretrained`` loads a Stable Diffusion 3 folder only with all three text encoders, unless it
    is told otherwise.
    """
    tokens = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -3.0) for letter in "\u2581" + ascii_lowercase)]
    width = transformer.joint_attention_dim
    config = T5Config(vocab_size=len(tokens), d_model=width, d_kv=1, d_ff=1, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config).eval()
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    tokenizer = T5TokenizerFast(vocab=tokens, extra_ids=0, model_max_length=T5_TOKENS)
    return {"text_encoder_3": encoder, "tokenizer_3": tokenizer}
