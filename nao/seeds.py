"""Seeds for generation from groups of inverted seeds ``[G, n, C, h, w]``, one row of seeds a group."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import PositiveInt
from torch import Tensor

from nao.path import Path


def seeds_between(seeds: Tensor, count: PositiveInt, *, path: Callable[[Tensor, Tensor, int], Tensor | Path]) -> Tensor:
    """``count`` inner points of the path between the first two seeds of each group, ``[G, count, C, h, w]``.

    Args:
        path: ``(a, b, points) -> [points, C, h, w]`` or a ``Path``, ends included: ``lerp``, ``interpolate``, ...

    Raises:
        ValueError: ``count`` below 1, groups of a single seed, and whatever ``path`` refuses.
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for at least one point between two seeds.")
    if seeds.shape[1] < 2:
        raise ValueError("a path needs two seeds a group: invert at least two reference images.")
    return torch.stack([_points(path(group[0], group[1], count + 2))[1:-1] for group in seeds])


def seeds_at(seeds: Tensor, count: PositiveInt, *, average: Callable[[Tensor], Tensor]) -> Tensor:
    """The average of each group, ``[G, 1, C, h, w]``; ``count`` must be 1, for there is but one.

    Args:
        average: ``[n, C, h, w] -> [C, h, w]``: ``mean``, ``spherical_mean``, ...
    """
    if count != 1:
        raise ValueError(f"count={count}: a group of seeds has one average; ask for 1 sample a concept.")
    return torch.stack([average(group) for group in seeds])[:, None]


def _points(path: Tensor | Path) -> Tensor:
    return path.points if isinstance(path, Path) else path
