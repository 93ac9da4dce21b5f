"""Standard interpolations and averages of seeds, as baselines for NAO.

The functions for interpolation take two seeds ``a`` and ``b``, both ``[C,h,w]``, and return a path ``[K,C,h,w]`` of K =
``num_points`` points. The first point of the path is ``a``, and the last point is ``b``; only :func:`normalized_lerp`
rescales both. The functions for averages take n seeds ``[n,C,h,w]`` and return one seed ``[C,h,w]``. All functions
compute in float64 on the CPU, and convert the result to the dtype and device of the input.
"""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from nao.norm import check_ends, check_norms, check_seeds, project


def _fractions(num_points: int) -> Tensor:
    if isinstance(num_points, bool) or not isinstance(num_points, int):
        raise ValueError(f"num_points: must be an integer >= 2, got {num_points!r}; pass an integer.")
    if num_points < 2:
        raise ValueError(f"num_points={num_points}: must be >= 2, because both ends of the path are included.")
    return torch.linspace(0, 1, num_points, dtype=torch.float64).view(-1, 1, 1, 1)


def _to_float64(seeds: Tensor) -> Tensor:
    return seeds.cpu().double()


def _cast_like(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).to(like.device)


def lerp(a: Tensor, b: Tensor, num_points: int) -> Tensor:
    """Linear interpolation between two seeds. The points in the middle have smaller norms than typical seeds."""
    check_ends(a, b, "[C,h,w]")
    s = _fractions(num_points)
    return _cast_like((1 - s) * _to_float64(a) + s * _to_float64(b), a)


def slerp(a: Tensor, b: Tensor, num_points: int) -> Tensor:
    """Spherical linear interpolation of the directions of two seeds, and linear interpolation of the norms.

    Raises:
        ValueError: a seed is zero, or the seeds are opposite, so that the great circle between them is not unique.
    """
    check_ends(a, b, "[C,h,w]")
    norms = check_norms(torch.stack([a, b]))
    u, v = _to_float64(a) / norms[0], _to_float64(b) / norms[1]
    cosine = (u * v).sum().clamp(-1, 1)
    if cosine < -1 + 1e-12:
        raise ValueError(
            "the seeds a and b are opposite, so no unique great circle connects them; replace one of the two seeds."
        )
    angle = torch.acos(cosine)
    s = _fractions(num_points)
    if angle < 1e-9:
        direction = (1 - s) * u + s * v
    else:
        direction = (torch.sin((1 - s) * angle) * u + torch.sin(s * angle) * v) / torch.sin(angle)
    path = direction * ((1 - s) * norms[0] + s * norms[1])
    path[0] = _to_float64(a)
    path[-1] = _to_float64(b)
    return _cast_like(path, a)


def normalized_lerp(a: Tensor, b: Tensor, num_points: int) -> Tensor:
    """Linear interpolation between two seeds. All points, including both ends, are rescaled to the typical norm."""
    return project(lerp(a, b, num_points))


