"""NAO as published: a path is K points, which plain gradient descent moves in all d dimensions.

Its energy prices each segment at its middle alone, so with few points the cheapest path zigzags: the middles reach
the typical norm and the points themselves do not. With many points it tends to the energy of :mod:`nao.geodesic`,
whose reference it is in tests and benchmark.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nao.baselines import slerp, spherical_mean
from nao.norm import log_density, relative_log_density

SPACING_WEIGHT = 1.0  # the authors' lambda


def path_energy(points: Tensor, d: int, spacing: Tensor) -> Tensor:
    """Energy of paths ``float64 [..., K, m]``: ``[...]``, and a penalty on segments longer than ``spacing``."""
    segments = points.diff(dim=-2)
    # a square root of zero has no derivative, and neighbors may coincide at the start
    lengths = (segments.square().sum(-1) + 1e-24).sqrt()
    middles = (points[..., 1:, :] + points[..., :-1, :]) / 2
    cost = -log_density((middles.square().sum(-1) + 1e-24).sqrt(), d)
    return (lengths * cost + SPACING_WEIGHT * (lengths - spacing[..., None]).relu()).sum(-1)


def bound(paths: Tensor) -> Tensor:
    """Twice the mean segment of ``paths [..., K, m]``: the authors' bound, which keeps points from leaping."""
    return 2 * paths.diff(dim=-2).norm(dim=-1).mean(-1)


def descend_path(a: Tensor, b: Tensor, points: int, iterations: int = 300, history: int = 10) -> tuple[Tensor, float]:
    """The polyline ``float64 [K, C, h, w]`` from seed ``a`` to ``b`` and its energy, from slerp downwards."""
    start = slerp(a.cpu().double(), b.cpu().double(), points).flatten(1)
    spacing = bound(start)
    energy, (inner,) = _descend(
        lambda inner: path_energy(torch.cat([start[:1], inner, start[-1:]]), a.numel(), spacing),
        [start[1:-1]],
        iterations,
        history,
    )
    return torch.cat([start[:1], inner, start[-1:]]).unflatten(1, a.shape), energy


def descend_centroid(seeds: Tensor, points: int, iterations: int = 300, history: int = 10) -> tuple[Tensor, float]:
    """The centroid ``float64 [C, h, w]`` of ``seeds [n, C, h, w]`` and its energy, from the spherical mean down."""
    x, d = seeds.cpu().double(), seeds[0].numel()
    center = spherical_mean(x)
    start = torch.stack([slerp(seed, center, points) for seed in x]).flatten(2)
    ends, spacing = start[:, :1], bound(start)

    def energy(point: Tensor, inner: Tensor) -> Tensor:
        paths = torch.cat([ends, inner, point.expand(len(ends), 1, -1)], 1)
        return path_energy(paths, d, spacing).sum() - relative_log_density(point.norm(), d)

    best, (point, _) = _descend(energy, [center.flatten(), start[:, 1:-1]], iterations, history)
    return point.unflatten(0, seeds.shape[1:]), best


def _descend(
    energy: Callable[..., Tensor], start: list[Tensor], iterations: int, history: int
) -> tuple[float, list[Tensor]]:
    """LBFGS over several tensors, never above the start."""
    variables = [value.clone().requires_grad_() for value in start]
    with torch.enable_grad():
        before = energy(*variables).item()
        optimizer = torch.optim.LBFGS(
            variables, max_iter=iterations, max_eval=2 * iterations, history_size=history, tolerance_grad=1e-7,
            tolerance_change=1e-10, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = energy(*variables)
            value.backward()
            return value

        optimizer.step(closure)
        after = energy(*variables).item()
    return (after, [value.detach() for value in variables]) if after <= before else (before, start)
