"""Norm-guided paths and centroids of seeds (NAO; Samuel et al. 2023, "Norm-guided latent space exploration").

A path ``x_1 ... x_K`` costs ``-sum_i |x_i - x_{i+1}| log chi_d(|x_i + x_{i+1}| / 2)``: length is cheap where seeds
of that norm are likely. The cost knows only lengths and norms, so turning all seeds together changes nothing, and
its gradient at points in the span of the seeds lies in that span: descent from a start there, such as slerp or the
spherical mean, never leaves it. The optimisation therefore runs over n coordinates a point instead of d, which
gives what it would give in all d dimensions (the tests compare the gradients).

Letters: d elements of a seed, n seeds, K points a path, m coordinates of a point (n, or d for the reference).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nao.baselines import slerp, spherical_mean
from nao.norm import check_norms, log_density, project, relative_log_density

SPACING_WEIGHT = 1.0  # the authors' lambda
MOST_ITERATIONS = 300
MOST_EVALUATIONS = 375


@dataclass(frozen=True)
class Path:
    """``points [K, C, h, w]`` with the given seeds at its ends, its energy and whether the optimisation settled."""

    points: Tensor
    energy: float
    converged: bool

    @property
    def norms(self) -> Tensor:
        """``float64 [K]``."""
        return self.points.double().flatten(1).norm(dim=1)

    @property
    def length(self) -> float:
        return self.points.double().flatten(1).diff(dim=0).norm(dim=1).sum().item()


@dataclass(frozen=True)
class Centroid:
    """``point [C, h, w]``, the paths from each seed to it ``[n, K, C, h, w]``, their energy with the point's own."""

    point: Tensor
    paths: Tensor
    energy: float
    converged: bool


def path_energy(points: Tensor, d: int, spacing: Tensor) -> Tensor:
    """Energy of paths ``float64 [..., K, m]``: ``[...]``, and a penalty on segments longer than ``spacing``."""
    segments = points.diff(dim=-2)
    # a square root of zero has no derivative, and neighbours may coincide at the start
    lengths = (segments.square().sum(-1) + 1e-24).sqrt()
    middles = (points[..., 1:, :] + points[..., :-1, :]) / 2
    cost = -log_density((middles.square().sum(-1) + 1e-24).sqrt(), d)
    return (lengths * cost + SPACING_WEIGHT * (lengths - spacing[..., None]).relu()).sum(-1)


def interpolate(a: Tensor, b: Tensor, points: int = 12, *, typical: bool = False) -> Path:
    """The NAO path from seed ``a`` to seed ``b`` ``[C, h, w]``, starting at slerp.

    Args:
        points: K, ends included.
        typical: first bring both ends to the typical norm. Inverted seeds are often off it; without, they stay put.

    Raises:
        ValueError: a zero seed, opposite seeds, or fewer than 2 points.
    """
    ends = torch.stack([a, b])
    check_norms(ends)
    if typical:
        ends = project(ends)
    coordinates, lift = reduce(ends)
    start = slerp(*coordinates[:, :, None, None], points)[..., 0, 0]
    energy, (path,), converged = _minimise(
        lambda inner: path_energy(torch.cat([start[:1], inner, start[-1:]]), a.numel(), _spacing(start)),
        [start[1:-1]],
    )
    path = lift(torch.cat([start[:1], path, start[-1:]])).to(a.dtype)
    return Path(torch.cat([ends[:1], path[1:-1], ends[1:]]), energy, converged)


