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

PATCH_SIZE = 4  # side of the patches of the KL divergence, in latent pixels
MAX_GRADIENT = 100.0  # gradients are clipped to this absolute value
MIN_VARIANCE = 1e-6  # added to the variances of patches to avoid division by zero
SHIFTS_PER_ROUND = 5  # gradient steps on the correlation loss in a round of regularization, with new shifts per step


@dataclass(frozen=True)
class ReNoise(IterativeSolver):
    """ReNoise (Garibi et al. 2024, arXiv 2403.14602): a fixed-point iteration that returns a mean of its predictions.

    ``z_s`` is the latent at the cleaner end of the step, ``A`` and ``B`` are the step's coefficients, and ``eps`` is
    the network's noise prediction. The iteration is ``z_{k+1} = A z_s + B eps(z_k)`` (Algorithm 1), and the result is
    ``A z_s + B mean_k eps(z_k)``. The mean is computed over a window of consecutive evaluations and does not influence
    the iteration. If the iteration ends before the window starts, the last iterate is returned. As in the authors'
    code, the inversion steps with timesteps below ``clean_below`` have another window and another number of evaluations
    than the inversion steps with larger timesteps.

    The defaults are the authors' settings for Stable Diffusion. For timesteps >= 250, there are 9 renoising iterations
    after the first evaluation, and the result is the mean of the last two predictions. For timesteps < 250, there are 5
    renoising iterations after the first evaluation, and the result is the mean of the first five predictions.

    With ``rounds`` above 0, the noise predictions are regularized towards white noise (Parmar et al. 2023, arXiv
    2302.03027). The regularization applies to every prediction from the first averaged evaluation onwards, and to the
    mean of the predictions. The authors use 4 rounds of the regularization. The regularization's gradients do not
    require backpropagation through the network. The regularization reduces the KL divergence from a reference, which is
    the network's noise prediction at a random sample of ``q(z_t | z_0)``. Because of the clean latent ``z_0``, an
    inversion with the regularization must start at the clean latent. The reference needs one more network evaluation
    per inversion step. As in the authors' code, ``iterations`` and ``clean_iterations`` do not include the evaluation
    of the reference. The noise of the random sample is the same for every image, so that the result in float32 does not
    depend on the other images of the batch.

    The network is not evaluated at the returned mean. If no iterate reaches ``tolerance``, ``Solution.residual`` is
    the residual of the last iterate that was evaluated.

    Attributes:
        iterations: maximum number of network evaluations per inversion step. The first evaluation is included; the
            evaluation for the reference noise of the regularization is not included.
        tolerance: maximum residual at which a sample stops early. As in the authors' code, the default 0 means that no
            sample stops early.
        average_from: index (from 0) of the first averaged evaluation.
        average_to: index after the last averaged evaluation; with None the last evaluation is averaged, too.
        clean_below: timestep below which ``clean_iterations``, ``clean_from`` and ``clean_to`` are used.
        clean_iterations: value of ``iterations`` for timesteps below ``clean_below``.
        clean_from: value of ``average_from`` for timesteps below ``clean_below``.
        clean_to: value of ``average_to`` for timesteps below ``clean_below``.
        rounds: number of rounds of the regularization; 0 disables the regularization.
        regularizer: ``published`` (:func:`published_regularizer`) or ``gentle`` (:func:`gentle_regularizer`). The
            measured reconstruction error of ``gentle`` is smaller than the error of ``published``.
        kl_weight: weight of the KL divergence in the regularization.
        correlation_weight: weight of the autocorrelation in the regularization.
        seed: random seed of the reference's noise and of the random shifts.
    """

    iterations: PositiveInt = 10
    tolerance: NonNegativeFloat = 0.0
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

    @property
    def min_nfe(self) -> int:
        """Minimum number of network evaluations for a mean of two predictions at timesteps >= ``clean_below``."""
        return self.average_from + 2

    @property
    def uses_clean_latent(self) -> bool:
        """Whether the solver needs the clean latent ``z_0``, which is the case if ``rounds`` is above 0."""
        return self.rounds > 0

    @property
    def extra_nfe(self) -> int:
        """Number of network evaluations per inversion step that ``iterations`` does not include.

        The number is 1 with regularization (``rounds`` above 0) and 0 without regularization.
        """
        return int(self.rounds > 0)

    def __call__(self, problem: ImplicitStep, z_init: Tensor, max_nfe: Tensor | None = None) -> Solution:
        max_nfe = torch.full((len(z_init),), self.iterations) if max_nfe is None else max_nfe
        if problem.timestep < self.clean_below:
            max_nfe = max_nfe.clamp(max=self.clean_iterations)
        return super().__call__(problem, z_init, max_nfe + self.extra_nfe)

    def has_budget(self, nfe: int, max_nfe: int) -> bool:
        # The reference of the regularization is evaluated after the first iterate. Its evaluation is counted before
        # it happens, so that the number of evaluations does not exceed max_nfe.
        return super().has_budget(max(nfe, 1 + self.extra_nfe), max_nfe)

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        """Return the next iterate ``[b,C,h,w]`` and the state.

        The last tensor of the state is the result if the iteration ends after this step, see :meth:`final_iterate`.
        """
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
        """Return the index of the first averaged evaluation, and the index after the last averaged evaluation.

        The second value is None if all evaluations after the first averaged evaluation are averaged.
        """
        if problem.timestep < self.clean_below:
            return self.clean_from, self.clean_to
        return self.average_from, self.average_to

    def _is_regularized(self, problem: ImplicitStep) -> bool:
        return self.rounds > 0 and problem.prior.noise_gain != 0

    def _unpack_state(self, iterate: Iterate) -> tuple[int, Tensor, Tensor, Tensor]:
        """Return the four values that the solver needs from previous iterations.

        The values are the number of previous evaluations, the sum of the averaged values ``f(z_k)``, their number
        (``[b,1,1,1]``), and the reference noise of the regularization (zero without regularization).
        """
        if iterate.state:
            k, total, count, reference, _ = iterate.state
            return int(k.flatten()[0]), total, count, reference
        total = torch.zeros_like(iterate.f)
        count = iterate.f.new_zeros(len(iterate.f), 1, 1, 1)
        if self._is_regularized(iterate.problem):
            return 0, total, count, self._reference(iterate.problem)
        return 0, total, count, torch.zeros_like(iterate.f)

    def _regularize(self, z: Tensor, problem: ImplicitStep, reference: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``z [b,C,h,w]`` with its noise component regularized towards white noise.

        Args:
            z: the latents.
            problem: the equation of the inversion step, which defines the noise component of ``z``.
            reference: noise whose statistics the KL divergence compares with the noise of ``z``, ``[b,C,h,w]``.
            generator: random generator of the shifts in the correlation loss.
        """
        prior = problem.prior
        noise = REGULARIZERS[self.regularizer](prior.noise(z), reference, self, generator)
        return prior.mean + prior.noise_gain * noise

    def _reference(self, problem: ImplicitStep) -> Tensor:
        """Return the noise ``[b,C,h,w]`` that the network predicts at a random sample of ``q(z_t | z_0)``.

        ``q(z_t | z_0)`` is the Gaussian distribution of the noisy latent ``z_t`` given the clean latent ``z_0``.
        """
        prior = problem.prior
        noise = _fixed_noise(tuple(problem.z_s.shape[1:]), self.seed).to(problem.z_s)
        return prior.noise(problem(prior.marginal_mean + prior.marginal_variance**0.5 * noise))


@lru_cache(maxsize=4)
def _fixed_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def published_regularizer(noise: Tensor, reference: Tensor, weights: ReNoise, generator: torch.Generator) -> Tensor:
    """Return ``noise [B,C,h,w]``, regularized towards white noise as in the authors' published code.

    Each round takes one gradient step on the KL divergence between ``noise`` and ``reference [B,C,h,w]``, and then five
    gradient steps on the correlation loss, each with new random shifts. ``weights`` is the solver with the settings
    ``rounds``, ``kl_weight`` and ``correlation_weight``. The gradient of the divergence is clipped to [-100, 100], and
    then multiplied by ``kl_weight``.
    """
    for _ in range(weights.rounds):
        gradient = _gradient(lambda x: published_divergence(x, reference), noise)
        noise = noise - weights.kl_weight * gradient.clamp(-MAX_GRADIENT, MAX_GRADIENT)
        for _ in range(SHIFTS_PER_ROUND):
            gradient = _gradient(lambda x: published_correlation(x, generator), noise)
            noise = noise - weights.correlation_weight * gradient / SHIFTS_PER_ROUND
    return noise


def gentle_regularizer(noise: Tensor, reference: Tensor, weights: ReNoise, _generator: torch.Generator) -> Tensor:
    """Return ``noise [B,C,h,w]``, regularized towards white noise by this project's variant without random shifts.

    Each round takes one gradient step on the weighted sum of two losses: the KL divergence between ``noise`` and
    ``reference [B,C,h,w]``, and the autocorrelation of ``noise``. ``weights`` is the solver with the settings
    ``rounds``, ``kl_weight`` and ``correlation_weight``. Unlike in the published code, the divergence is halved and
    averaged over the channels. No shift of the autocorrelation is zero, so that the regularization does not shrink the
    norm of the noise.
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
    """Return the gradient of ``loss(noise).sum()`` with respect to ``noise``, in the shape of ``noise``."""
    with torch.enable_grad():
        x = noise.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    return gradient


def published_divergence(noise: Tensor, reference: Tensor) -> Tensor:
    """Return twice the KL divergence from ``noise`` to ``reference``, summed over all 4 x 4 patches, ``[B]``.

    The divergence of a patch is the KL divergence between two Gaussians: one is fitted to the patch of ``noise``, the
    other to the same patch of ``reference``.
    """
    mean, variance = _unbiased_patch_moments(noise)
    mean_r, variance_r = _unbiased_patch_moments(reference)
    variance = variance + MIN_VARIANCE
    variance_r = variance_r + MIN_VARIANCE
    divergence = (variance_r / variance).log() + (variance - MIN_VARIANCE + (mean - mean_r).square()) / variance_r - 1
    return divergence.abs().flatten(1).sum(1)


def _unbiased_patch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the unbiased variance of each 4 x 4 patch of ``x [B,C,h,w]``, both ``[B,C,h/4,w/4]``."""
    patches = x.unfold(2, PATCH_SIZE, PATCH_SIZE).unfold(3, PATCH_SIZE, PATCH_SIZE).flatten(4)
    return patches.mean(4), patches.var(4)


def published_correlation(noise: Tensor, generator: torch.Generator) -> Tensor:
    """Return the correlation loss of the authors' published code for ``noise [B,C,h,w]``, ``[B]``.

    The loss is the squared mean of the product of a channel and its shifted copy. The loss is summed over channels,
    over the two axes and over the levels of an image pyramid. Each channel and level has its own random shift, from
    zero to less than half the height. With a shift of zero, the loss is the squared mean square of the noise, and its
    gradient shrinks the noise.
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

    The divergence is summed over patches and averaged over channels.
    """
    mean, variance = _patch_moments(noise)
    mean_r, variance_r = _patch_moments(reference)
    divergence = (variance_r / variance).log() + (variance + (mean - mean_r).square()) / variance_r - 1
    return divergence.sum((2, 3)).mean(1) / 2


def _patch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each 4 x 4 patch of ``x [B,C,h,w]``, both ``[B,C,h/4,w/4]``."""
    mean = F.avg_pool2d(x, PATCH_SIZE)
    return mean, (F.avg_pool2d(x.square(), PATCH_SIZE) - mean.square()).clamp(min=1e-8)


def autocorrelation(noise: Tensor) -> Tensor:
    """Return the autocorrelation loss of ``noise [B,C,h,w]``, ``[B]``.

    The loss is the squared mean of the product of the noise and a shifted copy of the noise. The loss is summed over
    all shifts that are powers of two, over the two axes and over the levels of an image pyramid.
    """
    total = noise.new_zeros(len(noise))
    while min(noise.shape[-2:]) >= 8:
        shift = 1
        while shift < noise.shape[-1]:
            for axis in (2, 3):
                total = total + (noise * noise.roll(shift, axis)).mean((1, 2, 3)).square()
            shift *= 2
        noise = 2 * F.avg_pool2d(noise, 2)  # the factor 2 keeps the variance of white noise at 1
    return total
