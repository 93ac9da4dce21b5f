"""Functions that compute new seeds from G groups of n inverted seeds, ``[G,n,C,h,w]``.

A group contains the inverted seeds of the reference images of one concept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import PositiveInt
from torch import Tensor

from nao.path import Path


def seeds_between(seeds: Tensor, count: PositiveInt, *, path: Callable[[Tensor, Tensor, int], Tensor | Path]) -> Tensor:
    """Return ``count`` inner points of the path between the first two seeds of each group, ``[G,count,C,h,w]``.

    Args:
        seeds: groups of inverted seeds, ``[G,n,C,h,w]`` with n >= 2.
        count: number of points per group.
        path: function ``(a, b, num_points)`` that returns a ``Path`` or points ``[num_points,C,h,w]``, including both
            ends, for example ``lerp`` or ``interpolate``.

    Raises:
        ValueError: ``count`` is less than 1, a group contains only one seed, or ``path`` raises a ValueError.
    """
    if count < 1:
        raise ValueError(f"count={count}: the number of points between two seeds must be >= 1.")
    if seeds.shape[1] < 2:
        raise ValueError("a path needs at least two seeds per group; invert at least two reference images per concept.")
    return torch.stack([_points(path(group[0], group[1], count + 2))[1:-1] for group in seeds])


def average_seeds(seeds: Tensor, count: PositiveInt, *, average: Callable[[Tensor], Tensor]) -> Tensor:
    """Return one average seed for each of G groups of n seeds, ``[G,1,C,h,w]``.

    Args:
        seeds: groups of inverted seeds, ``[G,n,C,h,w]``.
        count: number of returned seeds per group; must be 1, because a group has a single average.
        average: function that maps seeds ``[n,C,h,w]`` to their average ``[C,h,w]``, for example ``mean`` or
            ``spherical_mean``.

    Raises:
        ValueError: ``count`` is not 1.
    """
    if count != 1:
        raise ValueError(f"count={count}: must be 1, because a group of seeds has a single average.")
    return torch.stack([average(group) for group in seeds])[:, None]


def _points(path: Tensor | Path) -> Tensor:
    return path.points if isinstance(path, Path) else path
