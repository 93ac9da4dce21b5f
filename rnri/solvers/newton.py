"""Regularized Newton-Raphson inversion (RNRI, arXiv 2312.12540) in five variants.

Each inversion step solves an equation ``z = f(z)`` for the noisier latent ``z``, where ``z_s`` is the cleaner latent.
For each sample, every variant searches for a root of a scalar function F of the latent. ``RNRIPaper``, ``RNRIMeanSign``
and ``RNRIMinimumNorm`` use the paper's function F,

    F(z) = ||z - f(z)||_1 - lambda * sum_j log q_j(z | z_s),   q = N(sqrt(1 - beta) z_s, beta I),   (Eq. 7)

where ``lambda`` is the weight of the prior ``q``, and ``beta = 1 - a_t / a_s``. ``a_t`` and ``a_s`` are the values of
alpha_bar (diffusers' ``alphas_cumprod``) at the noisier and at the cleaner end of a sampler step. ``GNRI`` and
``RNRISign`` use a prior that differs from the prior in Eq. 7.

The density ``q_j`` is not normalized: ``log q_j = -(z_j - mean_j)^2 / (2 beta) <= 0``. Without normalization, F is zero
if and only if the residual is zero and every ``q_j`` is 1, as the paper states. With normalization, the log-density
would be positive for small ``beta``, and F would be zero at points that do not solve ``z = f(z)``.

The residual term and the prior term of F are non-negative. Both terms are zero only if the mean of the prior solves the
equation ``z = f(z)``, so that F has no root in general. Because F has no root in general, the small number of
iterations and the selection of the iterate with the smallest residual (``RNRISign``: the smallest F) are part of the
method.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from rnri.solvers.iterative import Iterate, IterativeSolver, State
from rnri.validation import dataclass


@dataclass(frozen=True)
class RegularizedNewton(IterativeSolver):
    """Base class of the RNRI solvers, which search for a root of a scalar function F (RNRI, arXiv 2312.12540, Eq. 7).

    F is the L1 norm of ``z - f(z)`` minus ``lambda`` times the logarithm of the prior, where ``z = f(z)`` is the
    equation of the inversion step.

    Attributes:
        prior_weight: ``lambda``, the weight of the prior in F.
    """

    iterations: PositiveInt = 2
    prior_weight: NonNegativeFloat = 0.1

    def objective(self, iterate: Iterate) -> Tensor:
        """Return F of Eq. 7 in the RNRI paper, ``[b]``: the L1 norm of ``z - f(z)`` plus the weighted prior term.

        F is differentiable in ``iterate.z``. The gradient of F includes the network's derivative only if ``iterate.f``
        is part of an autograd graph with ``iterate.z``.
        """
        distance = _distance(iterate)
        prior = iterate.problem.prior
        if prior.variance == 0:  # both ends of the step have the same noise level, so that z_s solves z = f(z)
            return distance
        deviation = (iterate.z - prior.mean).square().flatten(1).sum(1)
        return distance + self.prior_weight * deviation / (2 * prior.variance)

    def objective_and_gradient(self, iterate: Iterate) -> tuple[Tensor, Tensor]:
        """Return the value F ``[b,1,1,1]`` of :meth:`objective` and its gradient ``g = dF/dz [b,C,h,w]``.

        Autograd computes the gradient with one backward pass through the network.
        """
        with torch.enable_grad():
            value = self.objective(iterate)
            (gradient,) = torch.autograd.grad(value.sum(), iterate.z)
        return value.detach().view(-1, 1, 1, 1), gradient


def _distance(iterate: Iterate) -> Tensor:
    """Return the L1 norm ``||z - f(z)||_1`` of each sample for the evaluated iterate ``z``, ``[b]``."""
    return (iterate.z - iterate.f).abs().flatten(1).sum(1)


def _marginal_deviation(iterate: Iterate, z: Tensor) -> Tensor:
    """Return ``||z - alpha_t z_0||^2 / (2 sigma_t^2)``, ``[b]``, for the latents ``z [b,C,h,w]``.

    The result is the negative log-density of the prior ``q(z_t | z_0)`` without its normalization. ``z_0`` is the clean
    latent; ``alpha_t`` and ``sigma_t`` are the signal level and the noise level of ``z_t``.
    """
    prior = iterate.problem.prior
    return (z - prior.marginal_mean).square().flatten(1).sum(1) / (2 * prior.marginal_variance)


@dataclass(frozen=True)
class RNRIPaper(RegularizedNewton):
    """RNRI as printed in the paper (Eq. 8): ``z_i <- z_i - F / (d (g_i + eta))`` with ``g_i = dF/dz_i``.

    ``F = ||z - f(z)||_1 - lambda log q(z | z_s)`` (Eq. 7), where ``z = f(z)`` is the equation of the inversion step,
    ``q`` is the prior, and ``z_s`` is the cleaner latent. ``d`` is the number of elements of a latent. As in the paper,
    ``eta`` is added to the signed derivative. A component with ``g_i`` near ``-eta`` therefore changes by a very large
    amount. With ``keep_best=True``, the default, the solver returns ``f(z_k)`` of the iterate ``z_k`` with the smallest
    residual, which limits the effect of very large updates. ``keep_best=False`` returns the last iterate, exactly as in
    the paper. With ``keep_best=True`` the last evaluation needs no derivative, so that ``iterations`` forward
    evaluations need ``iterations - 1`` backward passes. With ``prior_weight=0``, the solver is the naive Newton-Raphson
    method of section 4 of the paper.

    Attributes:
        eta: term added to the derivative in the denominator; the paper does not specify its value.
    """

    eta: NonNegativeFloat = 1e-6

    needs_grad: ClassVar[bool] = True

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        value, gradient = self.objective_and_gradient(iterate)
        d = gradient[0].numel()
        return iterate.z.detach() - value / (d * (gradient + self.eta)), ()


@dataclass(frozen=True)
class GNRI(RNRIPaper):
    """Guided Newton-Raphson inversion (GNRI, ICLR 2025), the later version of the RNRI paper.

    GNRI uses the update of Eq. 8 in the RNRI paper. The prior in F is ``q(z_t | z_0)``, conditioned on the clean latent
    ``z_0``, instead of ``q(z_t | z_s)``. With the signal level ``alpha_t``, the noise level ``sigma_t`` and the weight
    ``lambda`` of the prior, F is::

        F(z) = ||z - f(z)||_1 + lambda ||z - alpha_t z_0||^2 / (2 sigma_t^2)

    GNRI's F is defined for noise predictions and for velocity predictions. GNRI uses as many evaluations as
    :class:`RNRIPaper`. An inversion with GNRI must start at the clean latent, unless ``prior_weight`` is 0.
    """

    @property
    def uses_clean_latent(self) -> bool:
        """Whether the solver needs the clean latent ``z_0``, which is the case if ``prior_weight`` is above 0."""
        return self.prior_weight > 0

    def objective(self, iterate: Iterate) -> Tensor:
        """Return GNRI's F, ``[b]``: the L1 norm of ``z - f(z)`` plus the weighted prior term.

        F is differentiable in ``iterate.z``.
        """
        return _distance(iterate) + self.prior_weight * _marginal_deviation(iterate, iterate.z)


@dataclass(frozen=True)
class RNRISign(RegularizedNewton):
    """RNRI as computed by the authors' published code: ``z <- z - (F / d) sign(z - f(z))``.

    F is the L1 norm ``||z - f(z)||_1`` plus ``lambda`` times a prior term, where ``z = f(z)`` is the equation of the
    inversion step and ``lambda`` is ``prior_weight``. The published code evaluates the network without gradients.
    Without the network's gradients, the derivative of the L1 norm is the sign of the residual, and the prior only
    changes the value of F. Therefore all components change by the same absolute amount, and no backward pass is needed.
    Three choices follow the published code:

    - ``d`` is fixed at 64 * 64 * 4, the number of elements of the latent of an image of 512 x 512 pixels. The update is
      therefore too small for latents with fewer elements and too large for latents with more elements.
    - The prior is ``q(z_t | z_0) = N(sqrt(a_t) z_0, (1 - a_t) I)``, given the clean latent ``z_0``, instead of
      ``q(z_t | z_s)`` of Eq. 1; ``a_t`` is the value of alpha_bar (diffusers' ``alphas_cumprod``). The prior is
      evaluated at ``f(z)``, where it hardly depends on ``z`` and keeps F above zero. An inversion with ``q(z_t | z_0)``
      must start at the clean latent, unless ``prior_weight`` is 0.
    - The solver returns ``f(z_k)`` for the iterate ``z_k`` with the smallest mean of F over the elements.

    The published code for SDXL turbo uses latents ``x = z / alpha_t``, scaled as in diffusers'
    ``EulerDiscreteScheduler``; with ``coordinates="euler"`` this solver computes the same update. For latents ``x``,
    the prior has the same value as for latents ``z``, but the L1 norm is ``1 / alpha_t`` times as large. A step of
    ``x`` is a step of ``z`` that is ``alpha_t`` times as large. For latents ``z``, the update of
    ``coordinates="euler"`` is therefore ``z - (G / d) sign(z - f(z))`` with
    ``G = ||z - f(z)||_1 + alpha_t lambda P``, where ``lambda P`` is the prior term of F. The published code for SDXL
    turbo starts at the cleaner latent, ``x_t = x_s``; for latents ``z``, this initial guess is
    ``initial_guess="scaled"`` of ``ImplicitInverter``. The mean squared error of the reconstructed latents is 1.3e-1
    with ``coordinates="euler"`` and 2.8e-2 with ``coordinates="ddim"``, measured with 16 images, 10 steps and the small
    model ``emoji`` that ships with the repository.

    Unlike in the published code, F is computed for each sample instead of summed over the batch. :class:`RNRIMeanSign`
    is a variant with the paper's prior, in which ``d`` is the number of elements of the latent.

    Attributes:
        d: divisor of F in the update; the default is the value of the published code.
        coordinates: scaling of the latents in F and in the update: ``ddim`` uses latents ``z``, and ``euler`` uses
            latents ``z / alpha_t``, scaled as in diffusers' ``EulerDiscreteScheduler``.
    """

    d: PositiveInt = 64 * 64 * 4
    coordinates: Literal["ddim", "euler"] = "ddim"

    @property
    def uses_clean_latent(self) -> bool:
        """Whether the solver needs the clean latent ``z_0``, which is the case if ``prior_weight`` is above 0."""
        return self.prior_weight > 0

    def objective(self, iterate: Iterate) -> Tensor:
        """Return F of the published code, ``[b]``: the L1 norm of ``z - f(z)`` plus the weighted prior at ``f(z)``.

        With ``coordinates="euler"``, the prior term is also multiplied by the signal level ``alpha_t``.
        """
        scale = iterate.problem.prior.alpha if self.coordinates == "euler" else 1.0
        return _distance(iterate) + scale * self.prior_weight * _marginal_deviation(iterate, iterate.f)

    def merit(self, iterate: Iterate, residual: Tensor) -> Tensor:
        return self.objective(iterate) / iterate.z[0].numel()

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        size = (self.objective(iterate) / self.d).view(-1, 1, 1, 1)
        return iterate.z - size * (iterate.z - iterate.f).sign(), ()


@dataclass(frozen=True)
class RNRIMeanSign(RegularizedNewton):
    """Variant of :class:`RNRISign`: ``z <- z - (F / d) sign(z - f(z))`` with the paper's prior in F.

    ``F = ||z - f(z)||_1 - lambda log q(z | z_s)`` is the function of Eq. 7 in the RNRI paper, where ``z = f(z)`` is the
    equation of the inversion step and ``z_s`` is the cleaner latent. ``d`` is the number of elements of a latent.
    ``RNRIMeanSign`` is not part of the RNRI paper. For latents of 64 * 64 * 4 elements, ``RNRIMeanSign`` differs from
    the authors' published code only in the prior.
    """

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        size = self.objective(iterate).view(-1, 1, 1, 1) / iterate.z[0].numel()
        return iterate.z - size * (iterate.z - iterate.f).sign(), ()


@dataclass(frozen=True)
class RNRIMinimumNorm(RegularizedNewton):
    """Variant of RNRI with the update ``z <- z - F g / ||g||^2``, where ``g = dF/dz``.

    ``F = ||z - f(z)||_1 - lambda log q(z | z_s)`` is the function of Eq. 7 in the RNRI paper, where ``z = f(z)`` is the
    equation of the inversion step and ``z_s`` is the cleaner latent. The update ``-F g / ||g||^2`` is the shortest of
    all updates that solve the linearized equation ``F = 0``. The update of Eq. 8 in the RNRI paper also solves the
    linearized equation ``F = 0``, but the length of that update is not bounded. Every evaluation except the last needs
    one backward pass.
    """

    needs_grad: ClassVar[bool] = True

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        value, gradient = self.objective_and_gradient(iterate)
        squared_norm = gradient.square().flatten(1).sum(1).view(-1, 1, 1, 1)
        return iterate.z.detach() - value * gradient / squared_norm, ()
