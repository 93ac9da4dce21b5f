"""Norm-guided paths and centroids of seeds (NAO; Samuel et al. 2023, "Norm-guided latent space exploration").

A path costs the integral of ``-log chi_d(norm)`` over its length: length is cheap where seeds of that norm are
likely. The cheapest path lies in the plane of its ends and the cheapest centroid in the span of its seeds, so both
follow from the seeds' norms and cosines: :mod:`nao.geodesic` and :mod:`nao.frechet_mean` solve for them exactly, many
problems at once, in float64 on the CPU. Points are evenly spaced by length, which keeps the published bound on the
spacing wherever the path is short enough for it. The published polyline is in :mod:`nao.polyline`.

Norms below 0.35 or above 10 typical ones lie beyond the tables. Such a seed is joined to that norm by a straight radial
piece, whose cost and length count, and on which no points lie but the seed itself.

Letters: d components of a seed, n seeds, K points a path, G problems. Any leading dimensions are batched, and no
problem's result depends on the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from torch import Tensor

from nao.frechet_mean import Center, angles, settle
from nao.geodesic import Geodesics, join
from nao.norm import check_norms, project, seed_norm, typical_norm
from nao.shell import LEAST_NORM, MOST_NORM, radial_cost, shell_of
from rnri.validation import IntAtLeast2

OPPOSITE = 1e-6  # radians short of a half turn
CANCELLING = 1e-7  # norm of the mean of the unit seeds


@dataclass(frozen=True)
class Path:
    """``points [..., K, C, h, w]`` on the cheapest curve, with the given seeds at its ends.

    ``energy`` and ``length`` ``float64 [...]`` are the curve's, however few its points.
    """

    points: Tensor
    energy: Tensor
    length: Tensor
    converged: Tensor

    @property
    def norms(self) -> Tensor:
        """``float64 [..., K]``."""
        return seed_norm(self.points)


@dataclass(frozen=True)
class Centroid:
    """``point [..., C, h, w]``, the paths from each seed to it ``[..., n, K, C, h, w]``, their energies ``[...]`` with
    the point's own, and their lengths ``[..., n]``."""

    point: Tensor
    paths: Tensor
    energy: Tensor
    lengths: Tensor
    converged: Tensor


def interpolate(a: Tensor, b: Tensor, points: IntAtLeast2 = 12, *, typical: bool = False) -> Path:
    """The NAO path from seeds ``a`` to seeds ``b`` ``[..., C, h, w]``.

    Args:
        points: K, ends included.
        typical: first bring both ends to the typical norm. Inverted seeds are often off it; without, they stay put.

    Raises:
        ValueError: a zero seed, opposite seeds, or fewer than 2 points.
    """
    few = _Few(torch.stack([a, b], -4), typical)
    ends = torch.eye(2, dtype=torch.float64).expand(len(few.t), 2, 2)
    angle = angles(few.gram, ends[:, 1])[:, 0]
    if (angle > math.pi - OPPOSITE).any():
        raise ValueError("two seeds are opposite, so that no path between them is cheapest: change one of them.")
    alpha = few.shell.alpha(few.t)
    paths = join(few.shell, alpha[:, 0], alpha[:, 1], angle)
    weights, length = _along(paths, _evenly(points), ends[:, 0], ends[:, 1])
    found = few.lift(weights)
    found[:, 0], found[:, -1] = few.seeds[:, 0], few.seeds[:, 1]
    whole = (found, paths.energy + few.radial_cost.sum(1), length + few.radial_length.sum(1), paths.converged)
    return Path(*(x.reshape((*few.lead, *x.shape[1:])) for x in whole))


def centroid(seeds: Tensor, points: IntAtLeast2 = 8, *, typical: bool = False) -> Centroid:
    """The NAO centroid of ``seeds [..., n, C, h, w]``: the point whose own unlikelihood and whose paths' energies sum
    to the least. Between two seeds, where all of their path does, it is halfway.

    Args:
        points: K of each path, ends included.
        typical: first bring the seeds to the typical norm.

    Raises:
        ValueError: no seed, a zero seed, or seeds that cancel out.
    """
    few = _Few(seeds, typical)
    center = few.settle()
    weights, lengths = few.towards(center, _evenly(points))
    point, paths = few.lift(few.at(center)), few.lift(weights)
    paths[:, :, 0], paths[:, :, -1] = few.seeds, point[:, None]
    energy = center.energy + few.radial_cost.sum(1)
    whole = (point, paths, energy, lengths + few.radial_length, center.converged)
    return Centroid(*(x.reshape((*few.lead, *x.shape[1:])) for x in whole))


