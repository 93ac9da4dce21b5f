"""NAO as published: a path is a polyline of K points, and its energy is minimized over the coordinates of the points.

The energy of a polyline is a sum over its segments: the length of a segment times the negative log-density of the seed
norm at the midpoint of the segment. If K is small, the polyline of minimum energy is therefore a zigzag line: the
midpoints of the segments have the typical norm, but the points do not. As K increases, the energy of the polyline
converges to the energy of the continuous path in :mod:`nao.geodesic`. The tests and the benchmark use this module as
the reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nao.baselines import slerp, spherical_mean
from nao.norm import log_density, relative_log_density

SPACING_WEIGHT = 1.0  # weight of the penalty on long segments, called lambda in the paper


def path_energy(points: Tensor, d: int, spacing: Tensor) -> Tensor:
    """Return the NAO energy ``[...]`` of polylines, plus a penalty on segments that are longer than ``spacing``.

    The energy is a sum over the segments: the length of a segment times the negative log-density of the seed norm at
    the midpoint of the segment.

    Args:
        points: points of the polylines, float64 ``[...,K,m]``. The number m of coordinates is ``d``, or less if the
            points are given in a subspace.
        d: number of components of a seed.
        spacing: maximum length of a segment without a penalty, ``[...]``.
    """
    segments = points.diff(dim=-2)
    # 1e-24 keeps the derivative of the square root finite if two neighboring points coincide
    lengths = (segments.square().sum(-1) + 1e-24).sqrt()
    midpoints = (points[..., 1:, :] + points[..., :-1, :]) / 2
    cost = -log_density((midpoints.square().sum(-1) + 1e-24).sqrt(), d)
    return (lengths * cost + SPACING_WEIGHT * (lengths - spacing[..., None]).relu()).sum(-1)


def spacing_bound(paths: Tensor) -> Tensor:
    """Return the maximum segment length without a penalty, ``[...]``, for polylines ``[...,K,m]``.

    The maximum length without a penalty is twice the mean segment length, as in the paper.
    """
    return 2 * paths.diff(dim=-2).norm(dim=-1).mean(-1)


def descend_path(
    a: Tensor, b: Tensor, num_points: int, iterations: int = 300, *, history: int = 10
) -> tuple[Tensor, float]:
    """Optimize the polyline from seed ``a`` to seed ``b``, starting from spherical linear interpolation.

    Args:
        a, b: the two seeds ``[C,h,w]`` at the ends of the polyline.
        num_points: number of points K, including both ends.
        iterations: maximum number of L-BFGS iterations.
        history: history size of L-BFGS.

    Returns:
        The points of the polyline, float64 ``[K,C,h,w]``, and the energy of the polyline.
    """
    initial = slerp(a.cpu().double(), b.cpu().double(), num_points).flatten(1)
    spacing = spacing_bound(initial)

    def energy(inner: Tensor) -> Tensor:
        return path_energy(torch.cat([initial[:1], inner, initial[-1:]]), a.numel(), spacing)

    minimum, (inner,) = _minimize(energy, [initial[1:-1]], iterations, history)
    return torch.cat([initial[:1], inner, initial[-1:]]).unflatten(1, a.shape), minimum


def descend_centroid(
    seeds: Tensor, num_points: int, iterations: int = 300, *, history: int = 10
) -> tuple[Tensor, float]:
    """Optimize the centroid of seeds together with the polylines from the seeds to the centroid.

    The optimization starts at the spherical mean of the seeds.

    Args:
        seeds: the seeds ``[n,C,h,w]``.
        num_points: number of points K of each polyline, including both ends.
        iterations: maximum number of L-BFGS iterations.
        history: history size of L-BFGS.

    Returns:
        The centroid, float64 ``[C,h,w]``, and the energy: the sum of the energies of the polylines plus the cost of the
        centroid's norm.
    """
    x = seeds.cpu().double()
    d = seeds[0].numel()
    center = spherical_mean(x)
    initial = torch.stack([slerp(seed, center, num_points) for seed in x]).flatten(2)
    ends = initial[:, :1]
    spacing = spacing_bound(initial)

    def energy(point: Tensor, inner: Tensor) -> Tensor:
        paths = torch.cat([ends, inner, point.expand(len(ends), 1, -1)], 1)
        return path_energy(paths, d, spacing).sum() - relative_log_density(point.norm(), d)

    minimum, (point, _) = _minimize(energy, [center.flatten(), initial[:, 1:-1]], iterations, history)
    return point.unflatten(0, seeds.shape[1:]), minimum


def _minimize(
    energy: Callable[..., Tensor], initial: list[Tensor], iterations: int, history: int
) -> tuple[float, list[Tensor]]:
    """Minimize ``energy`` over several tensors by L-BFGS; return the minimum energy and the optimized tensors.

    If the optimization increases the energy, the initial energy and tensors are returned.
    """
    variables = [value.clone().requires_grad_() for value in initial]
    with torch.enable_grad():
        before = energy(*variables).item()
        optimizer = torch.optim.LBFGS(
            variables,
            max_iter=iterations,
            max_eval=2 * iterations,
            history_size=history,
            tolerance_grad=1e-7,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = energy(*variables)
            value.backward()
            return value

        optimizer.step(closure)
        after = energy(*variables).item()
    return (after, [value.detach() for value in variables]) if after <= before else (before, initial)
