"""Norm-guided paths and centroids of seeds (NAO; Samuel et al. 2023, "Norm-guided latent space exploration").

The energy of a path is the integral of ``-log chi_d(norm)`` over the length of the path, where chi_d is the density of
the norm of Gaussian seeds (chi distribution). A path of minimum energy therefore prefers norms that are likely for
Gaussian seeds. The path of minimum energy lies in the plane that contains the origin and both seeds, and the centroid
of minimum energy lies in the span of the seeds. The path and the centroid therefore depend only on the norms and
cosines of the seeds. :mod:`nao.geodesic` computes paths, and :mod:`nao.frechet_mean` computes centroids. Both modules
compute in float64 on the CPU, and their results are accurate up to rounding errors. The points of a path are evenly
spaced along the length of the path. :mod:`nao.polyline` implements the paper's method, in which a path is a polyline.

The tables of :mod:`nao.radial_metric` cover norms from 0.35 to 10 typical norms. A seed with a norm outside this range
is connected to the nearest norm in the tables by a straight radial segment. The energy and the length of the path
include the cost and the length of the radial segment. No point of the path lies on the radial segment, except the seed.

Letters in shapes: d is the number of components of a seed, n the number of seeds, K the number of points per path, and
G the number of problems. A problem is one pair of seeds for a path, or one group of seeds for a centroid. All leading
dimensions of a tensor are batch dimensions, and the problems of a batch are independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from torch import Tensor

from nao.frechet_mean import Center, angles, solve_mean
from nao.geodesic import Geodesics, solve_geodesics
from nao.norm import check_ends, check_norms, check_seeds, project, seed_norm, typical_norm
from nao.radial_metric import MAX_NORM_RATIO, MIN_NORM_RATIO, radial_cost, radial_metric
from rnri.validation import IntAtLeast2

MIN_ANGLE_TO_OPPOSITE_RAD = 1e-6  # if the angle between two seeds is closer to pi, their path is not unique
MIN_MEAN_NORM = 1e-7  # if the norm of the mean of the unit-norm seeds is less, the centroid is not unique


@dataclass(frozen=True, repr=False)
class Path:
    """A path of minimum NAO energy between two seeds.

    Attributes:
        points: ``[...,K,C,h,w]``, K points of the path; the first and the last point are the input seeds.
        energy: float64 ``[...]``, energy of the continuous path; it does not depend on K.
        length: float64 ``[...]``, Euclidean length of the continuous path.
        converged: bool ``[...]``, whether the solver that computes the path reached its tolerance.
    """

    points: Tensor
    energy: Tensor
    length: Tensor
    converged: Tensor

    def __repr__(self) -> str:
        return f"Path(points={list(self.points.shape)}, energy={_short(self.energy)}, length={_short(self.length)})"

    @property
    def norms(self) -> Tensor:
        """Norms of the points of the path, float64 ``[...,K]``."""
        return seed_norm(self.points)


@dataclass(frozen=True, repr=False)
class Centroid:
    """The NAO centroid of n seeds.

    Attributes:
        point: ``[...,C,h,w]``, the centroid.
        paths: ``[...,n,K,C,h,w]``, points of the paths from each seed to the centroid.
        energy: float64 ``[...]``, sum of the energies of the paths, plus the cost of the centroid's norm.
        lengths: float64 ``[...,n]``, Euclidean lengths of the paths.
        converged: bool ``[...]``, whether the solver that computes the centroid reached its tolerance.
    """

    point: Tensor
    paths: Tensor
    energy: Tensor
    lengths: Tensor
    converged: Tensor

    def __repr__(self) -> str:
        return f"Centroid(point={list(self.point.shape)}, paths={list(self.paths.shape)}, energy={_short(self.energy)})"


def interpolate(a: Tensor, b: Tensor, num_points: IntAtLeast2 = 12, *, normalize: bool = False) -> Path:
    """Return the NAO path (path of minimum energy) from seed ``a`` to seed ``b``.

    Args:
        a, b: the two seeds, both ``[...,C,h,w]``.
        num_points: number of points K of the path, including both ends.
        normalize: whether both seeds are first rescaled to the typical norm. Inverted seeds often do not have the
            typical norm.

    Raises:
        ValueError: a seed is zero, the seeds are opposite, or ``num_points`` is less than 2.
    """
    check_ends(a, b)
    subspace = _Subspace(torch.stack([a, b], -4), normalize)
    ends = torch.eye(2, dtype=torch.float64).expand(len(subspace.t), 2, 2)
    angle = angles(subspace.gram, ends[:, 1])[:, 0]
    if (angle > math.pi - MIN_ANGLE_TO_OPPOSITE_RAD).any():
        raise ValueError(
            "two seeds are opposite, so the path of minimum energy is not unique; replace one of the two seeds."
        )
    alpha = subspace.metric.alpha(subspace.t)
    paths = solve_geodesics(subspace.metric, alpha[:, 0], alpha[:, 1], angle)
    weights, length = _sample(paths, _even_fractions(num_points), start=ends[:, 0], end=ends[:, 1])
    points = subspace.to_ambient(weights)
    points[:, 0] = subspace.seeds[:, 0]
    points[:, -1] = subspace.seeds[:, 1]
    return Path(
        points=subspace.unflatten(points),
        energy=subspace.unflatten(paths.energy + subspace.radial_cost.sum(1)),
        length=subspace.unflatten(length + subspace.radial_length.sum(1)),
        converged=subspace.unflatten(paths.converged),
    )


def centroid(seeds: Tensor, num_points: IntAtLeast2 = 8, *, normalize: bool = False) -> Centroid:
    """Return the NAO centroid of seeds.

    The centroid minimizes the sum of the energies of the paths from all seeds to the centroid, plus the cost of the
    centroid's norm (see :mod:`nao.frechet_mean`). For two seeds, the middle of the path between the two seeds is
    returned.

    Args:
        seeds: the seeds ``[...,n,C,h,w]``.
        num_points: number of points K of each path, including both ends.
        normalize: whether the seeds are first rescaled to the typical norm.

    Raises:
        ValueError: there is no seed, a seed is zero, the mean of the seeds' directions is zero, or ``num_points`` is
            less than 2.
    """
    check_seeds(seeds, shape="[...,n,C,h,w]")
    subspace = _Subspace(seeds, normalize)
    center = subspace.solve_mean()
    weights, lengths = subspace.geodesic_to_seeds(center, _even_fractions(num_points))
    point = subspace.to_ambient(subspace.embed(center))
    paths = subspace.to_ambient(weights)
    paths[:, :, 0] = subspace.seeds
    paths[:, :, -1] = point[:, None]
    return Centroid(
        point=subspace.unflatten(point),
        paths=subspace.unflatten(paths),
        energy=subspace.unflatten(center.energy + subspace.radial_cost.sum(1)),
        lengths=subspace.unflatten(lengths + subspace.radial_length),
        converged=subspace.unflatten(center.converged),
    )


def centroid_seeds(
    seeds: Tensor, count: PositiveInt, *, num_points: IntAtLeast2 = 8, normalize: bool = False
) -> Tensor:
    """Return the centroid of each concept and points on the paths to the centroid, ``[G,count,C,h,w]``.

    The first seed of each concept is the centroid. The other seeds lie on the paths from the inverted seeds of the
    references to the centroid. The paths contribute these seeds in turn: the first seed of every path, then the second
    seed of every path, and so on. The seeds on one path are evenly spaced. A concept with a single reference may have a
    path of length zero, so that all returned seeds are equal.

    Args:
        seeds: inverted seeds of the references, ``[G,n,C,h,w]`` for n references of G concepts.
        count: number of returned seeds per concept.
        num_points: minimum number of points per path, including both ends; more points are used if ``count`` requires
            them.
        normalize: whether the inverted seeds are first rescaled to the typical norm.

    Raises:
        ValueError: ``count`` is less than 1, or an argument is invalid for :func:`centroid`.
    """
    check_seeds(seeds, shape="[G,n,C,h,w]")
    if not _is_positive_integer(count):
        raise ValueError(f"count={count}: must be an integer >= 1, because the first seed is the centroid.")
    subspace = _Subspace(seeds, normalize)
    center = subspace.solve_mean()
    points_per_path = -(-(count - 1) // seeds.shape[1])
    last = max(num_points, points_per_path + 2) - 1
    # The fractions decrease, because the returned points are sorted from the centroid to the references.
    fractions = 1 - torch.arange(1, points_per_path + 1, dtype=torch.float64) / (points_per_path + 1)
    weights, _ = subspace.geodesic_to_seeds(center, (fractions * last).round() / last)
    others = weights.transpose(1, 2).flatten(1, 2)[:, : count - 1]
    return subspace.to_ambient(torch.cat([subspace.embed(center)[:, None], others], 1))


def path_seeds(seeds: Tensor, count: PositiveInt, *, normalize: bool = False) -> Tensor:
    """Return ``count`` inner points of the paths from inverted seeds to their centroid, ``[G,count,C,h,w]``.

    The points are sorted by path, and within a path from the inverted seed to the centroid. The numbers of points on
    any two paths differ by at most one. If a concept has two references, the two paths together form the path between
    the two inverted seeds. The demo of the SeedSelect authors optimizes 96 points of a path between two seeds.

    Args:
        seeds: inverted seeds of the references, ``[G,n,C,h,w]`` for n references of G concepts.
        count: number of returned seeds per concept.
        normalize: whether the inverted seeds are first rescaled to the typical norm.

    Raises:
        ValueError: ``count`` is less than 1, or an argument is invalid for :func:`centroid`.
    """
    check_seeds(seeds, shape="[G,n,C,h,w]")
    if not _is_positive_integer(count):
        raise ValueError(f"count={count}: must be an integer >= 1.")
    subspace = _Subspace(seeds, normalize)
    n = seeds.shape[1]
    counts = torch.tensor([count // n + (k < count % n) for k in range(n)])
    index = torch.arange(1, int(counts.max()) + 1)
    fractions = index.double() / (counts[:, None] + 1)
    weights, _ = subspace.geodesic_to_seeds(subspace.solve_mean(), fractions.clamp_max(1))
    return subspace.to_ambient(weights[:, index <= counts[:, None]])


class _Subspace:
    """The linear span of the n seeds of each of G problems.

    A vector in the span is represented by ``n`` weights: the vector is the weighted sum of the unit-norm seeds (the
    seeds divided by their norms).

    Attributes:
        seeds: ``[G,n,C,h,w]``, the seeds; all batch dimensions are flattened into G.
        gram: float64 ``[G,n,n]`` on the CPU, cosines of the angles between the seeds.
        t: ``[G,n]``, ``log(norm / mode)`` of the seeds, clamped to the range of the tables in :mod:`nao.radial_metric`.
        radial_length: ``[G,n]``, Euclidean length of the straight radial segment that connects each seed to the nearest
            norm in the tables; 0 if the norm of the seed is in the range of the tables.
        radial_cost: ``[G,n]``, NAO energy of the straight radial segment that connects each seed to the nearest norm in
            the tables; 0 if the norm of the seed is in the range of the tables.
    """

    def __init__(self, seeds: Tensor, normalize: bool) -> None:
        check_norms(seeds)
        if normalize:
            seeds = project(seeds)
        self.batch_shape = seeds.shape[:-4]
        self.seeds = seeds.reshape(-1, *seeds.shape[-4:])
        self.flat = self.seeds.cpu().double().flatten(2)
        products = self.flat @ self.flat.mT
        self.norms = products.diagonal(dim1=1, dim2=2).sqrt()
        self.gram = products / (self.norms[:, :, None] * self.norms[:, None])
        self.metric = radial_metric(self.flat.shape[2])
        d, mode = self.metric.d, typical_norm(self.metric.d)
        ratio = self.norms / mode
        clamped = ratio.clamp(MIN_NORM_RATIO, MAX_NORM_RATIO)
        self.t = clamped.log()
        self.radial_length = mode * (ratio - clamped).abs()
        self.radial_cost = (radial_cost(ratio, d) - radial_cost(clamped, d)).abs()

    def solve_mean(self) -> Center:
        """Return the NAO centroid of each of the G problems, computed from the n seeds of the problem.

        Raises:
            ValueError: the mean of the unit-norm seeds of a problem is zero, so that the centroid is not unique.
        """
        if (self.gram.mean((1, 2)) < MIN_MEAN_NORM**2).any():
            raise ValueError("the seeds cancel out, so their centroid is not unique; remove one of the seeds.")
        return solve_mean(self.metric, self.gram, self.t)

    def embed(self, center: Center) -> Tensor:
        """Return the centroid, including its norm, as weights of the unit-norm seeds, ``[G,n]``."""
        return center.weights * (typical_norm(self.metric.d) * center.t.exp())[:, None]

    def geodesic_to_seeds(self, center: Center, fractions: Tensor) -> tuple[Tensor, Tensor]:
        """Compute points of the paths from the seeds to the centroid.

        Args:
            center: the centroid and its geodesics.
            fractions: positions of the points as fractions ``[...,K]`` of the path length; 0 is the seed, and 1 is the
                centroid.

        Returns:
            The points as weights of the unit-norm seeds ``[G,n,K,n]``, and the lengths of the paths ``[G,n]``.
        """
        unit_seeds = torch.eye(self.t.shape[1], dtype=torch.float64)
        return _sample(center.paths, fractions, start=unit_seeds, end=center.weights[:, None])

    def to_ambient(self, weights: Tensor) -> Tensor:
        """Convert vectors in the span, given as weights of the unit-norm seeds ``[G,...,n]``, to seeds
        ``[G,...,C,h,w]``.
        """
        scaled = weights / self.norms.view(len(weights), *[1] * (weights.ndim - 2), -1)
        rows = scaled.flatten(1, -2) if weights.ndim > 2 else scaled[:, None]
        seeds = (rows @ self.flat).to(self.seeds.dtype).to(self.seeds.device)
        return seeds.view(*weights.shape[:-1], *self.seeds.shape[2:])

    def unflatten(self, values: Tensor) -> Tensor:
        """Restore the batch dimensions of the input, which were flattened into G: ``[G,...] -> [*batch_shape,...]``."""
        return values.reshape((*self.batch_shape, *values.shape[1:]))


def _sample(paths: Geodesics, fractions: Tensor, *, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the points at the given fractions of the length of each geodesic.

    Args:
        paths: geodesics with the batch shape ``[...]``.
        fractions: positions of the points as fractions ``[...,K]`` of the path length, in [0, 1].
        start, end: directions of the two ends as weights of the unit-norm seeds, ``[...,n]``.

    Returns:
        The points as weights of the unit-norm seeds ``[...,K,n]``, and the lengths of the paths ``[...]``.
    """
    mode = typical_norm(paths.metric.d)
    full_angle = paths.angle[..., None]
    t, angle, length = paths.sample(fractions)
    scale = mode * t.exp() / full_angle.sin()
    start_weight = scale * (full_angle - angle).sin()
    end_weight = scale * angle.sin()
    weights = start_weight[..., None] * start[..., None, :] + end_weight[..., None] * end[..., None, :]
    return weights, mode * length


def _short(values: Tensor) -> str:
    """Return a single value as text, or the shape of several values."""
    return f"{float(values):.4g}" if values.numel() == 1 else str(list(values.shape))


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _even_fractions(num_points: int) -> Tensor:
    if not _is_positive_integer(num_points) or num_points < 2:
        raise ValueError(
            f"num_points={num_points}: must be an integer >= 2, because both ends of the path are included."
        )
    return torch.linspace(0, 1, num_points, dtype=torch.float64)
