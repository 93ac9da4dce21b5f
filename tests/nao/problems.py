"""Seeds, rotations and dense curves that NAO's tests share."""

import math

import torch

from nao import interpolate, log_density, slerp, typical_norm
from nao.geodesic import join
from nao.polyline import path_energy
from nao.shell import shell_of

SHAPE = (4, 4, 4)
D = 64


def seeds(n: int, key: int = 0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def turned(x: torch.Tensor, key: int = 5) -> torch.Tensor:
    d = x[0].numel() if x.ndim == 4 else x.numel()
    matrix = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(key))
    return (x.flatten(-3) @ torch.linalg.qr(matrix)[0]).unflatten(-1, x.shape[-3:])


def integral(points: torch.Tensor) -> float:
    """What a curve ``[K, C, h, w]`` of many points costs, by the midpoint rule of the published energy."""
    return path_energy(points.double().flatten(1), points[0].numel(), torch.tensor(torch.inf)).item()


def slerp_energy(a: torch.Tensor, b: torch.Tensor) -> float:
    return integral(slerp(a, b, 2001))


def price(x: torch.Tensor, point: torch.Tensor) -> float:
    """What ``point`` costs as the centroid of ``x``: its paths, and how much less likely its norm is than the mode."""
    d = point.numel()
    unlikely = log_density(torch.tensor(typical_norm(d)), d) - log_density(point.norm(), d)
    return interpolate(x, point.expand_as(x)).energy.sum().item() + unlikely.item()


def plane_curve(d: int, norms: tuple[float, float], angle: float, points: int) -> torch.Tensor:
    """The cheapest path in the plane of its ends ``[K, 2]``, from the first axis; norms relative to the typical one."""
    shell = shell_of(d)
    a, b = shell.alpha(torch.tensor(norms, dtype=torch.float64).log())
    path = join(shell, a, b, torch.tensor(angle, dtype=torch.float64))
    t, turn, _ = path.sample(torch.linspace(0, 1, points, dtype=torch.float64))
    return typical_norm(d) * t.exp()[:, None] * torch.stack([turn.cos(), turn.sin()], 1)


def angle_between(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.acos(torch.cosine_similarity(a.flatten(), b.flatten(), 0).item())
