"""PreciseInv: optimizes the noise of one inversion step by gradient descent through one sampler step."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from rnri.solvers.iterative import Iterate, IterativeSolver, State
from rnri.validation import dataclass

BETAS = (0.9, 0.999)
"""Decay rates of Adam's averages of the gradient and of the squared gradient."""
EPSILON = 1e-8
"""Term of Adam that is added to the denominator of the update."""


@dataclass(frozen=True)
class PreciseInv(IterativeSolver):
    """PreciseInv (Zuo et al., NeurIPS 2025): gradient descent on ``||mu(z) - z_s||^2`` with respect to the noise.

    ``z_s`` is the latent at the cleaner end of the step, and ``A`` and ``B`` are the step's coefficients. The noisier
    latent ``z = A z_s + B eps`` is parameterized by the noise ``eps``. ``mu(z) = (z - B y(z)) / A`` is the sampler's
    step with the network's prediction ``y``. ``eps`` starts at the prediction of DDIM inversion, ``y(z_s)``, which
    takes the first network evaluation. Every later evaluation needs one backward pass through the network, and changes
    ``eps`` by one update of Adam. The result is the latent after the last update. PreciseInv searches for the same root
    as the other solvers, because ``mu(z) = z_s`` is equivalent to the equation ``z = f(z)`` with
    ``f(z) = A z_s + B y(z)``.

    The optimizer Adam and its learning rate are choices of this project. Each sample has its own optimizer state.

    Attributes:
        learning_rate: learning rate of Adam.
    """

    tolerance: NonNegativeFloat = 0.0
    keep_best: bool = False
    learning_rate: PositiveFloat = 0.03

    needs_grad: ClassVar[bool] = True

    @property
    def backward_passes(self) -> int:
        return self.iterations - 1  # the first evaluation computes the initial noise

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        problem = iterate.problem
        if not iterate.state:
            zero = torch.zeros_like(iterate.z)
            return iterate.f.detach(), (zero, zero, zero.new_zeros(len(zero), 1, 1, 1))
        first, second, count = iterate.state
        with torch.enable_grad():
            loss = ((iterate.z - iterate.f) / problem.a).square().sum()
            (slope,) = torch.autograd.grad(loss, iterate.z)
        gradient = problem.b * slope  # gradient with respect to eps
        count = count + 1
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
        mean = first / (1 - BETAS[0] ** count)
        scale = (second / (1 - BETAS[1] ** count)).sqrt() + EPSILON
        return iterate.z.detach() - problem.b * self.learning_rate * mean / scale, (first, second, count)
