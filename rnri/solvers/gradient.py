"""Gradient-like baselines for the implicit equation."""

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
    """The forward step method of ExactDPM, ``z <- z - rho (z_s(z) - z_s)`` (Hong et al. 2024, arXiv 2311.18387).

    ``z_s(z)`` is the sampler's step from ``z``. As ``z_s(z) - z_s = (z - f(z)) / A``, this is a damped fixed-point
    iteration without derivatives. (RNRI's paper calls it gradient descent.) As in the authors' code it starts at
    ``f(z_s)``, which uses the first evaluation; ``from_f=False`` starts at ``z_s``. The published defaults are 500
    iterations, 20 of them warm-up, patience 20, and the last iterate as the result. The authors stop the batch as a
    whole; here each sample stops on its own.

    Attributes:
        rate: rho.
        warmup: iterations over which the rate grows linearly to ``rate``.
        patience: iterations without a smaller residual after which a sample's rate is halved; None: never.
        from_f: whether the first step is to ``f(z)``, undamped.
    """

    rate: PositiveFloat = 0.5
    warmup: NonNegativeInt = 0
    patience: PositiveInt | None = 20
    from_f: bool = True
    keep_best: bool = False

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        residual = mean_absolute(iterate.z - iterate.f)
        zero = torch.zeros_like(residual)
        initial = (zero + self.rate, zero + torch.inf, zero, zero)
        if self.from_f and not iterate.state:
            return iterate.f, initial
        rate, best, stalled, count = iterate.state or initial
        stalled = torch.where(residual < best, 0.0, stalled + 1)
        if self.patience is not None:
            halve = stalled >= self.patience
            rate = torch.where(halve, rate / 2, rate)
            stalled = torch.where(halve, 0.0, stalled)
        warmup = ((count + 1) / self.warmup).clamp(max=1) if self.warmup else 1.0
        z = iterate.z - (rate * warmup).view(-1, 1, 1, 1) * (iterate.z - iterate.f) / iterate.problem.a
        return z, (rate, torch.minimum(residual, best), stalled, count + 1)


@dataclass(frozen=True)
class GradientDescent(IterativeSolver):
    """``z <- z - rho grad 1/2 ||z - f(z)||^2``, with the gradient through the network.

    It needs one backward pass for every forward evaluation except the last.
    """

    rate: PositiveFloat = 0.5

    needs_grad: ClassVar[bool] = True

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        with torch.enable_grad():
            loss = (iterate.z - iterate.f).square().sum() / 2
            (gradient,) = torch.autograd.grad(loss, iterate.z)
        return iterate.z.detach() - self.rate * gradient, ()
