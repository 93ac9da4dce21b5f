"""Norm-guided paths and centroids of seeds (NAO; Samuel et al. 2023, "Norm-guided latent space exploration").

The energy of a path is the integral of ``-log chi_d(norm)`` over its length: length is cheap where seeds of that norm
are likely. The cheapest path lies in the plane of its ends, and the cheapest centroid in the span of its seeds. Both
therefore depend only on the norms and cosines of the seeds. :mod:`nao.geodesic` and :mod:`nao.frechet_mean` solve for
them exactly, many problems at once, in float64 on the CPU. The points of a path are evenly spaced by length. The
polyline of the paper is in :mod:`nao.polyline`.

Norms below 0.35 or above 10 typical norms are outside the tables of :mod:`nao.radial_metric`. Such a seed is connected
to the nearest tabulated norm by a straight radial segment. Its cost and length count, but no points lie on it except
the seed itself.

Letters in shapes: d components of a seed, n seeds, K points per path, G problems. Any leading dimensions are batched,
and the problems of a batch are independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from torch import Tensor

from nao.frechet_mean import Center, angles, solve_mean
from nao.geodesic import Geodesics, solve_geodesics
from nao.norm import check_norms, project, seed_norm, typical_norm
from nao.radial_metric import MAX_NORM_RATIO, MIN_NORM_RATIO, radial_cost, radial_metric
from rnri.validation import IntAtLeast2

MIN_ANGLE_TO_OPPOSITE_RAD = 1e-6  # two seeds this close to opposite have no unique path
MIN_MEAN_NORM = 1e-7  # norm of the mean of the unit seeds below which the seeds cancel out


@dataclass(frozen=True)
class Path:
    """A path between two seeds.

    Attributes:
        points: ``[...,K,C,h,w]``; the first and the last are the input seeds.
        energy: energy of the continuous path, independent of K, float64 ``[...]``.
        length: length of the continuous path, float64 ``[...]``.
        converged: bool ``[...]``.
    """

    points: Tensor
    energy: Tensor
    length: Tensor
    converged: Tensor

    @property
    def norms(self) -> Tensor:
        """Norms of the points, float64 ``[...,K]``."""
        return seed_norm(self.points)


@dataclass(frozen=True)
class Centroid:
    """The centroid of n seeds.

    Attributes:
        point: ``[...,C,h,w]``.
        paths: points of the paths from each seed to the centroid, ``[...,n,K,C,h,w]``.
        energy: sum of the energies of the paths, plus the cost of the centroid's norm, float64 ``[...]``.
        lengths: lengths of the paths, float64 ``[...,n]``.
        converged: bool ``[...]``.
    """

    point: Tensor
    paths: Tensor
    energy: Tensor
    lengths: Tensor
    converged: Tensor


def interpolate(a: Tensor, b: Tensor, num_points: IntAtLeast2 = 12, *, normalize: bool = False) -> Path:
    """Return the NAO path from seeds ``a`` to seeds ``b``, both ``[...,C,h,w]``.

    Args:
        a, b: the seeds.
        num_points: number of points K, both ends included.
        normalize: rescale both ends to the typical norm first. Inverted seeds often have another norm.

    Raises:
        ValueError: a zero seed, opposite seeds, or fewer than 2 points.
    """
    subspace = _Subspace(torch.stack([a, b], -4), normalize)
    ends = torch.eye(2, dtype=torch.float64).expand(len(subspace.t), 2, 2)
    angle = angles(subspace.gram, ends[:, 1])[:, 0]
    if (angle > math.pi - MIN_ANGLE_TO_OPPOSITE_RAD).any():
        raise ValueError("two seeds are opposite, so the shortest path between them is not unique; change one of them.")
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
    """Return the NAO centroid of ``seeds [...,n,C,h,w]``.

    It minimizes the sum of the energies of the paths from all seeds, plus the cost of its own norm (see
    :mod:`nao.frechet_mean`). Between two seeds every point of their path is a minimum; the one halfway is returned.

    Args:
        seeds: the seeds.
        num_points: number of points K of each path, both ends included.
        normalize: rescale the seeds to the typical norm first.

    Raises:
        ValueError: no seed, a zero seed, seeds that cancel out, or fewer than 2 points.
    """
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
    """Return the centroid and points around it, ``[G,count,C,h,w]``, from the references ``[G,n,C,h,w]`` of G concepts.

    The first seed is the centroid. The others lie on the paths from the references to the centroid, evenly spaced, and
    alternate between the paths. With a single reference the path may have zero length; all seeds are then equal.

    Args:
        seeds: inverted seeds of the references.
        count: number of seeds per concept.
        num_points: number of points per path; increased if there are too few for ``count`` seeds.
        normalize: rescale the references to the typical norm first.

    Raises:
        ValueError: a count below 1, or see :func:`centroid`.
    """
    if count < 1:
        raise ValueError(f"count={count}: must be >= 1; the first seed is the centroid.")
    subspace = _Subspace(seeds, normalize)
    center = subspace.solve_mean()
    points_per_path = -(-(count - 1) // seeds.shape[1])
    last = max(num_points, points_per_path + 2) - 1
    # from the centroid outwards
    fractions = 1 - torch.arange(1, points_per_path + 1, dtype=torch.float64) / (points_per_path + 1)
    weights, _ = subspace.geodesic_to_seeds(center, (fractions * last).round() / last)
    others = weights.transpose(1, 2).flatten(1, 2)[:, : count - 1]
    return subspace.to_ambient(torch.cat([subspace.embed(center)[:, None], others], 1))


def path_seeds(seeds: Tensor, count: PositiveInt, *, normalize: bool = False) -> Tensor:
    """Return ``count`` inner points of the paths from the references ``[G,n,C,h,w]`` to their centroid.

    The result is ``[G,count,C,h,w]``: path after path, each from its reference to the centroid. The points are divided
    among the paths as evenly as possible. With two references the two paths form the path between them, of which the
    authors' demo optimizes 96 points with SeedSelect.

    Args:
        seeds: inverted seeds of the references of G concepts.
        count: number of seeds per concept.
        normalize: rescale the references to the typical norm first.

    Raises:
        ValueError: a count below 1, or see :func:`centroid`.
    """
    if count < 1:
        raise ValueError(f"count={count}: must be >= 1.")
    subspace = _Subspace(seeds, normalize)
    n = seeds.shape[1]
    counts = torch.tensor([count // n + (k < count % n) for k in range(n)])
    index = torch.arange(1, int(counts.max()) + 1)
    fractions = index.double() / (counts[:, None] + 1)
    weights, _ = subspace.geodesic_to_seeds(subspace.solve_mean(), fractions.clamp_max(1))
    return subspace.to_ambient(weights[:, index <= counts[:, None]])


class _Subspace:
    """The span of the n seeds of each of G problems, with vectors represented as weights of the unit seeds.

    Attributes:
        seeds: the seeds with flattened batch dimensions, ``[G,n,C,h,w]``.
        gram: cosines of the seeds, float64 ``[G,n,n]`` on the CPU.
        t: ``log(norm / mode)`` of the seeds, clamped to the tables, ``[G,n]``.
        radial_length, radial_cost: length and cost of the radial segments beyond the tables, ``[G,n]``.
    """

    def __init__(self, seeds: Tensor, normalize: bool) -> None:
        if seeds.shape[-4] == 0:
            raise ValueError("a centroid needs at least one seed.")
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
        """Return the centroid of each problem."""
        if (self.gram.mean((1, 2)) < MIN_MEAN_NORM**2).any():
            raise ValueError("the seeds cancel out, so their centroid is not unique; leave one of them out.")
        return solve_mean(self.metric, self.gram, self.t)

    def embed(self, center: Center) -> Tensor:
        """The centroid as weights of the unit seeds, ``[G,n]``."""
        return center.weights * (typical_norm(self.metric.d) * center.t.exp())[:, None]

    def geodesic_to_seeds(self, center: Center, fractions: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the paths from the seeds to the centroid, at ``fractions [...,K]`` of their lengths.

        Returns:
            The points as weights of the unit seeds ``[G,n,K,n]``, and the lengths of the paths ``[G,n]``.
        """
        unit_seeds = torch.eye(self.t.shape[1], dtype=torch.float64)
        return _sample(center.paths, fractions, start=unit_seeds, end=center.weights[:, None])

    def to_ambient(self, weights: Tensor) -> Tensor:
        """Seeds ``[G,...,C,h,w]`` from the weights of the unit seeds ``[G,...,n]``."""
        scaled = weights / self.norms.view(len(weights), *[1] * (weights.ndim - 2), -1)
        rows = scaled.flatten(1, -2) if weights.ndim > 2 else scaled[:, None]
        seeds = (rows @ self.flat).to(self.seeds.dtype).to(self.seeds.device)
        return seeds.view(*weights.shape[:-1], *self.seeds.shape[2:])

    def unflatten(self, values: Tensor) -> Tensor:
        """Restore the batch dimensions: ``[G,...]`` -> ``[*batch_shape,...]``."""
        return values.reshape((*self.batch_shape, *values.shape[1:]))


def _sample(paths: Geodesics, fractions: Tensor, *, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Sample points at ``fractions [...,K]`` of the length of each path.

    Args:
        paths: geodesics ``[...]``.
        fractions: fractions of the length, in [0, 1].
        start, end: directions of the ends as weights of the unit seeds, ``[...,n]``.

    Returns:
        The points as weights of the unit seeds ``[...,K,n]``, and the lengths of the paths ``[...]``.
    """
    mode = typical_norm(paths.metric.d)
    full_angle = paths.angle[..., None]
    t, angle, length = paths.sample(fractions)
    scale = mode * t.exp() / full_angle.sin()
    start_weight = scale * (full_angle - angle).sin()
    end_weight = scale * angle.sin()
    weights = start_weight[..., None] * start[..., None, :] + end_weight[..., None] * end[..., None, :]
    return weights, mode * length


def _even_fractions(num_points: int) -> Tensor:
    if num_points < 2:
        raise ValueError(f"num_points={num_points}: must be >= 2, both ends included.")
    return torch.linspace(0, 1, num_points, dtype=torch.float64)
