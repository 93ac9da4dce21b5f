"""Inversion of the ancestral sampler with stored noise: sampling adds the same noise that the inversion used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import ImplicitInverter, Inversion
from rnri.methods.noise_maps import draw_noise
from rnri.methods.registry import NO_LICENSE, register_method
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, ddim_step, no_callback
from rnri.models.schedule import Schedule
from rnri.solvers.implicit import ImplicitStep
from rnri.solvers.newton import RNRISign
from rnri.solvers.renoise import ReNoise
from rnri.validation import RandomSeed, dataclass


@dataclass(frozen=True)
class Ancestral(ImplicitInverter):
    """Inverts the ancestral sampler (diffusers' ``EulerAncestralDiscreteScheduler``, DDIM with eta = 1).

    A step of the ancestral sampler from the noisier latent ``z_t`` to the cleaner latent ``z_s`` is a DDIM step to the
    noise level ``sigma_down``, followed by the addition of noise with standard deviation ``sigma_up``::

        z_s = (z_t - B y(z_t, t)) / A + sigma_up n,    sigma_down^2 + sigma_up^2 = sigma_s^2

    Here ``y`` is the network's prediction, ``A`` and ``B`` are the coefficients of the DDIM step, and ``n`` is standard
    normal noise. The noise ``n`` of every step is drawn before the inversion and is stored, as in the published code of
    RNRI and ReNoise. With stored noise ``n``, the step equation ``z_t = A (z_s - sigma_up n) + B y(z_t, t)`` is
    deterministic, so that every solver can solve it. The noise of all steps is stored as
    ``aux["noises"] [B,N,C,h,w]``. Sampling with the stored noise regenerates the latent, up to the error with which the
    step equations were solved.

    With ``correct_noise``, the noise of every step is replaced after the inversion by the noise with which the
    sampler's step leads exactly from ``z_t`` to ``z_s``, as in ReNoise (Garibi et al. 2024, arXiv 2403.14602). The
    noise correction needs one network evaluation per step. If the last step ends at noise level ``sigma_s = 0``, the
    noise correction cannot remove the error of this step, because this step adds no noise.

    All images of a batch use the same noise, so that the result of an image in float32 does not depend on the other
    images of the batch. ``Inversion.residuals`` is NaN, because residuals are defined by the step equation of the
    deterministic sampler. ``Inversion.solved`` marks the inversion steps whose residual is at most the ``tolerance`` of
    the solver.

    Attributes:
        correct_noise: whether the stored noise is corrected after the inversion.
        seed: random seed of the noise.
    """

    correct_noise: bool = False
    seed: RandomSeed = 0

    seed_only: ClassVar[bool] = False

    @property
    def nfe_per_step(self) -> float:
        """Number of network evaluations per step; ``correct_noise`` needs one additional evaluation."""
        return super().nfe_per_step + self.correct_noise

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError unless ``schedule`` predicts noise."""
        if schedule.predicts != "epsilon":
            raise ValueError(
                "the ancestral sampler needs a model that predicts noise, got a flow-matching model; choose another "
                "method."
            )

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds (noise latents) of the clean latents ``z0 [B,C,h,w]``; ``aux`` contains the stored noise.

        Raises:
            ValueError: ``check_schedule`` rejects the schedule.
        """
        self.check_schedule(schedule)
        path = []

        def record(k: int, z: Tensor) -> None:
            path.append(z)
            on_step(k, z)

        inversion = super().invert(z0, predictor, schedule, record)
        noises = self._noises(inversion.z0, schedule).repeat(len(z0), 1, 1, 1, 1)
        if self.correct_noise:
            latents = [*reversed(path), inversion.z0]
            noises = torch.stack(list(self._corrected(latents, noises, predictor, schedule)), 1)
            inversion = replace(inversion, nfe=inversion.nfe + 1)
        residuals = torch.full_like(inversion.residuals, torch.nan)
        return replace(inversion, residuals=residuals, seed_only=False, aux={"noises": noises})

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that the ancestral sampler generates with the stored noise."""
        down, sigma_up = ancestral_schedule(schedule)
        z = inversion.seed
        for i, deviation in enumerate(sigma_up.tolist()):
            z = ddim_step(z, predictor, down, i) + deviation * inversion.aux["noises"][:, i]
        return z

    def _problem(
        self, z_s: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int, *, z_0: Tensor
    ) -> ImplicitStep:
        down, sigma_up = ancestral_schedule(schedule)
        without_noise = z_s - sigma_up[i].item() * self._noises(z_s, schedule)[:, i]
        return super()._problem(without_noise, predictor, down, i, z_0=z_0)

    def _noises(self, like: Tensor, schedule: Schedule) -> Tensor:
        """Return the random noise of all N steps, ``[1,N,C,h,w]``, for latents of the shape of ``like [B,C,h,w]``."""
        return _fixed_noises(tuple(like.shape[1:]), len(schedule), self.seed).to(like)

    @torch.no_grad()
    def _corrected(
        self, latents: list[Tensor], noises: Tensor, predictor: NoisePredictor, schedule: Schedule
    ) -> Iterator[Tensor]:
        """Yield, for each sampling step, the noise ``[B,C,h,w]`` with which the step leads exactly to the next latent.

        Args:
            latents: the N + 1 latents ``[B,C,h,w]`` before the N steps and after the last step, from noisy to clean.
            noises: the noise of each step, ``[B,N,C,h,w]``, which is returned for steps that add no noise.
            predictor: predictor of the inversion.
            schedule: schedule of the inversion.
        """
        down, sigma_up = ancestral_schedule(schedule)
        for i, (z, z_s) in enumerate(pairwise(latents)):
            mean = ddim_step(z, predictor, down, i)
            deviation = sigma_up[i].item()
            yield (z_s - mean) / deviation if deviation > 0 else noises[:, i]


@lru_cache(maxsize=4)
def _fixed_noises(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    return draw_noise(torch.empty(1, *shape, dtype=torch.float64), count, seed)[None]


def ancestral_schedule(schedule: Schedule) -> tuple[Schedule, Tensor]:
    """Return the schedule of the ancestral sampler's DDIM steps, and the standard deviation ``sigma_up`` of the noise.

    The returned schedule is ``schedule`` with ``sigma_next`` replaced by ``sigma_down``. ``sigma_up``, float64 ``[N]``,
    is the standard deviation of ``q(z_s | z_t, x0)``, the distribution of the next latent ``z_s`` given the latent
    ``z_t`` and the clean latent ``x0``.
    """
    ratio = schedule.alpha / schedule.alpha_next
    added_variance = (schedule.sigma.square() - (ratio * schedule.sigma_next).square()).clamp(min=0)
    sigma_up = schedule.sigma_next / schedule.sigma * added_variance.sqrt()
    sigma_down = (schedule.sigma_next.square() - sigma_up.square()).clamp(min=0).sqrt()
    return replace(schedule, sigma_next=sigma_down), sigma_up


@register_method(
    "rnri_ancestral",
    paper="RNRI, Samuel et al. 2023, arXiv 2312.12540, ancestral sampler",
    source=NO_LICENSE,
    requires="noise",
)
def rnri_ancestral() -> Ancestral:
    """Return RNRI as in the authors' published code, for the ancestral Euler sampler with stored noise."""
    return Ancestral(RNRISign(coordinates="euler"), initial_guess="scaled")


@register_method(
    "renoise_ancestral",
    paper="ReNoise, Garibi et al. 2024, arXiv 2403.14602, ancestral sampler",
    source=NO_LICENSE,
    requires="noise",
)
def renoise_ancestral() -> Ancestral:
    """Return ReNoise for the ancestral sampler, with noise correction."""
    return Ancestral(ReNoise(), correct_noise=True)
