"""Plain interpolation and averages of seeds, which NAO is compared with.

Paths go from ``a`` to ``b`` ``[C, h, w]`` in ``points`` points, ends included: ``[K, C, h, w]``. Averages take
``seeds [N, C, h, w]`` and return ``[C, h, w]``. Arithmetic is float64 on the CPU, results have the input's dtype and
device.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from nao.norm import check_norms, project


def _fractions(points: int) -> Tensor:
    if points < 2:
        raise ValueError(f"points={points}: a path has at least its two ends.")
    return torch.linspace(0, 1, points, dtype=torch.float64).view(-1, 1, 1, 1)


def _wide(seeds: Tensor) -> Tensor:
    return seeds.cpu().double()


def _as(found: Tensor, like: Tensor) -> Tensor:
    return found.to(like.dtype).to(like.device)


def lerp(a: Tensor, b: Tensor, points: int) -> Tensor:
    """The straight line, whose middle has too small a norm."""
    s = _fractions(points)
    return _as((1 - s) * _wide(a) + s * _wide(b), a)


def slerp(a: Tensor, b: Tensor, points: int) -> Tensor:
    """The great circle, with the norm going evenly from one end's to the other's.

    Raises:
        ValueError: a zero seed, or opposite ones, between which every great circle is as short as any other.
    """
    norms = check_norms(torch.stack([a, b]))
    u, v = _wide(a) / norms[0], _wide(b) / norms[1]
    cosine = (u * v).sum().clamp(-1, 1)
    if cosine < -1 + 1e-12:
        raise ValueError("the two seeds are opposite, so that no great circle joins them alone: change one of them.")
    angle, s = torch.acos(cosine), _fractions(points)
    if angle < 1e-9:
        direction = (1 - s) * u + s * v
    else:
        direction = (torch.sin((1 - s) * angle) * u + torch.sin(s * angle) * v) / torch.sin(angle)
    path = direction * ((1 - s) * norms[0] + s * norms[1])
    path[0], path[-1] = _wide(a), _wide(b)
    return _as(path, a)


def normalized_lerp(a: Tensor, b: Tensor, points: int) -> Tensor:
    """The straight line brought to the typical norm, ends included."""
    return project(lerp(a, b, points))


def mean(seeds: Tensor) -> Tensor:
    """The arithmetic mean, whose norm shrinks with the number of seeds."""
    return _as(_wide(seeds).mean(0), seeds)


def normalized_mean(seeds: Tensor) -> Tensor:
    """The arithmetic mean brought to the typical norm."""
    return _as(project(mean(_wide(seeds))), seeds)


def spherical_mean(seeds: Tensor, iterations: PositiveInt = 100, tolerance: NonNegativeFloat = 1e-12) -> Tensor:
    """Fréchet mean of the directions on the unit sphere, with the mean of the norms.

    Iterates the mean of the logarithm map (Karcher). ValueError for seeds without a common half-sphere to start in.
    """
    norms = check_norms(seeds)
    units = _wide(seeds).flatten(1) / norms[:, None]
    center = units.mean(0)
    if center.norm() < 1e-9:
        raise ValueError("the seeds cancel out, so they have no spherical mean: leave one of them out.")
    center = center / center.norm()
    for _ in range(iterations):
        cosines = (units @ center).clamp(-1, 1)
        angles = torch.acos(cosines)
        tangents = units - cosines[:, None] * center
        scale = torch.where(angles > 1e-9, angles / torch.sin(angles).clamp_min(1e-12), torch.ones_like(angles))
        step = (scale[:, None] * tangents).mean(0)
        length = step.norm()
        if length < tolerance:
            break
        center = torch.cos(length) * center + torch.sin(length) * step / length
        center = center / center.norm()
    return _as((center * norms.mean()).view(seeds.shape[1:]), seeds)
