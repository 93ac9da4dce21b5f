"""Plain interpolation and averages of seeds, which NAO is compared with.

Paths go from ``a`` to ``b`` ``[C, h, w]`` in ``points`` points, ends included: ``[K, C, h, w]``. Averages take
``seeds [N, C, h, w]`` and return ``[C, h, w]``. Arithmetic is float64, results have the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from checked import Count, NotNegative
from nao.norm import check_norms, project, seed_norm


def _fractions(points: int, like: Tensor) -> Tensor:
    if points < 2:
        raise ValueError(f"points={points}: a path has at least its two ends.")
    return torch.linspace(0, 1, points, dtype=torch.float64, device=like.device).view(-1, 1, 1, 1)


def lerp(a: Tensor, b: Tensor, points: int) -> Tensor:
    """The straight line, whose middle has too small a norm."""
    s = _fractions(points, a)
    return ((1 - s) * a.double() + s * b.double()).to(a.dtype)


def slerp(a: Tensor, b: Tensor, points: int) -> Tensor:
    """The great circle, with the norm going evenly from one end's to the other's.

    Raises:
        ValueError: a zero seed, or opposite ones, between which every great circle is as short as any other.
    """
    norms = check_norms(torch.stack([a, b]))
    u, v = a.double() / norms[0], b.double() / norms[1]
    cosine = (u * v).sum().clamp(-1, 1)
    if cosine < -1 + 1e-12:
        raise ValueError("the two seeds are opposite, so that no great circle joins them alone: change one of them.")
    angle, s = torch.acos(cosine), _fractions(points, a)
    if angle < 1e-9:
        direction = (1 - s) * u + s * v
    else:
        direction = (torch.sin((1 - s) * angle) * u + torch.sin(s * angle) * v) / torch.sin(angle)
    path = direction * ((1 - s) * norms[0] + s * norms[1])
    path[0], path[-1] = a.double(), b.double()
    return path.to(a.dtype)


def normalised_lerp(a: Tensor, b: Tensor, points: int) -> Tensor:
    """The straight line brought to the typical norm, ends included."""
    return project(lerp(a, b, points))


def mean(seeds: Tensor) -> Tensor:
    """The arithmetic mean, whose norm shrinks with the number of seeds."""
    return seeds.double().mean(0).to(seeds.dtype)


def normalised_mean(seeds: Tensor) -> Tensor:
    """The arithmetic mean brought to the typical norm."""
    return project(mean(seeds.double())).to(seeds.dtype)


def spherical_mean(seeds: Tensor, iterations: Count = 100, tolerance: NotNegative = 1e-12) -> Tensor:
    """Fréchet mean of the directions on the unit sphere, with the mean of the norms.

    Iterates the mean of the logarithm map (Karcher). ValueError for seeds without a common half-sphere to start in.
    """
    norms = check_norms(seeds)
    units = seeds.double().flatten(1) / norms[:, None]
    centre = units.mean(0)
    if centre.norm() < 1e-9:
        raise ValueError("the seeds cancel out, so they have no spherical mean: leave one of them out.")
    centre = centre / centre.norm()
    for _ in range(iterations):
        cosines = (units @ centre).clamp(-1, 1)
        angles = torch.acos(cosines)
        tangents = units - cosines[:, None] * centre
        scale = torch.where(angles > 1e-9, angles / torch.sin(angles).clamp_min(1e-12), torch.ones_like(angles))
        step = (scale[:, None] * tangents).mean(0)
        length = step.norm()
        if length < tolerance:
            break
        centre = torch.cos(length) * centre + torch.sin(length) * step / length
        centre = centre / centre.norm()
    return (centre * seed_norm(seeds).mean()).view(seeds.shape[1:]).to(seeds.dtype)
