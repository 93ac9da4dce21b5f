"""ReNoise: a fixed-point iteration whose noise predictions are averaged and, optionally, regularized."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from rnri.solvers.implicit import ImplicitStep, Solution
from rnri.solvers.iterative import Iterate, IterativeSolver, State
from rnri.validation import ConfigError, RandomSeed, dataclass

PATCH_SIZE = 4
MAX_GRADIENT = 100.0
MIN_VARIANCE = 1e-6
SHIFTS_PER_ROUND = 5


@dataclass(frozen=True)
class ReNoise(IterativeSolver):
    """``z <- A z_s + B eps(z)``, with the result ``A z_s + B mean_k eps(z_k)`` (Garibi et al. 2024, arXiv 2403.14602).

    The iteration continues from its last value (Algorithm 1); the mean, over a window of evaluations, is the result
    only. If the window is not reached, the last value is returned. As in the authors' code the cleanest steps, below
    ``clean_below``, have their own window and number of evaluations. The defaults are the authors' for Stable
    Diffusion: 9 renoising iterations after the first evaluation, averaged over the 8th and 9th; 5 below t = 250,
    averaged over the first five.

    With ``rounds`` above 0 the noise predictions are moved towards white noise: those from the start of the window on
    before they give the next iterate, and their mean at the end (Parmar et al. 2023, arXiv 2302.03027). The authors use
    4 rounds. These gradients do not pass through the network. The reference is the prediction at a sample of
    ``q(z_t | z_0)``, one more evaluation per step. Its noise is the same for every image, so that in float32 a result
    does not depend on the batch.

    The returned latent is a mean that was never evaluated. Unless an iterate is within ``tolerance`` before,
    ``residual`` is that of the last evaluated iterate.

    Attributes:
        iterations: network evaluations, including the first and the reference's.
        average_from, average_to: first (from 0) and end (excluded) of the averaged evaluations; None: to the last.
        clean_below: timestep below which the next three attributes apply.
        clean_iterations, clean_from, clean_to: ``iterations``, ``average_from`` and ``average_to`` of those steps.
        rounds: of the regularization; 0 disables it.
        regularizer: ``published`` (:func:`published_regularizer`), or ``gentle`` (:func:`gentle_regularizer`), which
            measures better: an eighth of the KL weight, and shifts that leave the noise's norm unchanged.
        kl_weight, correlation_weight: of the regularizer's two losses.
        seed: of the reference's noise and of the random shifts.
    """

    iterations: PositiveInt = 10
    keep_best: bool = False
    average_from: NonNegativeInt = 8
    average_to: PositiveInt | None = None
    clean_below: NonNegativeInt = 250
    clean_iterations: PositiveInt = 6
    clean_from: NonNegativeInt = 0
    clean_to: PositiveInt = 5
    rounds: NonNegativeInt = 0
    regularizer: Literal["published", "gentle"] = "published"
    kl_weight: NonNegativeFloat = 0.065
    correlation_weight: NonNegativeFloat = 20.0
    seed: RandomSeed = 0

    def __post_init__(self) -> None:
        if self.keep_best:
            raise ConfigError("keep_best", "must be false, because ReNoise returns the mean of its predictions.")
        for start, end in (("average_from", "average_to"), ("clean_from", "clean_to")):
            first = getattr(self, start)
            last = getattr(self, end)
            if last is not None and first >= last:
                raise ConfigError(start, f"must be less than {end}={last}, got {first}.")

    def __call__(self, problem: ImplicitStep, z_init: Tensor, max_nfe: Tensor | None = None) -> Solution:
        if problem.timestep < self.clean_below:
            max_nfe = torch.full((len(z_init),), self.iterations) if max_nfe is None else max_nfe
            max_nfe = max_nfe.clamp(max=self.clean_iterations)
        return super().__call__(problem, z_init, max_nfe)

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        """Return the next iterate and a state that ends with the result so far, see :meth:`final_iterate`."""
        problem = iterate.problem
        k, total, count, reference = self._unpack_state(iterate)
        start, end = self._window(problem)
        z = iterate.f
        if start <= k and (end is None or k < end):
            total = total + iterate.f
            count = count + 1
        mean = total / count.clamp(min=1)
        if self._is_regularized(problem) and k >= start:
            generator = torch.Generator().manual_seed(self.seed + int(1_000 * problem.timestep) + k)
            z = self._regularize(z, problem, reference, generator)
            mean = self._regularize(mean, problem, reference, generator)
        result = torch.where(count > 0, mean, z)
        return z, (torch.full_like(count, k + 1), total, count, reference, result)

    def final_iterate(self, z: Tensor, state: State) -> Tensor:
        return state[-1]

    def _window(self, problem: ImplicitStep) -> tuple[int, int | None]:
        """Return the first and the end (excluded) of the evaluations that are averaged."""
        if problem.timestep < self.clean_below:
            return self.clean_from, self.clean_to
        return self.average_from, self.average_to

    def _is_regularized(self, problem: ImplicitStep) -> bool:
        return self.rounds > 0 and problem.prior.noise_gain != 0

    def _unpack_state(self, iterate: Iterate) -> tuple[int, Tensor, Tensor, Tensor]:
        """Return the number of previous evaluations, the window's sum and count, and the reference prediction."""
        if iterate.state:
            k, total, count, reference, _ = iterate.state
            return int(k.flatten()[0]), total, count, reference
        total = torch.zeros_like(iterate.f)
        count = iterate.f.new_zeros(len(iterate.f), 1, 1, 1)
        if self._is_regularized(iterate.problem):
            return 0, total, count, self._reference(iterate.problem)
        return 0, total, count, torch.zeros_like(iterate.f)

    def _regularize(self, z: Tensor, problem: ImplicitStep, reference: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``z [b,C,h,w]`` with its noise regularized."""
        prior = problem.prior
        noise = REGULARIZERS[self.regularizer](prior.noise(z), reference, self, generator)
        return prior.mean + prior.noise_gain * noise

    def _reference(self, problem: ImplicitStep) -> Tensor:
        """Return the noise ``[b,C,h,w]`` predicted at a sample of ``q(z_t | z_0)``."""
        prior = problem.prior
        noise = _fixed_noise(tuple(problem.z_s.shape[1:]), self.seed).to(problem.z_s)
        return prior.noise(problem(prior.marginal_mean + prior.marginal_variance**0.5 * noise))


@lru_cache(maxsize=4)
def _fixed_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def published_regularizer(noise: Tensor, reference: Tensor, weights: ReNoise, generator: torch.Generator) -> Tensor:
    """Return ``noise [B,C,h,w]`` after the authors' rounds: a step on the divergence, then one per random shift.

    The gradient of the divergence is clipped at 100 before it is weighted.
    """
    for _ in range(weights.rounds):
        gradient = _gradient(lambda x: published_divergence(x, reference), noise)
        noise = noise - weights.kl_weight * gradient.clamp(-MAX_GRADIENT, MAX_GRADIENT)
        for _ in range(SHIFTS_PER_ROUND):
            gradient = _gradient(lambda x: published_correlation(x, generator), noise)
            noise = noise - weights.correlation_weight * gradient / SHIFTS_PER_ROUND
    return noise


def gentle_regularizer(noise: Tensor, reference: Tensor, weights: ReNoise, _generator: torch.Generator) -> Tensor:
    """Return ``noise [B,C,h,w]`` after rounds of this project's variant, which has no random shifts.

    A round is one step on both losses; the divergence is halved and averaged over channels, and no shift is zero.
    """

    def loss(x: Tensor) -> Tensor:
        divergence = patch_divergence(x, reference)
        return weights.kl_weight * divergence + weights.correlation_weight * autocorrelation(x)

    for _ in range(weights.rounds):
        noise = noise - _gradient(loss, noise).clamp(-MAX_GRADIENT, MAX_GRADIENT)
    return noise


REGULARIZERS: dict[str, Callable[[Tensor, Tensor, ReNoise, torch.Generator], Tensor]] = {
    "published": published_regularizer,
    "gentle": gentle_regularizer,
}


def _gradient(loss: Callable[[Tensor], Tensor], noise: Tensor) -> Tensor:
    """Return the gradient of ``loss``, summed over samples, at ``noise``."""
    with torch.enable_grad():
        x = noise.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    return gradient


def published_divergence(noise: Tensor, reference: Tensor) -> Tensor:
    """Return twice the KL divergence of Gaussians fitted to each 4 x 4 patch of both, summed over all, ``[B]``."""
    mean, variance = _unbiased_patch_moments(noise)
    mean_r, variance_r = _unbiased_patch_moments(reference)
    variance = variance + MIN_VARIANCE
    variance_r = variance_r + MIN_VARIANCE
    divergence = (variance_r / variance).log() + (variance - MIN_VARIANCE + (mean - mean_r).square()) / variance_r - 1
    return divergence.abs().flatten(1).sum(1)


def _unbiased_patch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of each patch, ``[B,C,h/4,w/4]``."""
    patches = x.unfold(2, PATCH_SIZE, PATCH_SIZE).unfold(3, PATCH_SIZE, PATCH_SIZE).flatten(4)
    return patches.mean(4), patches.var(4)


def published_correlation(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Return the squared mean product of channels and their shifted copies, summed over a pyramid, ``[B]``.

    Each channel and level has its own random shift of less than half the side. A shift may be zero; it then measures
    the norm of the noise, which its gradient shrinks.
    """
    total = noise.new_zeros(len(noise))
    for channel in noise.split(1, 1):
        while True:
            shift = int(torch.randint(0, channel.shape[2] // 2, (1,), generator=generator))
            for axis in (2, 3):
                total = total + (channel * channel.roll(shift, axis)).mean((1, 2, 3)).square()
            if channel.shape[2] <= 8:
                break
            channel = F.avg_pool2d(channel, 2)
    return total


def patch_divergence(noise: Tensor, reference: Tensor) -> Tensor:
    """Return the KL divergence of Gaussians fitted to each 4 x 4 patch of ``noise`` and of ``reference``, ``[B]``.

    It is summed over patches and averaged over channels.
    """
    mean, variance = _patch_moments(noise)
    mean_r, variance_r = _patch_moments(reference)
    divergence = (variance_r / variance).log() + (variance + (mean - mean_r).square()) / variance_r - 1
    return divergence.sum((2, 3)).mean(1) / 2


def _patch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each patch, ``[B,C,h/4,w/4]``."""
    mean = F.avg_pool2d(x, PATCH_SIZE)
    return mean, (F.avg_pool2d(x.square(), PATCH_SIZE) - mean.square()).clamp(min=1e-8)


def autocorrelation(noise: Tensor) -> Tensor:
    """Return the squared mean product of ``noise`` and its copies shifted by powers of two, over a pyramid, ``[B]``."""
    total = noise.new_zeros(len(noise))
    while min(noise.shape[-2:]) >= 8:
        shift = 1
        while shift < noise.shape[-1]:
            for axis in (2, 3):
                total = total + (noise * noise.roll(shift, axis)).mean((1, 2, 3)).square()
            shift *= 2
        noise = 2 * F.avg_pool2d(noise, 2)  # white noise keeps unit variance
    return total
