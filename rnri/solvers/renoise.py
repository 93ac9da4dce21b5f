"""ReNoise: fixed-point iterations whose noise predictions are averaged and, if wanted, regularized."""

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
from rnri.validation import RandomSeed, dataclass

PATCH = 4
LARGEST_GRADIENT = 100.0
LEAST_VARIANCE = 1e-6
ROLLS = 5  # random shifts a round


@dataclass(frozen=True)
class ReNoise(IterativeSolver):
    """``z <- A z_s + B eps(z)``, ending in ``A z_s + B mean_k eps(z_k)`` (Garibi et al. 2024, arXiv 2403.14602).

    The iteration goes on from its last value (Algorithm 1); the mean is taken over a window of evaluations and only
    ends it. Where the window is not reached the last value returns. As in the authors' code the cleanest steps, below
    ``clean_below``, have a window and a number of evaluations of their own. Their defaults for Stable Diffusion are
    those here: 9 renoising iterations after the first evaluation, averaged over the 8th and 9th; 5 below t = 250,
    averaged over the first five.

    ``rounds`` above 0 edits the predictions towards white noise, those from the window's begin on before they lead to
    the next iterate, and their mean at the end (Parmar et al. 2023, arXiv 2302.03027); the authors make 4 rounds.
    These gradients never enter the network. The reference is the prediction at a draw of ``q(z_t | z_0)``, one more
    evaluation a step; its noise is the same for every image, so that in float32 a result does not depend on the batch.

    The returned latent is an average that was never evaluated: unless an iterate is within ``tolerance``
    before, ``residual`` is that of the last one evaluated.

    Attributes:
        iterations: network evaluations, the first at the start and the reference's included.
        average_from, average_to: the evaluations (from 0) that the mean is of, the latter excluded; None: to the last.
        clean_below: the timestep below which the following three hold.
        clean_iterations, clean_from, clean_to: as above.
        rounds: of the regularization, 0 is off.
        regularizer: ``published``, or ``gentle``, which measures better: an eighth of its KL, and shifts that leave the
            noise's size alone (:func:`published_regularizer`, :func:`gentle_regularizer`).
        kl_weight, correlation_weight: of the regularizer's two losses.
        seed: of the reference's noise and of the shifts.
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
            raise ValueError("keep_best: ReNoise returns the mean of its predictions, not one iterate.")
        for begin, end in (("average_from", "average_to"), ("clean_from", "clean_to")):
            if getattr(self, end) is not None and getattr(self, begin) >= getattr(self, end):
                raise ValueError(f"{begin}={getattr(self, begin)} must be below {end}={getattr(self, end)}.")

    def __call__(self, problem: ImplicitStep, z_init: Tensor, limits: Tensor | None = None) -> Solution:
        if problem.timestep < self.clean_below:
            limits = torch.full((len(z_init),), self.iterations) if limits is None else limits
            limits = limits.clamp(max=self.clean_iterations)
        return super().__call__(problem, z_init, limits)

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        """The next iterate; the state holds what the window's mean has come to, which :meth:`outcome` returns."""
        problem, k, total, count, reference = at.problem, *self._before(at)
        clean = problem.timestep < self.clean_below
        begin, end = (self.clean_from, self.clean_to) if clean else (self.average_from, self.average_to)
        z = at.f
        if begin <= k and (end is None or k < end):
            total, count = total + at.f, count + 1
        mean = total / count.clamp(min=1)
        if self.rounds and problem.noise_gain != 0 and k >= begin:
            generator = torch.Generator().manual_seed(self.seed + int(1_000 * problem.timestep) + k)
            z, mean = (
                problem.prior_mean
                + problem.noise_gain * REGULARISERS[self.regularizer](noise, reference, self, generator)
                for noise in (problem.noise(z), problem.noise(mean))
            )
        outcome = torch.where(count > 0, mean, z)
        return z, (torch.full_like(count, k + 1), total, count, reference, outcome)

    def outcome(self, z: Tensor, state: State) -> Tensor:
        return state[-1]

    def _before(self, at: Iterate) -> tuple[int, Tensor, Tensor, Tensor]:
        """Evaluations before this one, the window's sum and count, and the reference prediction."""
        if at.state:
            k, total, count, reference, _ = at.state
            return int(k.flatten()[0]), total, count, reference
        zero = at.f.new_zeros(len(at.f), 1, 1, 1)
        reference = (
            self._reference(at.problem) if self.rounds and at.problem.noise_gain != 0 else torch.zeros_like(at.f)
        )
        return 0, torch.zeros_like(at.f), zero, reference

    def _reference(self, problem: ImplicitStep) -> Tensor:
        noise = _fixed_noise(tuple(problem.z_s.shape[1:]), self.seed).to(problem.z_s)
        return problem.noise(problem(problem.marginal_mean + problem.marginal_variance**0.5 * noise))


