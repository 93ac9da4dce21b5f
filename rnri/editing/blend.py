"""Local blend: outside of the words' region the edit keeps the source's latents (Prompt-to-Prompt, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDES = 16  # the paper widens a region by one cell of a 16 x 16 map


class WordMaps:
    """Where each row attends to its words, summed over layers and steps.

    Args:
        words: ``[R,T]``, 1 for the tokens of the words.
        size: ``(h, w)`` of the latents.
    """

    def __init__(self, words: Tensor, size: tuple[int, int]) -> None:
        self.words = words
        self.size = size
        self.total: Tensor | None = None  # float32 [R,h,w]

    def add(self, attention: Tensor) -> None:
        """One layer's ``attention [R,P]``, of any resolution."""
        maps = attention.float().unflatten(1, grid(attention.shape[1], self.size))[:, None]
        maps = F.interpolate(maps, self.size, mode="bilinear", align_corners=False)[:, 0]
        self.total = maps if self.total is None else self.total + maps

    def region(self, threshold: float) -> Tensor:
        """Where a row's widened map reaches ``threshold`` of its largest value, bool ``[R,h,w]``."""
        if self.total is None:
            raise ValueError(
                "the network attended to no words, so there is no region to blend in: leave `blend` empty."
            )
        reach = max(1, round(max(self.size) / SIDES))
        maps = F.max_pool2d(self.total[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0]
        return maps >= threshold * maps.amax((1, 2), keepdim=True)


def grid(pixels: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer of ``pixels``: those of the latents, halved and rounded up as often as it takes."""
    height, width = size
    while height * width > pixels:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != pixels:
        raise ValueError(
            f"a layer with {pixels} pixels is no halving of latents {size[0]} x {size[1]}: leave `blend` empty for "
            "this network."
        )
    return height, width


def blended(latents: Tensor, region: Tensor, edits: Tensor, sources: Tensor) -> Tensor:
    """``latents [R,C,h,w]`` whose edits equal their sources outside of the region of either."""
    joint = (region[edits] | region[sources])[:, None]
    return latents.index_copy(0, edits, torch.where(joint, latents[edits], latents[sources]))
