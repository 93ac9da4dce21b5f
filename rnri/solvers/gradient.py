"""Gradient descent and ExactDPM's forward step method: baseline solvers of the implicit equation ``z = f(z)``."""

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

    ``z_s`` is the latent at the cleaner end of the step, ``z_s(z)`` is the result of the sampler's step from ``z``, and
    ``rho`` is the step size. The step equation is ``z = f(z)`` with ``f(z) = A z_s + B y(z)``, the network's prediction
    ``y`` and the step's coefficients ``A`` and ``B``. Because ``z_s(z) - z_s`` equals ``(z - f(z)) / A``, the method is
    a damped fixed-point iteration without derivatives. The RNRI paper calls the forward step method gradient descent.
    As in the authors' code, the iteration starts at ``f(z_s)``, which takes the first evaluation. With
    ``from_f=False``, the iteration starts at ``z_s``. The published defaults are 500 iterations, of which 20 are
    warm-up iterations, and a patience of 20. The published code returns the last iterate. The authors' code stops all
    samples of a batch together; this class stops each sample independently.

    Attributes:
        rate: step size, ``rho`` in the formula.
        warmup: number of iterations in which the step size grows linearly to ``rate``.
        patience: number of iterations without a smaller residual after which the step size of a sample is halved. With
            None the step size is never halved.
        from_f: whether the first iteration moves to ``f(z)`` without damping.
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
    """Gradient descent on the squared residual: ``z <- z - rate * grad 1/2 ||z - f(z)||^2``.

    The gradient is computed by backpropagation through the network. Every forward evaluation except the last needs one
    backward pass.

    Attributes:
        rate: step size of the gradient descent.
    """

    rate: PositiveFloat = 0.5

    needs_grad: ClassVar[bool] = True

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        with torch.enable_grad():
            loss = (iterate.z - iterate.f).square().sum() / 2
            (gradient,) = torch.autograd.grad(loss, iterate.z)
        return iterate.z.detach() - self.rate * gradient, ()
