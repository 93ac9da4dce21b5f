"""Prompt-to-Prompt's operators on attention maps (Hertz et al. 2022, https://arxiv.org/abs/2208.01626).

They are linear in the attention map ``M``, so they can act on the values instead of on ``M``: ``(M W) V = M (W V)``
and ``M diag(c) V = M (diag(c) V)``. The remaining operation is standard attention, for which fused kernels exist at
any resolution; no map is materialized.

Shapes: B rows, H heads, P pixels (queries), S or T tokens (keys and values), D width of a head, E edits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``softmax(query key^T / sqrt(D)) value``, ``[B,H,P,D]``; ``mask [B,H,1 or P,S]`` is additive or bool."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.0, is_causal=False)


def source_rows(batch_size: int, edits: Tensor, sources: Tensor) -> Tensor:
    """Return the row whose attention map each row uses, int64 ``[B]``: an edit its source's row, others their own."""
    rows = torch.arange(batch_size, device=edits.device)
    return rows.index_copy(0, edits, sources)


def inject_attention_maps(
    query: Tensor, key: Tensor, value: Tensor, edits: Tensor, sources: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return attention in which the rows ``edits`` use the maps of the rows ``sources`` and their own values."""
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
    """Return cross-attention in which an edit's map is ``(M_source W diag(a) + M_edit diag(1 - a)) diag(c)``.

    Replacement, refinement and reweighting are special cases with their own ``W``, ``a`` and ``c``. All other rows
    are bit-identical to standard attention.

    Args:
        query: ``[B,H,P,D]``; key, value: ``[B,H,T,D]``.
        edits, sources: int64 ``[E]``, rows of the batch.
        transfer: ``W``, ``[E,T,T]``; rows are tokens of the source, columns are tokens of the edit.
        inherited: ``a`` in [0, 1], ``[E,T]``: the share of the source's map that a token uses.
        weights: ``c``, ``[E,T]``.
    """
    edit_values = value[edits] * weights[:, None, :, None]  # [E,H,T,D]
    source_share = inherited[:, None, :, None]
    transferred = value.index_copy(0, edits, transfer[:, None] @ (source_share * edit_values))
    result = inject_attention_maps(query, key, transferred, edits, sources, mask)
    edit_mask = mask if mask is None else mask[edits]
    rest = attention(query[edits], key[edits], (1 - source_share) * edit_values, edit_mask)
    return result.index_add(0, edits, rest)


def attention_weights(query: Tensor, key: Tensor, words: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return each pixel's attention to the tokens marked by ``words [B,T]``, ``[B,P]``, averaged over the heads.

    It is the attention output for values that equal the marks, padded to the width of a head for fused kernels.
    """
    marks = torch.zeros_like(key)
    marks[..., 0] = words[:, None].to(key)
    return attention(query, key, marks, mask)[..., 0].mean(1)