def centroid_seeds(seeds: Tensor, count: PositiveInt, *, points: IntAtLeast2 = 8, typical: bool = False) -> Tensor:
    """Seeds to optimize, ``[G, count, C, h, w]``, from the inverted references ``[G, n, C, h, w]`` of G concepts.

    The first is the centroid; the others lie on the paths from the references to it, which take turns, evenly
    spaced between both ends. ``points`` of each path are raised where there are too few for
    the seeds asked for. The path of a single reference may have no length, and its seeds are then the same.

    Raises:
        ValueError: a count below 1, and whatever ``centroid`` refuses.
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for at least one seed, the centroid.")
    few = _Few(seeds, typical)
    center = few.settle()
    turns = -(-(count - 1) // seeds.shape[1])
    last = max(points, turns + 2) - 1
    shares = 1 - torch.arange(1, turns + 1, dtype=torch.float64) / (turns + 1)  # from the centroid outwards
    weights, _ = few.towards(center, (shares * last).round() / last)
    others = weights.transpose(1, 2).flatten(1, 2)[:, : count - 1]
    return few.lift(torch.cat([few.at(center)[:, None], others], 1))


def path_seeds(seeds: Tensor, count: PositiveInt, *, typical: bool = False) -> Tensor:
    """``count`` inner points ``[G, count, C, h, w]`` of the paths from the references ``[G, n, C, h, w]`` to their
    centroid, path after path, each from its reference inwards.

    The paths share the points as evenly as they can. With two references they make up the one path between them,
    all of whose points (96) the published demonstration gives to SeedSelect.

    Raises:
        ValueError: a count below 1, and whatever ``centroid`` refuses.
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for at least one inner point.")
    few = _Few(seeds, typical)
    n = seeds.shape[1]
    own = torch.tensor([count // n + (k < count % n) for k in range(n)])
    place = torch.arange(1, int(own.max()) + 1)
    shares = place.double() / (own[:, None] + 1)
    weights, _ = few.towards(few.settle(), shares.clamp_max(1))
    return few.lift(weights[:, place <= own[:, None]])


class _Few:
    """G problems of n seeds: their cosines ``gram [G, n, n]`` and ``t [G, n]`` on the CPU, and the way back.

    ``t`` is kept within the tables; ``radial_length`` and ``radial_cost [G, n]`` are what lies beyond.
    """

    def __init__(self, seeds: Tensor, typical: bool) -> None:
        if seeds.shape[-4] == 0:
            raise ValueError("a centroid needs at least one seed.")
        check_norms(seeds)
        if typical:
            seeds = project(seeds)
        self.lead, self.seeds = seeds.shape[:-4], seeds.reshape(-1, *seeds.shape[-4:])
        self.flat = self.seeds.cpu().double().flatten(2)
        products = self.flat @ self.flat.mT
        self.norms = products.diagonal(dim1=1, dim2=2).sqrt()
        self.gram = products / (self.norms[:, :, None] * self.norms[:, None])
        self.shell = shell_of(self.flat.shape[2])
        ratio = self.norms / typical_norm(self.shell.d)
        within = ratio.clamp(LEAST_NORM, MOST_NORM)
        self.t = within.log()
        self.radial_length = typical_norm(self.shell.d) * (ratio - within).abs()
        self.radial_cost = (radial_cost(ratio, self.shell.d) - radial_cost(within, self.shell.d)).abs()

    def settle(self) -> Center:
        """The center of each problem."""
        if (self.gram.mean((1, 2)) < CANCELLING**2).any():
            raise ValueError("the seeds cancel out, so that no centroid is nearest: leave one of them out.")
        return settle(self.shell, self.gram, self.t)

    def at(self, center: Center) -> Tensor:
        """The center as weights of the unit seeds ``[G, n]``."""
        return center.weights * (typical_norm(self.shell.d) * center.t.exp())[:, None]

    def towards(self, center: Center, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Points at ``shares [..., K]`` of each path to the center as weights ``[G, n, K, n]``, and its length."""
        own = torch.eye(self.t.shape[1], dtype=torch.float64)
        return _along(center.paths, shares, own, center.weights[:, None])

    def lift(self, weights: Tensor) -> Tensor:
        """The seeds ``[G, ..., C, h, w]`` that ``weights [G, ..., n]`` of the unit seeds make."""
        scaled = weights / self.norms.view(len(weights), *[1] * (weights.ndim - 2), -1)
        rows = scaled.flatten(1, -2) if weights.ndim > 2 else scaled[:, None]
        made = (rows @ self.flat).to(self.seeds.dtype).to(self.seeds.device)
        return made.view(*weights.shape[:-1], *self.seeds.shape[2:])


def _along(paths: Geodesics, shares: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Points at ``shares [..., K]`` as weights ``[..., K, n]`` of the unit seeds, given those of both ends' directions
    ``[..., n]``, and the paths' lengths ``[...]``."""
    mode, whole = typical_norm(paths.shell.d), paths.angle[..., None]
    t, angle, length = paths.sample(shares)
    scale = mode * t.exp() / whole.sin()
    near, far = scale * (whole - angle).sin(), scale * angle.sin()
    return near[..., None] * start[..., None, :] + far[..., None] * end[..., None, :], mode * length


def _evenly(points: int) -> Tensor:
    if points < 2:
        raise ValueError(f"points={points}: a path has at least its two ends.")
    return torch.linspace(0, 1, points, dtype=torch.float64)
