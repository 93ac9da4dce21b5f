"""Attention injection in transformers whose text and image tokens share one softmax (Stable Diffusion 3, FLUX).

Because text and image tokens share one softmax, the attention to words cannot be replaced without changing the
attention to the image. Therefore an edited image uses the queries and keys, or the values, of its source image at the
image tokens in the first sampling steps. Other editing methods for flow matching also inject attention (RF-Solver-Edit,
https://arxiv.org/abs/2411.04746; Stable Flow, https://arxiv.org/abs/2411.14430).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor

from rnri.models.attention.editor import AttentionControl, AttentionEditor
from rnri.models.attention.operators import attention, source_rows, split_heads
from rnri.models.attention.state import EditState
from rnri.validation import UnitInterval, dataclass


@dataclass(frozen=True)
class Injection:
    """Settings of attention injection, in which an edited image uses parts of the attention of its source image.

    Attributes:
        what: ``queries_keys`` injects the queries and keys of the source image, which determine the attention maps;
            ``values`` injects the values of the source image, which are averaged with the attention maps as weights.
        share: fraction of the sampling steps with injection, starting with the first step.
    """

    what: Literal["queries_keys", "values"] = "queries_keys"
    share: UnitInterval = 0.2


class InjectionProcessor:
    """Base class of the attention processors for the transformers of Stable Diffusion 3 and FLUX.

    Args:
        state: state of the edit, which all layers share.
        injection: settings of the injection.
        image_tokens: number of image tokens in the sequence of one sample.
    """

    def __init__(self, state: EditState, injection: Injection, image_tokens: int) -> None:
        self.state = state
        self.injection = injection
        self.image_tokens = image_tokens

    def project(self, attn: Attention | FluxAttention, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values ``[B,L,width]`` of ``hidden_states``, with injection into edited images.

        At the image tokens of an edited image, the queries and keys, or the values, are those of the source image. The
        last ``image_tokens`` tokens of ``hidden_states`` must be the image tokens.
        """
        query = attn.to_q(hidden_states)
        key = attn.to_k(hidden_states)
        value = attn.to_v(hidden_states)
        edits, sources = self.state.rows(len(hidden_states), hidden_states.device)
        if self.state.step / self.state.steps >= self.injection.share:
            return query, key, value
        rows = source_rows(len(hidden_states), edits, sources)
        if self.injection.what == "values":
            return query, key, self._inject(value, rows)
        return self._inject(query, rows), self._inject(key, rows), value

    def _inject(self, tokens: Tensor, rows: Tensor) -> Tensor:
        text_tokens = tokens.shape[1] - self.image_tokens
        return torch.cat([tokens[:, :text_tokens], tokens[rows, text_tokens:]], dim=1)


class SD3InjectionProcessor(InjectionProcessor):
    """Attention processor for Stable Diffusion 3.

    If no image of the batch is edited, the output equals the output of diffusers' ``JointAttnProcessor2_0``.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        image_tokens = hidden_states.shape[1]
        query, key, value = (split_heads(attn.heads, tokens) for tokens in self.project(attn, hidden_states))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)

        if encoder_hidden_states is not None:
            text_query = split_heads(attn.heads, attn.add_q_proj(encoder_hidden_states))
            text_key = split_heads(attn.heads, attn.add_k_proj(encoder_hidden_states))
            text_value = split_heads(attn.heads, attn.add_v_proj(encoder_hidden_states))
            if attn.norm_added_q is not None:
                text_query = attn.norm_added_q(text_query)
            if attn.norm_added_k is not None:
                text_key = attn.norm_added_k(text_key)
            query = torch.cat([query, text_query], dim=2)
            key = torch.cat([key, text_key], dim=2)
            value = torch.cat([value, text_value], dim=2)

        result = attention(query, key, value).transpose(1, 2).flatten(2).to(query.dtype)
        image = result[:, :image_tokens]
        text = result[:, image_tokens:]
        image = attn.to_out[0](image)  # linear projection
        image = attn.to_out[1](image)  # dropout
        if encoder_hidden_states is None:
            return image
        return image, text if attn.context_pre_only else attn.to_add_out(text)


class FluxInjectionProcessor(InjectionProcessor):
    """Attention processor for FLUX.

    If no image of the batch is edited, the output equals the output of diffusers' ``FluxAttnProcessor``.
    """

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        def unflatten_heads(tokens: Tensor) -> Tensor:
            return tokens.unflatten(-1, (-1, attn.head_dim))

        query, key, value = (unflatten_heads(tokens) for tokens in self.project(attn, hidden_states))
        query = attn.norm_q(query)
        key = attn.norm_k(key)

        if encoder_hidden_states is not None:
            text_query = attn.norm_added_q(unflatten_heads(attn.add_q_proj(encoder_hidden_states)))
            text_key = attn.norm_added_k(unflatten_heads(attn.add_k_proj(encoder_hidden_states)))
            text_value = unflatten_heads(attn.add_v_proj(encoder_hidden_states))
            query = torch.cat([text_query, query], dim=1)
            key = torch.cat([text_key, key], dim=1)
            value = torch.cat([text_value, value], dim=1)

        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)

        query, key, value = (tokens.transpose(1, 2) for tokens in (query, key, value))
        result = attention(query, key, value, mask=attention_mask).transpose(1, 2).flatten(2).to(query.dtype)
        if encoder_hidden_states is None:
            return result
        text, image = result.split_with_sizes([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        image = attn.to_out[0](image.contiguous())  # linear projection
        image = attn.to_out[1](image)  # dropout
        return image, attn.to_add_out(text.contiguous())


class InjectionEditor(AttentionEditor):
    """Attention editor that injects the attention of source images with the processor class of one architecture.

    Args:
        processor_class: class of the attention processor for the architecture's attention layers.
        pixels_per_token: side, in pixels, of the image patch that one image token represents.
    """

    config_class: ClassVar = Injection

    def __init__(self, processor_class: type[InjectionProcessor], pixels_per_token: int) -> None:
        self.processor_class = processor_class
        self.pixels_per_token = pixels_per_token

    def control(
        self, config: Injection, state: EditState, prompts: Sequence[str], image_size: tuple[int, int]
    ) -> AttentionControl:
        height, width = image_size
        image_tokens = (height // self.pixels_per_token) * (width // self.pixels_per_token)
        return AttentionControl(self.processor_class(state, config, image_tokens))
