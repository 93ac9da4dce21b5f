"""Seeds, rotations and finely sampled curves for the tests of NAO."""

import math

import torch

from nao import interpolate, log_density, slerp, typical_norm
from nao.geodesic import solve_geodesics
from nao.polyline import path_energy
from nao.radial_metric import radial_metric

SHAPE = (4, 4, 4)
D = 64


def seeds(n: int, key: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def rotate(x: torch.Tensor, key: int = 5) -> torch.Tensor:
    """Apply a random rotation of all components to one seed or several."""
    d = x[0].numel() if x.ndim == 4 else x.numel()
    matrix = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(key))
    return (x.flatten(-3) @ torch.linalg.qr(matrix)[0]).unflatten(-1, x.shape[-3:])


def curve_energy(points: torch.Tensor) -> float:
    """Energy of a finely sampled curve ``[K,C,h,w]``, by the midpoint rule of the published energy."""
    return path_energy(points.double().flatten(1), points[0].numel(), torch.tensor(torch.inf)).item()


def slerp_energy(a: torch.Tensor, b: torch.Tensor) -> float:
    return curve_energy(slerp(a, b, 2001))


def centroid_energy(x: torch.Tensor, point: torch.Tensor) -> float:
    """Objective of ``point`` as the centroid of ``x``: energies of the paths, plus the cost of its own norm."""
    d = point.numel()
    norm_cost = log_density(torch.tensor(typical_norm(d)), d) - log_density(point.norm(), d)
    return interpolate(x, point.expand_as(x)).energy.sum().item() + norm_cost.item()


def plane_curve(d: int, norms: tuple[float, float], angle: float, num_points: int) -> torch.Tensor:
    """The cheapest path in the plane of its ends ``[K,2]``, starting on the first axis; ``norms`` in typical norms."""
    metric = radial_metric(d)
    a, b = metric.alpha(torch.tensor(norms, dtype=torch.float64).log())
    path = solve_geodesics(metric, a, b, torch.tensor(angle, dtype=torch.float64))
    t, path_angle, _ = path.sample(torch.linspace(0, 1, num_points, dtype=torch.float64))
    return typical_norm(d) * t.exp()[:, None] * torch.stack([path_angle.cos(), path_angle.sin()], 1)


def angle_between(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.acos(torch.cosine_similarity(a.flatten(), b.flatten(), 0).item())