def cog(seeds: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of seeds, rescaled to the variance of Gaussian noise: ``sum_i w_i x_i / sqrt(sum_i w_i^2)``.

    ``x_i`` are the seeds, and ``w_i`` are the weights. COG (Bodin et al. 2024, arXiv 2408.08558) divides a linear
    combination of independent standard Gaussian seeds by its standard deviation, so that the result is again a standard
    Gaussian seed. COG divides by a number that depends only on the weights; ``normalized_mean`` divides by the norm of
    the mean. Inverted seeds of similar images are positively correlated. If all weights are positive, the combination
    of correlated seeds has a larger norm than a typical seed.

    Args:
        seeds: the seeds ``[n,C,h,w]``.
        weights: one weight per seed, ``[n]``, of any sign.

    Raises:
        ValueError: the number of weights is not ``n``, a weight is not finite, or all weights are zero.
    """
    check_seeds(seeds, shape="[n,C,h,w]")
    weights = torch.as_tensor(weights).cpu().double()
    if weights.shape != seeds.shape[:1]:
        raise ValueError(
            f"weights: expected the shape [{len(seeds)}] (one weight per seed), got {list(weights.shape)}."
        )
    if not weights.isfinite().all():
        raise ValueError(f"weights: must be finite, got {weights.tolist()}; replace the weights that are not finite.")
    deviation = weights.norm()
    if deviation == 0:
        raise ValueError(
            "weights: all weights are zero, so the weighted sum is zero; pass at least one nonzero weight."
        )
    return _cast_like(torch.einsum("n,nchw->chw", weights / deviation, _to_float64(seeds)), seeds)


def cog_path(a: Tensor, b: Tensor, num_points: int) -> Tensor:
    """Linear interpolation between two seeds, in which every point is rescaled to the variance of Gaussian noise.

    For a position ``t`` from 0 to 1, the point is ``((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)``. If ``a`` and ``b`` are
    independent standard Gaussian seeds, the divisor is the standard deviation of ``(1 - t) a + t b``, see :func:`cog`.
    """
    check_ends(a, b, "[C,h,w]")
    s = _fractions(num_points).flatten()
    seeds = torch.stack([_to_float64(a), _to_float64(b)])
    return _cast_like(torch.stack([cog(seeds, torch.stack([1 - t, t])) for t in s]), a)


def cog_mean(seeds: Tensor) -> Tensor:
    """Sum of the n seeds ``[n,C,h,w]``, divided by the square root of n.

    For independent standard Gaussian seeds, the returned seed is again a standard Gaussian seed, see :func:`cog`.
    """
    return cog(seeds, torch.ones(len(seeds)))


def mean(seeds: Tensor) -> Tensor:
    """Arithmetic mean of the seeds. The norm of the mean decreases as the number of seeds increases."""
    check_seeds(seeds, shape="[n,C,h,w]")
    return _cast_like(_to_float64(seeds).mean(0), seeds)


def normalized_mean(seeds: Tensor) -> Tensor:
    """Arithmetic mean of the seeds, rescaled to the typical norm."""
    return _cast_like(project(mean(_to_float64(seeds))), seeds)


def spherical_mean(seeds: Tensor, iterations: PositiveInt = 100, tolerance: NonNegativeFloat = 1e-12) -> Tensor:
    """Fréchet mean of the seeds' directions on the unit sphere, rescaled to the mean norm of the seeds.

    The Fréchet mean minimizes the sum of the squared angles to all seeds. The Fréchet mean is computed by Karcher's
    iteration.

    Args:
        seeds: the seeds ``[n,C,h,w]``.
        iterations: maximum number of iterations.
        tolerance: angle in radians; the iteration stops when the mean moves by less than this angle.

    Raises:
        ValueError: a seed is zero, or the mean of the directions is zero.
    """
    check_seeds(seeds, shape="[n,C,h,w]")
    norms = check_norms(seeds)
    units = _to_float64(seeds).flatten(1) / norms[:, None]
    center = units.mean(0)
    if center.norm() < 1e-9:
        raise ValueError("the seeds cancel out, so their spherical mean is not unique; remove one of the seeds.")
    center = center / center.norm()
    for _ in range(iterations):
        # Map the seeds to tangent vectors at the center (logarithm map), average the tangent vectors, and map the
        # average back to the sphere (exponential map).
        cosines = (units @ center).clamp(-1, 1)
        angles = torch.acos(cosines)
        tangents = units - cosines[:, None] * center
        scale = torch.where(angles > 1e-9, angles / torch.sin(angles).clamp_min(1e-12), torch.ones_like(angles))
        update = (scale[:, None] * tangents).mean(0)
        length = update.norm()
        if length < tolerance:
            break
        center = torch.cos(length) * center + torch.sin(length) * update / length
        center = center / center.norm()
    return _cast_like((center * norms.mean()).view(seeds.shape[1:]), seeds)
