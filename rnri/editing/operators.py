"""Prompt-to-Prompt's operators on attention (Hertz et al. 2022, https://arxiv.org/abs/2208.01626), without matrices.

Each of them is linear in the attention map, so it can act on the values instead: ``(M W) V = M (W V)``, and
``M diag(c) V = M (diag(c) V)``. What is left is plain attention, which any fused kernel computes at any resolution.

Shapes: B rows, H heads, P pixels (queries), S or T tokens (keys and values), D a head's width, E edits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """``softmax(query key^T / sqrt(D)) value``, ``[B,H,P,D]``; ``mask [B,H,1 or P,S]`` is added or says who is seen."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.0, is_causal=False)


def source_rows(batch: int, edits: Tensor, sources: Tensor) -> Tensor:
    """For each of ``batch`` rows the row whose map it takes, int64 ``[B]``: an edit its source's, others their own."""
    rows = torch.arange(batch, device=edits.device)
    return rows.index_copy(0, edits, sources)


def inject_attention_maps(
    query: Tensor, key: Tensor, value: Tensor, edits: Tensor, sources: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attention in which the rows ``edits`` have the maps of the rows ``sources`` and their own values."""
    rows = source_rows(len(query), edits, sources)
    return attention(query[rows], key[rows], value, mask if mask is None else mask[rows])


def inject_cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edits: Tensor,
    sources: Tensor,
    *,
    transfer: Tensor,
    inherited: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention to words in which an edit's map is ``(M_source W diag(a) + M_own diag(1 - a)) diag(c)``.

    Replacement, refinement and reweighting are this for their ``W``, ``a`` and ``c``. All other rows are left to the
    bit.

    Args:
        query: ``[B,H,P,D]``; key, value: ``[B,H,T,D]``.
        edits, sources: int64 ``[E]``, rows of the batch.
        transfer: ``W``, ``[E,T,T]``, rows the source's tokens, columns the edit's.
        inherited: ``a`` in [0, 1], ``[E,T]``: how much of the source's map a token takes.
        weights: ``c``, ``[E,T]``.
    """
    own = value[edits] * weights[:, None, :, None]  # [E,H,T,D]
    kept = inherited[:, None, :, None]
    moved = value.index_copy(0, edits, transfer[:, None] @ (kept * own))
    result = inject_attention_maps(query, key, moved, edits, sources, mask)
    rest = attention(query[edits], key[edits], (1 - kept) * own, mask if mask is None else mask[edits])
    return result.index_add(0, edits, rest)


def attention_weights(query: Tensor, key: Tensor, words: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much attention each pixel pays to the tokens that ``words [B,T]`` marks, ``[B,P]``, mean over the heads.

    The maps' columns are attention whose values are the marks, made as wide as a head: fused kernels ask for it.
    """
    marks = torch.zeros_like(key)
    marks[..., 0] = words[:, None].to(key)
    return attention(query, key, marks, mask)[..., 0].mean(1)