@lru_cache(maxsize=4)
def _fixed_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def published_regularizer(noise: Tensor, reference: Tensor, weights: ReNoise, generator: torch.Generator) -> Tensor:
    """``noise [B,C,h,w]`` after the authors' rounds: a step on the divergence, then one on each draw of the shifts.

    The divergence's gradient is cut at 100, before it is weighted.
    """
    for _ in range(weights.rounds):
        gradient = _gradient(lambda x: published_divergence(x, reference), noise)
        noise = noise - weights.kl_weight * gradient.clamp(-LARGEST_GRADIENT, LARGEST_GRADIENT)
        for _ in range(ROLLS):
            gradient = _gradient(lambda x: published_correlation(x, generator), noise)
            noise = noise - weights.correlation_weight * gradient / ROLLS
    return noise


def gentle_regularizer(noise: Tensor, reference: Tensor, weights: ReNoise, _generator: torch.Generator) -> Tensor:
    """Ours: one step a round on both losses, the divergence halved and averaged over channels, no shift being zero."""

    def loss(x: Tensor) -> Tensor:
        divergence, correlation = patch_divergence(x, reference), autocorrelation(x)
        return weights.kl_weight * divergence + weights.correlation_weight * correlation

    for _ in range(weights.rounds):
        noise = noise - _gradient(loss, noise).clamp(-LARGEST_GRADIENT, LARGEST_GRADIENT)
    return noise


REGULARISERS: dict[str, Callable[[Tensor, Tensor, ReNoise, torch.Generator], Tensor]] = {
    "published": published_regularizer,
    "gentle": gentle_regularizer,
}


def _gradient(loss: Callable[[Tensor], Tensor], noise: Tensor) -> Tensor:
    with torch.enable_grad():
        x = noise.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    return gradient


def published_divergence(noise: Tensor, reference: Tensor) -> Tensor:
    """Twice the KL of Gaussians of each channel's 4 x 4 patches from ``reference``'s, summed over all, ``[B]``."""
    (mean, variance), (mean_r, variance_r) = _sample_moments(noise), _sample_moments(reference)
    variance, variance_r = variance + LEAST_VARIANCE, variance_r + LEAST_VARIANCE
    divergence = (variance_r / variance).log() + (variance - LEAST_VARIANCE + (mean - mean_r).square()) / variance_r - 1
    return divergence.abs().flatten(1).sum(1)


def _sample_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of whole patches, ``[B,C,h/4,w/4]``."""
    patches = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(4)
    return patches.mean(4), patches.var(4)


def published_correlation(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Squared mean product of each channel with itself shifted, summed over channels and a pyramid, ``[B]``.

    A channel and level has its own random shift of less than half the side, zero among them: that one measures the
    noise's size, and its gradient shrinks it.
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
    """KL of Gaussians with the mean and variance of each 4 x 4 patch of ``noise`` from ``reference``'s, ``[B]``.

    Summed over patches, averaged over channels.
    """
    mean, variance = _patch_moments(noise)
    mean_r, variance_r = _patch_moments(reference)
    divergence = (variance_r / variance).log() + (variance + (mean - mean_r).square()) / variance_r - 1
    return divergence.sum((2, 3)).mean(1) / 2


def _patch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = F.avg_pool2d(x, PATCH)
    return mean, (F.avg_pool2d(x.square(), PATCH) - mean.square()).clamp(min=1e-8)


def autocorrelation(noise: Tensor) -> Tensor:
    """Squared mean product of ``noise`` with itself shifted by every power of two, over a pyramid, ``[B]``."""
    total = noise.new_zeros(len(noise))
    while min(noise.shape[-2:]) >= 8:
        shift = 1
        while shift < noise.shape[-1]:
            for axis in (2, 3):
                total = total + (noise * noise.roll(shift, axis)).mean((1, 2, 3)).square()
            shift *= 2
        noise = 2 * F.avg_pool2d(noise, 2)  # keeps white noise at unit variance
    return total
