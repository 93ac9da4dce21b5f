"""Editing in transformers whose text and image share one softmax (Stable Diffusion 3, FLUX).

There the columns of words cannot be exchanged without touching the rest. What is taken over from the source, for the
first steps, are its image tokens' queries and keys, or its values, as is the practice in flow editing (RF-Solver-Edit,
https://arxiv.org/abs/2411.04746; Stable Flow, https://arxiv.org/abs/2411.14430).
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from rnri.editing.operators import attention, source_rows
from rnri.editing.state import EditState
from rnri.validation import UnitInterval, dataclass


@dataclass(frozen=True)
class Injection:
    """What an edit takes over from its source at the image's tokens.

    Attributes:
        what: queries and keys (where the image looks), or values (what it sees).
        share: of the sampler's steps, from the first on.
    """

    what: Literal["queries_keys", "values"] = "queries_keys"
    share: UnitInterval = 0.2


class InjectionProcessor:
    """What the processors of both transformers have in common.

    Args:
        state: shared by all layers.
        image_tokens: how many tokens an image has.
    """

    def __init__(self, state: EditState, injection: Injection, image_tokens: int) -> None:
        self.state, self.injection, self.image_tokens = state, injection, image_tokens

    def projected(self, attn: nn.Module, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B,L,width]`` of a stream, whose last ``image_tokens`` are the image's."""
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        edits, sources = self.state.rows(len(hidden_states), hidden_states.device)
        if self.state.progress >= self.injection.share:
            return query, key, value
        rows = source_rows(len(hidden_states), edits, sources)
        if self.injection.what == "values":
            return query, key, self._injected(value, rows)
        return self._injected(query, rows), self._injected(key, rows), value

    def _injected(self, tokens: Tensor, rows: Tensor) -> Tensor:
        text = tokens.shape[1] - self.image_tokens
        return torch.cat([tokens[:, :text], tokens[rows, text:]], dim=1)


class SD3InjectionProcessor(InjectionProcessor):
    """One layer of Stable Diffusion 3's transformer; otherwise diffusers' ``JointAttnProcessor2_0``."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        query, key, value = (_heads(attn, part) for part in self.projected(attn, hidden_states))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if encoder_hidden_states is not None:
            text = (
                _heads(attn, add(encoder_hidden_states)) for add in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            )
            text_query, text_key, text_value = text
            text_query = text_query if attn.norm_added_q is None else attn.norm_added_q(text_query)
            text_key = text_key if attn.norm_added_k is None else attn.norm_added_k(text_key)
            query, key = torch.cat([query, text_query], dim=2), torch.cat([key, text_key], dim=2)
            value = torch.cat([value, text_value], dim=2)
        result = attention(query, key, value).transpose(1, 2).flatten(2).to(query.dtype)
        image, text = result[:, : hidden_states.shape[1]], result[:, hidden_states.shape[1] :]
        image = attn.to_out[1](attn.to_out[0](image))
        if encoder_hidden_states is None:
            return image
        return image, text if attn.context_pre_only else attn.to_add_out(text)


class FluxInjectionProcessor(InjectionProcessor):
    """One layer of FLUX's transformer; otherwise diffusers' ``FluxAttnProcessor``."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        query, key, value = (part.unflatten(-1, (-1, attn.head_dim)) for part in self.projected(attn, hidden_states))
        query, key = attn.norm_q(query), attn.norm_k(key)
        if encoder_hidden_states is not None:
            text_query, text_key, text_value = (
                add(encoder_hidden_states).unflatten(-1, (-1, attn.head_dim))
                for add in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            )
            query = torch.cat([attn.norm_added_q(text_query), query], dim=1)
            key = torch.cat([attn.norm_added_k(text_key), key], dim=1)
            value = torch.cat([text_value, value], dim=1)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        parts = (part.transpose(1, 2) for part in (query, key, value))
        result = attention(*parts, mask=attention_mask).transpose(1, 2).flatten(2).to(query.dtype)
        if encoder_hidden_states is None:
            return result
        text, image = result.split_with_sizes([encoder_hidden_states.shape[1], hidden_states.shape[1]], dim=1)
        image = attn.to_out[1](attn.to_out[0](image.contiguous()))
        return image, attn.to_add_out(text.contiguous())


def _heads(attn: Attention, tokens: Tensor) -> Tensor:
    """``[B,heads,L,width/heads]`` of ``tokens [B,L,width]``."""
    return tokens.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
