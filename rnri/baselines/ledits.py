"""LEDITS++ inversion: edit-friendly noise maps of a second-order stochastic sampler, diffusers' own."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from checked import Seed, dataclass
from rnri.baselines.common import evenly, inversion
from rnri.baselines.stochastic import diffused
from rnri.inversion import Inversion
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentObserver, ignore, in_state_dtype
from rnri.models.schedule import Schedule


@dataclass(frozen=True)
class LEditsPP:
    """LEDITS++ inversion (Brack et al. 2024, arXiv 2311.16711): ``EditFriendly`` on SDE-DPM-Solver++ of order two.

    Latents ``z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) n_t`` are drawn independently at every level, and the noise map of a
    step is whatever takes the sampler from one to the next. The steps are those of diffusers'
    ``DPMSolverMultistepScheduler`` at the schedule's timesteps and noise levels, each ending where the next begins.
    The first step is of order one and every other of order two, as diffusers' ``LEditsPPPipelineStableDiffusion``
    inverts. That pipeline then samples its last step in order one (below 15 steps, or with a clean end) and without
    the source's guidance, so that it need not meet its image; here both directions take the same steps, and it is
    exact by construction.

    One map a step is kept, ``extra["maps"] [B,N,C,h,w]``. A step that adds no noise (to a clean end at ``a = 1``,
    where the order is one, or that changes nothing) has a map of zero, and the inversion is not exact. The published
    ``skip`` of the noisiest steps is ``schedule.last``. The draws are the same for every image, so that an image's
    result does not depend on its batch.

    Attributes:
        seed: of the draws.
    """

    seed: Seed = 0

    single_latent: ClassVar[bool] = False

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentObserver = ignore
    ) -> Inversion:
        """The noisiest draw as the seed of ``z0 [B,C,h,w]``, and the maps that lead from it to ``z0``."""
        z0 = in_state_dtype(z0)
        noisy = diffused(z0, schedule, self.seed)
        sampler, maps, exact = _sampler(schedule), [], True
        for i, (z, target) in enumerate(pairwise([*noisy, z0])):
            mean, deviation = _step(sampler, z, predictor, schedule, i)
            exact &= deviation > 0
            maps.append((target - mean) / deviation if deviation > 0 else torch.zeros_like(z0))
        for k, z in enumerate(reversed(noisy)):
            on_step(k, z)
        return inversion(
            noisy[0], z0, evenly(1, schedule, len(z0)), exact=exact, single_latent=False,
            extra={"maps": torch.stack(maps, 1)},
        )  # fmt: skip

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        z, sampler = inversion.seed, _sampler(schedule)
        for i in range(len(schedule)):
            mean, deviation = _step(sampler, z, predictor, schedule, i)
            z = mean + deviation * inversion.extra["maps"][:, i]
        return z


def _sampler(schedule: Schedule) -> DPMSolverMultistepScheduler:
    """SDE-DPM-Solver++(2M) at the schedule's own noise levels, in float64, before its first step."""
    clean_end = float(schedule.alpha_bar_next[-1]) == 1  # the order two formula is then infinite
    sampler = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=2, lower_order_final=False,
        final_sigmas_type="zero" if clean_end else "sigma_min",
    )  # fmt: skip
    sampler.set_timesteps(timesteps=schedule.timesteps.tolist())
    levels = torch.cat([schedule.alpha_bar, schedule.alpha_bar_next[-1:]])
    sampler.sigmas = (1 / levels - 1).sqrt()  # not those of the betas that it was built with
    sampler.set_begin_index(0)
    return sampler


def _step(
    sampler: DPMSolverMultistepScheduler, z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int
) -> tuple[Tensor, float]:
    """Mean ``[B,C,h,w]`` and standard deviation of the sampler's step ``i``, which must be the next it takes."""
    t, (sigma, sigma_next) = int(schedule.timesteps[i]), sampler.sigmas[i : i + 2].tolist()
    mean = sampler.step(predictor(z, t), t, z, variance_noise=torch.zeros_like(z)).prev_sample
    return mean, sigma_next / math.sqrt(1 + sigma_next**2) * math.sqrt(1 - (sigma_next / sigma) ** 2)
