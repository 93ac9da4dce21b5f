"""Local blend: an edit changes the latents only in the image region of chosen words (Prompt-to-Prompt, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAP_SIDE = 16
"""Side of the 16 x 16 attention maps in the Prompt-to-Prompt paper, which dilates a region by one cell of this map."""


class WordMaps:
    """Maps of the attention to the chosen words, one map per batch row, summed over layers and sampling steps.

    Args:
        words: mask of the chosen words' tokens for R batch rows, ``[R,T]``; 1 for a token of a chosen word, otherwise
            0.
        size: height and width ``(h, w)`` of the latents.
    """

    def __init__(self, words: Tensor, size: tuple[int, int]) -> None:
        self.words = words
        self.size = size
        self.total: Tensor | None = None  # float32 [R,h,w]

    def add(self, attention: Tensor) -> None:
        """Add the attention maps ``attention [R,P]`` of one layer with P pixels, resized to the latents' size."""
        maps = attention.float().unflatten(1, layer_size(attention.shape[1], self.size))[:, None]
        maps = F.interpolate(maps, self.size, mode="bilinear", align_corners=False)[:, 0]
        self.total = maps if self.total is None else self.total + maps

    def region(self, threshold: float) -> Tensor:
        """Return the mask of pixels whose dilated map is at least ``threshold`` times its maximum, bool ``[R,h,w]``."""
        if self.total is None:
            raise ValueError(
                "the network has no cross-attention to words, so there is no region to blend in: leave `blend` empty."
            )
        radius = max(1, round(max(self.size) / MAP_SIDE))
        maps = F.max_pool2d(self.total[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0]
        return maps >= threshold * maps.amax((1, 2), keepdim=True)


def layer_size(pixels: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return ``(height, width)`` of a layer with ``pixels`` pixels: the latents' ``size`` after repeated halving.

    Each halving rounds up.

    Raises:
        ValueError: repeated halving does not lead to this number of pixels.
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


def blend_latents(latents: Tensor, region: Tensor, edits: Tensor, sources: Tensor) -> Tensor:
    """Return ``latents [R,C,h,w]`` in which each edit equals its source outside the two regions of edit and source."""
    union = (region[edits] | region[sources])[:, None]
    return latents.index_copy(0, edits, torch.where(union, latents[edits], latents[sources]))
