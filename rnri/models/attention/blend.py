"""Local blend: restricts an edit to the image region of chosen words (Prompt-to-Prompt, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAP_SIDE = 16
"""Side of the attention maps in the Prompt-to-Prompt paper, which dilates a region by one cell of such a map."""


class WordMaps:
    """Attention maps of K sets of words, with K maps per batch row, summed over layers and sampling steps.

    Args:
        words: masks of the tokens of the K sets of words for R batch rows, ``[R,K,T]``; 1 for a token of a word in the
            set, otherwise 0.
        size: height and width ``(h, w)`` of the latents.
    """

    def __init__(self, words: Tensor, size: tuple[int, int]) -> None:
        self.words = words
        self.size = size
        self.total: Tensor | None = None  # float32 [R,K,h,w]

    def add(self, attention: Tensor) -> None:
        """Add the maps ``attention [R,K,P]`` of a layer with P pixels, resized to the latents' size, to ``total``."""
        maps = attention.float().unflatten(2, layer_size(attention.shape[2], self.size))
        maps = F.interpolate(maps, self.size, mode="bilinear", align_corners=False)
        self.total = maps if self.total is None else self.total + maps

    def region(self, k: int, threshold: float, *, dilate: bool) -> Tensor:
        """Return, for R batch rows, a mask of the image region of the words in set ``k``, bool ``[R,h,w]``.

        The region consists of the pixels at which the attention map of the set is greater than ``threshold`` times the
        maximum of the map. With ``dilate``, the map is dilated by one cell of a 16 x 16 map before the comparison.
        """
        if self.total is None:
            raise ValueError(
                "the network has no cross-attention to words, so there is no region to blend in: leave `blend` empty."
            )
        maps = self.total[:, k : k + 1]
        if dilate:
            radius = max(1, round(max(self.size) / MAP_SIDE))
            maps = F.max_pool2d(maps, 2 * radius + 1, stride=1, padding=radius)
        return (maps > threshold * maps.amax((2, 3), keepdim=True))[:, 0]


def layer_size(pixels: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return ``(height, width)`` of a layer with ``pixels`` pixels: the latents' ``size`` after repeated halving.

    The height and the width are rounded up after each halving.

    Raises:
        ValueError: repeated halving does not lead to a size with ``pixels`` pixels.
    """
    height, width = size
    while height * width > pixels:
        height = -(-height // 2)
        width = -(-width // 2)
    if height * width != pixels:
        raise ValueError(
            f"a layer with {pixels} pixels is not a downsampling of latents {size[0]} x {size[1]} by a power of 2: "
            "leave `blend` empty for this network."
        )
    return height, width


def blend_latents(latents: Tensor, maps: WordMaps, threshold: float, edits: Tensor, *, sources: Tensor) -> Tensor:
    """Return ``latents [R,C,h,w]`` in which each edit equals its source outside the region that the edit may change.

    ``edits`` and ``sources`` (int64 ``[E]``) are the batch rows of E edits and of their sources. The region that may
    change is the union of the regions of the words ``maps.words[:, 0]`` in the edit and in the source. If
    ``maps.words[:, 1]`` exists, the regions of the words ``maps.words[:, 1]`` in the edit and in the source are
    excluded from the region that may change. As in the authors' code, only the regions of ``maps.words[:, 0]`` are
    dilated.
    """
    region = maps.region(0, threshold, dilate=True)
    changed = region[edits] | region[sources]
    if maps.words.shape[1] > 1:
        subtracted = maps.region(1, threshold, dilate=False)
        changed = changed & ~(subtracted[edits] | subtracted[sources])
    return latents.index_copy(0, edits, torch.where(changed[:, None], latents[edits], latents[sources]))
