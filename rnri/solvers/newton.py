"""Regularized Newton-Raphson inversion (RNRI, arXiv 2312.12540) in five named variants.

All except ``GNRI`` and ``RNRISign``, which use another prior, seek a root of a scalar function per sample,

    F(z) = ||z - f(z)||_1 - lambda * sum_j log q_j(z | z_s),   q = N(sqrt(1 - beta) z_s, beta I),   (Eq. 7)

with ``beta = 1 - a_t / a_s`` of the schedule's step. The density is the unnormalized one,
``log q_j = -(z_j - mean_j)^2 / (2 beta) <= 0``: only then is the paper's remark true that F vanishes if and only if the
residual is zero and every q_j is 1. (The normalized log-density is positive for small beta, and F would vanish at wrong
points.) Both terms are non-negative and vanish together only if the prior's mean solves the equation, so that in
general F has no root: few iterations and the choice of the best iterate are part of the method.
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
    """Base class of the variants.

    Attributes:
        prior_weight: weight of the prior in F, the paper's lambda.
    """

    iterations: PositiveInt = 2
    prior_weight: NonNegativeFloat = 0.1

    def objective(self, iterate: Iterate) -> Tensor:
        """Return F of Eq. 7, ``[b]``; differentiable in ``iterate.z``, and through ``iterate.f`` if attached."""
        distance = _distance(iterate)
        prior = iterate.problem.prior
        if prior.variance == 0:  # an empty step: f is constant, and z_s is the solution
            return distance
        deviation = (iterate.z - prior.mean).square().flatten(1).sum(1)
        return distance + self.prior_weight * deviation / (2 * prior.variance)

    def objective_and_gradient(self, iterate: Iterate) -> tuple[Tensor, Tensor]:
        """Return F ``[b,1,1,1]`` and ``g = dF/dz [b,C,h,w]`` by autograd through the network: one backward pass."""
        with torch.enable_grad():
            value = self.objective(iterate)
            (gradient,) = torch.autograd.grad(value.sum(), iterate.z)
        return value.detach().view(-1, 1, 1, 1), gradient


def _distance(iterate: Iterate) -> Tensor:
    """Return ``||z - f(z)||_1``, ``[b]``."""
    return (iterate.z - iterate.f).abs().flatten(1).sum(1)


def _marginal_deviation(iterate: Iterate, z: Tensor) -> Tensor:
    """Return ``||z - alpha_t z_0||^2 / (2 sigma_t^2)``, ``[b]``, of a latent ``z [b,C,h,w]``."""
    prior = iterate.problem.prior
    return (z - prior.marginal_mean).square().flatten(1).sum(1) / (2 * prior.marginal_variance)


@dataclass(frozen=True)
class RNRIPaper(RegularizedNewton):
    """Eq. 8: ``z_i <- z_i - F / (d (g_i + eta))``, every component with its own derivative.

    ``eta`` is added to the signed derivative, as the paper writes it: a component with ``g_i`` near ``-eta`` takes a
    huge step, as does one with ``g_i`` near 0. ``keep_best`` (the default) guards against that; ``keep_best=False`` is
    the paper's rule to the letter. With ``keep_best`` the last evaluation needs no derivative, so that K iterations
    use K forward and K - 1 backward evaluations. ``prior_weight=0`` is the naive Newton-Raphson method of section 4.
    The paper gives no value for ``eta``.
    """

    eta: NonNegativeFloat = 1e-6

    needs_grad: ClassVar[bool] = True

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        value, gradient = self.objective_and_gradient(iterate)
        d = gradient[0].numel()
        return iterate.z.detach() - value / (d * (gradient + self.eta)), ()


@dataclass(frozen=True)
class GNRI(RNRIPaper):
    """Guided Newton-Raphson inversion, the later version of the paper (GNRI, ICLR 2025): Eq. 8 with a prior of ``z_0``.

    The prior of F is centered at the mean of ``z_t`` given the clean latent, not given ``z_s``::

        F(z) = ||z - f(z)||_1 + lambda ||z - alpha_t z_0||^2 / (2 sigma_t^2)

    It holds for noise and velocity predictions, and uses as many evaluations as :class:`RNRIPaper`.
    """

    def objective(self, iterate: Iterate) -> Tensor:
        """Return F, ``[b]``; differentiable in ``iterate.z``, and through ``iterate.f`` if attached."""
        return _distance(iterate) + self.prior_weight * _marginal_deviation(iterate, iterate.z)


@dataclass(frozen=True)
class RNRISign(RegularizedNewton):
    """``z <- z - (F / d) sign(z - f(z))``: the rule of the authors' published code.

    That code runs the network without gradients, so that the derivative of the L1 norm is the residual's sign and the
    prior enters only the value of F: all components take the same step, without a backward pass. As in that code,

    - ``d`` is fixed at 64 * 64 * 4, the size of a latent of 512 x 512 pixels. Relative to the latent's own size, the
      step is too short on smaller latents and too long on larger ones.
    - The prior is centered at the clean latent, ``q(z_t | z_0) = N(sqrt(a_t) z_0, (1 - a_t) I)``, not at Eq. 1's z_s,
      and evaluated at ``f(z)``. (The code uses Euler's variance-exploding coordinates, with mean ``z_0`` and standard
      deviation sigma; this is the same density.) It hardly depends on ``z`` and keeps F above zero.
    - The result is ``f(z_k)`` of the iterate with the smallest mean of F.

    Unlike in the code, F is per sample, not summed over the batch. :class:`RNRIMeanSign` is this rule with the latent's
    own ``d`` and the paper's prior.

    Attributes:
        d: the divisor; the default is the authors'.
    """

    d: PositiveInt = 64 * 64 * 4

    def objective(self, iterate: Iterate) -> Tensor:
        """Return the published F, ``[b]``: the L1 norm, and the prior of the clean latent at ``f(z)``."""
        return _distance(iterate) + self.prior_weight * _marginal_deviation(iterate, iterate.f)

    def merit(self, iterate: Iterate, residual: Tensor) -> Tensor:
        return self.objective(iterate) / iterate.z[0].numel()

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        size = (self.objective(iterate) / self.d).view(-1, 1, 1, 1)
        return iterate.z - size * (iterate.z - iterate.f).sign(), ()


@dataclass(frozen=True)
class RNRIMeanSign(RegularizedNewton):
    """``z <- z - mean(F) sign(z - f(z))``: :class:`RNRISign` with the latent's own ``d`` and F of Eq. 7.

    This project's variant. On latents of 64 * 64 * 4 elements it differs from the published rule in the prior only.
    """

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        size = self.objective(iterate).view(-1, 1, 1, 1) / iterate.z[0].numel()
        return iterate.z - size * (iterate.z - iterate.f).sign(), ()


@dataclass(frozen=True)
class RNRIMinimumNorm(RegularizedNewton):
    """``z <- z - F g / ||g||^2``: the shortest of all steps that solve the linearized equation ``F = 0``.

    The step of Eq. 8 is another of them, and unbounded. It needs one backward pass for every evaluation but the last.
    """

    needs_grad: ClassVar[bool] = True

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        value, gradient = self.objective_and_gradient(iterate)
        squared_norm = gradient.square().flatten(1).sum(1).view(-1, 1, 1, 1)
        return iterate.z.detach() - value * gradient / squared_norm, ()
