"""Regularized Newton-Raphson inversion (RNRI, arXiv 2312.12540) in five named variants.

All but ``GNRI`` and ``RNRISign``, whose prior is another, seek a root of the scalar, by sample,

    F(z) = ||z - f(z)||_1 - lam * sum_j log q_j(z | z_s),   q = N(sqrt(1 - beta) z_s, beta I),   (Eq. 7)

with ``beta = 1 - a_t / a_s`` of the step actually taken. The density is the unnormalized one,
``log q_j = -(z_j - mean_j)^2 / (2 beta) <= 0``: only so does the paper's remark hold that F vanishes if and
only if the residual is zero and every q_j is 1. (The normalized log-density is positive for small beta, and F
then vanishes at wrong points.) Both terms are non-negative and vanish together only where the prior's mean
solves the equation, so in general F has no root: few iterations and the best iterate are part of the method.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from rnri.solvers.iterative import Iterate, IterativeSolver, State
from rnri.validation import dataclass


@dataclass(frozen=True)
class RegularizedNewton(IterativeSolver):
    """What the variants share: F and ``prior_weight``, the weight of its prior (the paper's lambda)."""

    iterations: PositiveInt = 2
    prior_weight: NonNegativeFloat = 0.1

    def objective(self, at: Iterate) -> Tensor:
        """F of Eq. 7 by sample, ``[b]``; differentiable in ``at.z``, and through ``at.f`` if attached."""
        distance = (at.z - at.f).abs().flatten(1).sum(1)
        variance = at.problem.prior_variance
        if variance == 0:  # the step changes nothing, f is constant, and z_s is the solution
            return distance
        return distance + self.prior_weight * (at.z - at.problem.prior_mean).square().flatten(1).sum(1) / (2 * variance)

    def objective_and_gradient(self, at: Iterate) -> tuple[Tensor, Tensor]:
        """F ``[b,1,1,1]`` and ``g = dF/dz [b,C,h,w]`` by autograd through the network: one backward."""
        with torch.enable_grad():
            value = self.objective(at)
            (gradient,) = torch.autograd.grad(value.sum(), at.z)
        return value.detach().view(-1, 1, 1, 1), gradient


@dataclass(frozen=True)
class RNRIPaper(RegularizedNewton):
    """Eq. 8: ``z_i <- z_i - F / (d (g_i + eta))``, every component with its own derivative.

    ``eta`` is added as the paper writes it, to the signed derivative: a component with ``g_i`` near ``-eta``
    takes a huge step, as does any with ``g_i`` near 0. ``keep_best`` (default) guards against that, and
    ``keep_best=False`` is the paper's rule to the letter. With ``keep_best`` the last evaluation needs no
    derivative, so K iterations cost K forward and K - 1 backward evaluations. ``prior_weight=0`` is the naive
    Newton-Raphson of section 4. The paper gives no value for ``eta``.
    """

    eta: NonNegativeFloat = 1e-6

    needs_grad: ClassVar[bool] = True

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        value, gradient = self.objective_and_gradient(at)
        d = gradient[0].numel()
        return at.z.detach() - value / (d * (gradient + self.eta)), ()


@dataclass(frozen=True)
class GNRI(RNRIPaper):
    """Guided Newton-Raphson inversion, the paper's later version (GNRI, ICLR 2025): Eq. 8 with a prior of ``z_0``.

    The prior of F is centered on what the clean latent alone says of ``z_t``, not on ``z_s``::

        F(z) = ||z - f(z)||_1 + lam ||z - alpha_t z_0||^2 / (2 sigma_t^2)

    It holds for noise and velocity alike, and costs what :class:`RNRIPaper` does.
    """

    def objective(self, at: Iterate) -> Tensor:
        """F by sample, ``[b]``; differentiable in ``at.z``, and through ``at.f`` if attached."""
        deviation = (at.z - at.problem.marginal_mean).square().flatten(1).sum(1) / (2 * at.problem.marginal_variance)
        return (at.z - at.f).abs().flatten(1).sum(1) + self.prior_weight * deviation


@dataclass(frozen=True)
class RNRISign(RegularizedNewton):
    """``z <- z - (F / d) sign(z - f(z))``: what the authors' published code computes.

    There the network runs without gradient, so that the derivative of the L1 norm is the residual's sign and the prior
    enters the value of F alone: one scalar step for all components, no backward pass. As in that code,

    - ``d`` is fixed at 64 * 64 * 4, the size of a latent of 512 x 512 pixels. On a smaller latent the step is as much
      too short, on a larger one too long;
    - the prior is centered on the clean latent, ``q(z_t | z_0) = N(sqrt(a_t) z_0, (1 - a_t) I)``, not on Eq. 1's z_s,
      and evaluated at ``f(z)``. (Theirs is written in Euler's variance-exploding coordinates, where its mean is ``z_0``
      and its deviation sigma; this is the same density.) It hardly depends on ``z`` and keeps F above zero;
    - what returns is ``f(z_k)`` of the iterate with the smallest mean of F.

    Unlike there, F is by sample; theirs is summed over the batch. :class:`RNRIMeanSign` is this rule with the latent's
    own ``d`` and the paper's prior.

    Attributes:
        d: the constant; the authors'.
    """

    d: PositiveInt = 64 * 64 * 4

    def objective(self, at: Iterate) -> Tensor:
        """The published F by sample, ``[b]``: the L1 norm, and the clean latent's prior at ``f(z)``."""
        deviation = (at.f - at.problem.marginal_mean).square().flatten(1).sum(1) / (2 * at.problem.marginal_variance)
        return (at.z - at.f).abs().flatten(1).sum(1) + self.prior_weight * deviation

    def merit(self, at: Iterate, residual: Tensor) -> Tensor:
        return self.objective(at) / at.z[0].numel()

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        return at.z - (self.objective(at) / self.d).view(-1, 1, 1, 1) * (at.z - at.f).sign(), ()


@dataclass(frozen=True)
class RNRIMeanSign(RegularizedNewton):
    """``z <- z - mean(F) sign(z - f(z))``: :class:`RNRISign` with the latent's own ``d`` and F of Eq. 7.

    Ours. On latents of 64 * 64 * 4 it differs from the published rule by the prior alone.
    """

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        mean = self.objective(at).view(-1, 1, 1, 1) / at.z[0].numel()
        return at.z - mean * (at.z - at.f).sign(), ()


@dataclass(frozen=True)
class RNRIMinimumNorm(RegularizedNewton):
    """``z <- z - F g / ||g||^2``: of all steps that solve the linearized ``F = 0``, the shortest.

    Eq. 8 is another of them, and not bounded. Costs one backward for every evaluation but the last.
    """

    needs_grad: ClassVar[bool] = True

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        value, gradient = self.objective_and_gradient(at)
        square = gradient.square().flatten(1).sum(1).view(-1, 1, 1, 1)
        return at.z.detach() - value * gradient / square, ()
