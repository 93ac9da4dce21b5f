"""ReNoise: fixed-point iterations whose noise predictions are regularised and averaged."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from checked import Count, NotNegative, Seed, Whole, dataclass
from rnri.solvers.implicit import ImplicitStep
from rnri.solvers.iterative import Iterate, IterativeSolver, State

PATCH = 4
LARGEST_GRADIENT = 100.0


@dataclass(frozen=True)
class ReNoise(IterativeSolver):
    """``z <- A z_s + B eps(z)``, ending in ``A z_s + B mean_k eps(z_k)`` (Garibi et al. 2024, arXiv 2403.14602).

    Before they are used, the predictions from iteration ``average_from`` on may be edited towards white noise:
    ``rounds`` gradient steps on the Kullback-Leibler divergence of the patches' means and variances from those
    of a reference prediction, and on the correlation with their own shifts (Parmar et al. 2023,
    arXiv 2302.03027). These gradients never enter the network. The reference is the prediction at a draw of
    ``q(z_t | z_s)``, one more evaluation a step; its noise is the same for every image, so that an image's
    result does not depend on its batch.

    Published defaults for Stable Diffusion: 9 renoising iterations (5 below t = 250) after the first
    evaluation, averaged from the 8th on, ``kl_weight=0.065``, ``correlation_weight=20``, 4 rounds.

    The returned latent is an average that was never evaluated: unless an iterate is within ``tolerance``
    before, ``residual`` is that of the last one evaluated.

    Attributes:
        iterations: network evaluations of ``f``, the first at the start included.
        average_from: the first evaluation (from 0) that the mean takes part of; the last where it is larger.
        kl_weight, correlation_weight, rounds: of the regularisation; ``rounds=0`` turns it off.
        seed: of the reference's noise.
    """

    iterations: Count = 10
    keep_best: bool = False
    average_from: Whole = 8
    kl_weight: NotNegative = 0.065
    correlation_weight: NotNegative = 20.0
    rounds: Whole = 0
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.keep_best:
            raise ValueError("keep_best: ReNoise returns the mean of its predictions, not one iterate.")

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        problem, zero = at.problem, at.f.new_zeros(len(at.f), 1, 1, 1)
        total, count, k, *reference = at.state or (torch.zeros_like(at.f), zero, zero)
        last = self.iterations - 1 - bool(self.rounds)  # the reference costs an evaluation too
        mean_f, averaged = at.f, k >= min(self.average_from, last)
        if self.rounds and problem.b != 0:
            if not reference:
                reference = [self._reference(problem)]
            noise = regularised(problem.noise(at.f), reference[0], self)
            mean_f = torch.where(averaged, problem.prior_mean + problem.b * noise, at.f)
        total, count = total + averaged * mean_f, count + averaged
        z = torch.where(count > 0, total / count.clamp(min=1), at.f)
        return z if bool(averaged.all()) else at.f, (total, count, k + 1, *reference)

    def _reference(self, problem: ImplicitStep) -> Tensor:
        noise = _fixed_noise(tuple(problem.z_s.shape[1:]), self.seed).to(problem.z_s)
        return problem.noise(problem(problem.prior_mean + problem.prior_variance**0.5 * noise))


@lru_cache(maxsize=4)
def _fixed_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def regularised(noise: Tensor, reference: Tensor, weights: ReNoise) -> Tensor:
    """``noise [B,C,h,w]`` after gradient steps towards the patch statistics of ``reference`` and whiteness."""
    for _ in range(weights.rounds):
        with torch.enable_grad():
            x = noise.detach().requires_grad_()
            loss = weights.kl_weight * patch_divergence(x, reference).sum()
            loss = loss + weights.correlation_weight * autocorrelation(x).sum()
            (gradient,) = torch.autograd.grad(loss, x)
        noise = noise - gradient.clamp(-LARGEST_GRADIENT, LARGEST_GRADIENT)
    return noise


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
