"""Local blend: outside the region of chosen words an edit keeps the source's latents (Prompt-to-Prompt, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAP_SIDE = 16
"""The paper dilates a region by one cell of a 16 x 16 map."""


class WordMaps:
    """Attention of each row to its words, summed over layers and steps.

    Args:
        words: ``[R,T]``, 1 for the tokens of the words.
        size: ``(h, w)`` of the latents.
    """

    def __init__(self, words: Tensor, size: tuple[int, int]) -> None:
        self.words = words
        self.size = size
        self.total: Tensor | None = None  # float32 [R,h,w]

    def add(self, attention: Tensor) -> None:
        """Add one layer's ``attention [R,P]`` of any resolution."""
        maps = attention.float().unflatten(1, layer_size(attention.shape[1], self.size))[:, None]
        maps = F.interpolate(maps, self.size, mode="bilinear", align_corners=False)[:, 0]
        self.total = maps if self.total is None else self.total + maps

    def region(self, threshold: float) -> Tensor:
        """Return where a row's dilated map reaches ``threshold`` times its maximum, bool ``[R,h,w]``."""
        if self.total is None:
            raise ValueError(
                "the network has no cross-attention to words, so there is no region to blend in: leave `blend` empty."
            )
        radius = max(1, round(max(self.size) / MAP_SIDE))
        maps = F.max_pool2d(self.total[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0]
        return maps >= threshold * maps.amax((1, 2), keepdim=True)


def layer_size(pixels: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return ``(height, width)`` of a layer with ``pixels``: the latents' ``size`` halved repeatedly, rounded up."""
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
    """Return ``latents [R,C,h,w]`` whose edits equal their sources outside of the union of both regions."""
    union = (region[edits] | region[sources])[:, None]
    return latents.index_copy(0, edits, torch.where(union, latents[edits], latents[sources]))