def centroid(seeds: Tensor, points: int = 8, *, typical: bool = False) -> Centroid:
    """The NAO centroid of ``seeds [n, C, h, w]``: the point whose own unlikelihood and whose paths' energies sum to
    the least, starting at the spherical mean.

    Args:
        points: K of each path, ends included.
        typical: first bring the seeds to the typical norm.

    Raises:
        ValueError: no seed, a zero seed, or seeds that cancel out.
    """
    if len(seeds) == 0:
        raise ValueError("a centroid needs at least one seed.")
    check_norms(seeds)
    if typical:
        seeds = project(seeds)
    coordinates, lift = reduce(seeds)  # [n, n]
    centre = spherical_mean(coordinates[:, :, None, None])[:, 0, 0]
    start = torch.stack([_slerp(x, centre, points) for x in coordinates])  # [n, K, n]
    ends, inner, d = start[:, :1], start[:, 1:-1], seeds[0].numel()
    spacing = _spacing(start)

    def energy(point: Tensor, inner: Tensor) -> Tensor:
        paths = torch.cat([ends, inner, point.expand(len(ends), 1, -1)], 1)
        return path_energy(paths, d, spacing).sum() - relative_log_density(point.norm(), d)

    best, (point, inner), converged = _minimise(energy, [centre, inner])
    lifted = lift(torch.cat([ends, inner, point.expand(len(ends), 1, -1)], 1).flatten(0, 1))
    paths = lifted.unflatten(0, (len(seeds), points)).to(seeds.dtype)
    paths[:, 0] = seeds
    return Centroid(lift(point[None])[0].to(seeds.dtype), paths, best, converged)


def centroid_seeds(seeds: Tensor, count: int, *, points: int = 8, typical: bool = False) -> Tensor:
    """Seeds to optimise, ``[G, count, C, h, w]``, from the inverted references ``[G, n, C, h, w]`` of G concepts.

    The first is the centroid; the others lie on the paths from the references to it, which take turns, evenly
    spaced between both ends. ``points`` of each path are raised where there are too few for
    the seeds asked for. The path of a single reference may have no length, and its seeds are then the same.

    Raises:
        ValueError: a count below 1, and whatever ``centroid`` refuses.
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for at least one seed, the centroid.")
    points = max(points, _turns(count, seeds.shape[1]) + 2)
    return torch.stack([_around(centroid(group, points, typical=typical), count) for group in seeds])


def _turns(count: int, n: int) -> int:
    """Seeds taken from each of n paths, at most, when the first of ``count`` is the centroid."""
    return -(-(count - 1) // max(n, 1))


def _around(found: Centroid, count: int) -> Tensor:
    n, points = found.paths.shape[:2]
    turns = _turns(count, n)
    picked = [found.point]
    for k in range(count - 1):
        share = 1 - (k // n + 1) / (turns + 1)  # from the centroid outwards
        picked.append(found.paths[k % n, round(share * (points - 1))])
    return torch.stack(picked)


def reduce(seeds: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Coordinates ``float64 [n, n]`` of ``seeds [n, ...]`` in an orthonormal basis of their span, and the way back."""
    basis, triangle = torch.linalg.qr(seeds.double().flatten(1).T)  # [d, n], [n, n]
    return triangle.T.contiguous(), lambda points: (points @ basis.T).unflatten(-1, seeds.shape[1:])


def _slerp(a: Tensor, b: Tensor, points: int) -> Tensor:
    return slerp(a[:, None, None], b[:, None, None], points)[..., 0, 0]


def _spacing(paths: Tensor) -> Tensor:
    """Twice the mean segment of the start: the authors' bound, which keeps points from leaping."""
    return 2 * paths.diff(dim=-2).norm(dim=-1).mean(-1)


def _minimise(energy: Callable[..., Tensor], start: list[Tensor]) -> tuple[float, list[Tensor], bool]:
    """Minimum over several tensors from a start; never above it."""
    variables = [value.clone().requires_grad_() for value in start]
    with torch.enable_grad():
        before = energy(*variables).item()
        if not any(value.numel() for value in variables):  # a path of nothing but its ends
            return before, start, True
        optimiser = torch.optim.LBFGS(
            variables, max_iter=MOST_ITERATIONS, max_eval=MOST_EVALUATIONS, tolerance_grad=1e-7,
            tolerance_change=1e-10, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            optimiser.zero_grad()
            value = energy(*variables)
            value.backward()
            return value

        optimiser.step(closure)
        after = energy(*variables).item()
    if not after <= before:
        return before, start, False
    used = optimiser.state[variables[0]]
    converged = used["n_iter"] < MOST_ITERATIONS and used["func_evals"] < MOST_EVALUATIONS
    return after, [value.detach() for value in variables], converged
