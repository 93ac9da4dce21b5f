"""Prompt-to-Prompt's operators on attention maps (Hertz et al. 2022, https://arxiv.org/abs/2208.01626).

The operators multiply the attention map ``M`` by a matrix ``W`` or a vector ``c``. The operators can be applied to the
values ``V`` instead of ``M``, because ``(M W) V = M (W V)`` and ``M diag(c) V = M (diag(c) V)``. The remaining
operation is standard attention, which fused kernels compute at any resolution without storing the attention map.

Letters in tensor shapes: B batch rows, H heads, P pixels (queries), S or T tokens (keys and values), D width of a head,
E edits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split_heads(heads: int, tokens: Tensor) -> Tensor:
    """Reshape ``tokens [B,L,heads*D]`` to ``[B,heads,L,D]``."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``softmax(query key^T / sqrt(D)) value``, ``[B,H,P,D]``.

    For P queries and S keys, ``query`` is ``[B,H,P,D]``, ``key`` and ``value`` are ``[B,H,S,D]``, and
    ``mask [B,H,1 or P,S]`` is an additive or boolean attention mask.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.0, is_causal=False)


def source_rows(batch_size: int, edits: Tensor, sources: Tensor) -> Tensor:
    """Return, for each batch row, the index of the batch row whose attention map this row uses, int64 ``[B]``.

    The rows ``edits`` of E edited images use the attention maps of the rows ``sources``, both int64 ``[E]``. Every
    other row uses its own attention map.
    """
    rows = torch.arange(batch_size, device=edits.device)
    return rows.index_copy(0, edits, sources)


def inject_attention_maps(
    query: Tensor, key: Tensor, value: Tensor, edits: Tensor, *, sources: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return the output ``[B,H,P,D]`` of attention in which the rows ``edits`` use the attention maps of ``sources``.

    ``edits`` and ``sources`` (int64 ``[E]``) are the batch rows of E edited images and of their source images. Every
    batch row uses its own ``value``. ``mask`` is an additive or boolean attention mask.
    """
    rows = source_rows(len(query), edits, sources)
    return attention(query[rows], key[rows], value, mask if mask is None else mask[rows])


def inject_cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edits: Tensor,
    *,
    sources: Tensor,
    transfer: Tensor,
    inherited: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the output of cross-attention in which each edit combines its attention map with the map of its source.

    An edit is the batch row of an edited image, and its source is the row of the image before the edit. The attention
    map of an edit is ``(M_source W diag(a) + M_edit diag(1 - a)) diag(c)``, where ``M_source`` and ``M_edit`` are the
    maps of standard attention. Replacement, refinement and reweighting of the Prompt-to-Prompt paper are special cases
    with different ``W``, ``a`` and ``c``. For rows that are not edits, the output is bit-identical to standard
    attention.

    Args:
        query: queries ``[B,H,P,D]`` of P pixels.
        key, value: keys and values ``[B,H,T,D]`` of T text tokens.
        edits, sources: batch rows of the E edits and of their sources, int64 ``[E]``.
        transfer: the matrices ``W``, ``[E,T,T]``; rows are tokens of the source, columns are tokens of the edit.
        inherited: the vectors ``a`` in [0, 1], ``[E,T]``: the fraction of a token's attention that comes from the map
            of the source.
        weights: the vectors ``c``, ``[E,T]``: the factor by which the attention to each token is multiplied.
        mask: attention mask, additive or boolean; None means no mask.
    """
    edit_values = value[edits] * weights[:, None, :, None]  # [E,H,T,D]
    source_share = inherited[:, None, :, None]
    transferred = value.index_copy(0, edits, transfer[:, None] @ (source_share * edit_values))
    result = inject_attention_maps(query, key, transferred, edits, sources=sources, mask=mask)
    edit_mask = mask if mask is None else mask[edits]
    rest = attention(query[edits], key[edits], (1 - source_share) * edit_values, edit_mask)
    return result.index_add(0, edits, rest)


def attention_weights(query: Tensor, key: Tensor, words: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return each pixel's total attention ``[B,K,P]`` to the tokens in each of K masks, averaged over the heads.

    The pixels are the P queries ``[B,H,P,D]``, and the tokens are the T keys ``[B,H,T,D]``. The masks ``words [B,K,T]``
    are used as the values of the attention. The masks are padded to the width of a head, so that fused kernels can be
    used.
    """
    count = words.shape[1]
    marks = torch.zeros_like(key)
    marks[..., :count] = words.transpose(1, 2)[:, None].to(key)
    return attention(query, key, marks, mask)[..., :count].mean(1).transpose(1, 2)
