"""Gradient-like baselines of the implicit inversion equation."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from rnri.solvers.implicit import mean_absolute
from rnri.solvers.iterative import Iterate, IterativeSolver, State
from rnri.validation import dataclass


@dataclass(frozen=True)
class ForwardStep(IterativeSolver):
    """ExactDPM's forward step ``z <- z - rho (z_s(z) - z_s)`` (Hong et al. 2024, arXiv 2311.18387).

    ``z_s(z)`` is where the sampler takes ``z``; as ``z_s(z) - z_s = (z - f(z)) / A``, this is a damped fixed
    point, and it needs no derivative. (RNRI's paper calls it gradient descent.) It starts at ``f(z_s)``, which costs
    the first evaluation, as the authors' code does; ``from_f=False`` starts at ``z_s``. The published defaults are 500
    iterations, 20 of them warm-up, and patience 20, and the last iterate returns. There one stop serves the whole
    batch; here a sample stops alone.

    Attributes:
        rate: rho.
        warmup: iterations over which the rate grows linearly to ``rate``.
        patience: a sample's rate is halved when its residual has not improved for so many iterations; None
            leaves it.
        from_f: whether the first step is to ``f(z)`` whole, undamped.
    """

    rate: PositiveFloat = 0.5
    warmup: NonNegativeInt = 0
    patience: PositiveInt | None = 20
    from_f: bool = True
    keep_best: bool = False

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        residual = mean_absolute(at.z - at.f)
        zero = torch.zeros_like(residual)
        if self.from_f and not at.state:
            return at.f, (zero + self.rate, zero + torch.inf, zero, zero)
        rate, best, waited, count = at.state or (zero + self.rate, zero + torch.inf, zero, zero)
        waited = torch.where(residual < best, 0.0, waited + 1)
        if self.patience is not None:
            tired = waited >= self.patience
            rate, waited = torch.where(tired, rate / 2, rate), torch.where(tired, 0.0, waited)
        warm = ((count + 1) / self.warmup).clamp(max=1) if self.warmup else 1.0
        z = at.z - (rate * warm).view(-1, 1, 1, 1) * (at.z - at.f) / at.problem.a
        return z, (rate, torch.minimum(residual, best), waited, count + 1)


@dataclass(frozen=True)
class GradientDescent(IterativeSolver):
    """``z <- z - rho grad 1/2 ||z - f(z)||^2``, the gradient going through the network.

    Costs one backward evaluation for every forward one but the last.
    """

    rate: PositiveFloat = 0.5

    needs_grad: ClassVar[bool] = True

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad((at.z - at.f).square().sum() / 2, at.z)
        return at.z.detach() - self.rate * gradient, ()
