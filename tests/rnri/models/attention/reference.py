"""Reference implementation of Prompt-to-Prompt on explicit attention matrices, as in the paper."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_map(query: Tensor, key: Tensor) -> Tensor:
    """Return ``softmax(query key^T / sqrt(D))``, ``[...,P,S]``."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)


def replace(source_map: Tensor, transfer: Tensor) -> Tensor:
    """Return the source's attention moved to the tokens of the edit, ``[H,P,T]``."""
    return torch.einsum("hps,st->hpt", source_map, transfer)


def refine(source_map: Tensor, edit_map: Tensor, inherited: Tensor) -> Tensor:
    return source_map * inherited + edit_map * (1 - inherited)


def reweight(attention: Tensor, weights: Tensor) -> Tensor:
    return attention * weights


class ReferenceProcessor:
    """A UNet layer that computes the attention maps of all rows and changes those of the edits one by one.

    ``edits`` is ``{row: (source row, transfer, inherited, weights)}`` for the conditional rows, which are the last
    ``rows`` of the batch; ``inherited`` is that of the current step.
    """

    def __init__(self, rows: int, edits: dict[int, tuple], inject_self_attention: bool) -> None:
        self.rows = rows
        self.edits = edits
        self.inject_self_attention = inject_self_attention

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, tokens in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        maps = attention_map(query, key)
        edited = maps.clone()
        first = len(maps) - self.rows
        for row, (source, transfer, inherited, weights) in self.edits.items():
            if encoder_hidden_states is None:
                if self.inject_self_attention:
                    edited[first + row] = maps[first + source]
                continue
            source_map = replace(maps[first + source], transfer)
            edited[first + row] = reweight(refine(source_map, maps[first + row], inherited), weights)
        result = attn.to_out[0]((edited @ value).transpose(1, 2).flatten(2))
        return result / attn.rescale_output_factor
