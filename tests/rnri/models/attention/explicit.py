"""Prompt-to-Prompt as its paper writes it: on attention matrices, in full. What the project's operators must equal."""

from __future__ import annotations

import torch
from torch import Tensor


def maps(query: Tensor, key: Tensor) -> Tensor:
    """``[...,P,S]``."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)


def replaced(source: Tensor, transfer: Tensor) -> Tensor:
    """What each token of the edit takes over of the source's map, ``[H,P,T]``."""
    return torch.einsum("hps,st->hpt", source, transfer)


def refined(taken: Tensor, own: Tensor, inherited: Tensor) -> Tensor:
    return taken * inherited + own * (1 - inherited)


def reweighted(matrix: Tensor, weights: Tensor) -> Tensor:
    return matrix * weights


class ExplicitProcessor:
    """A UNet layer with the matrices of every row formed and changed one by one; rows without guidance come last.

    ``edits`` is ``{row: (source row, transfer, inherited, weights)}``; ``inherited`` is that of the present step.
    """

    def __init__(self, rows: int, edits: dict[int, tuple], among_pixels: bool) -> None:
        self.rows, self.edits, self.among_pixels = rows, edits, among_pixels

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        matrices = maps(query, key)
        changed = matrices.clone()
        first = len(matrices) - self.rows
        for row, (source, transfer, inherited, weights) in self.edits.items():
            if encoder_hidden_states is None:
                if self.among_pixels:
                    changed[first + row] = matrices[first + source]
                continue
            taken = replaced(matrices[first + source], transfer)
            changed[first + row] = reweighted(refined(taken, matrices[first + row], inherited), weights)
        result = attn.to_out[0]((changed @ value).transpose(1, 2).flatten(2))
        return result / attn.rescale_output_factor
