"""LEDITS++ inversion: stores one noise map for each step of a second-order stochastic sampler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rnri.methods.noise_maps import NoiseMaps, Step
from rnri.methods.registry import register_method
from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule
from rnri.validation import dataclass

if TYPE_CHECKING:
    from diffusers import DPMSolverMultistepScheduler


@register_method(
    "ledits",
    paper="LEDITS++, Brack et al. 2024, arXiv 2311.16711",
    source="ml-research/ledits_pp@c2ccffb src/leditspp/pipeline_stable_diffusion_ledits.py:1166-1206",
    requires="noise",
)
@dataclass(frozen=True)
class LEditsPP(NoiseMaps):
    """LEDITS++ inversion (Brack et al. 2024, arXiv 2311.16711): noise maps for the sampler SDE-DPM-Solver++.

    The inversion stores one noise map per step, as ``EditFriendly`` does. A step of the second-order sampler from noise
    level ``t`` to ``s`` is::

        mean = sigma_s / sigma_t e^-h z_t + alpha_s (1 - e^-2h) (x + (x - x') / (2 r))
        z_s = mean + sigma_s sqrt(1 - e^-2h) map

    Here ``lambda`` is the logarithm of ``alpha / sigma``, ``h`` is ``lambda_s - lambda_t``, and ``r`` is the previous
    ``h`` divided by ``h``. ``x`` is the network's estimate of the clean latent, ``x'`` is this estimate in the previous
    step, and ``map`` is the noise map.

    The steps are computed by diffusers' ``DPMSolverMultistepScheduler`` at the schedule's timesteps and noise levels.
    The first step is first-order and all other steps are second-order, as in the inversion of diffusers'
    ``LEditsPPPipelineStableDiffusion``. When ``LEditsPPPipelineStableDiffusion`` samples, it ignores the guidance of
    the source prompt, and its last step may be first-order, so that it does not reproduce the image in general. In this
    class, sampling and inversion use the same steps, so that the inversion is exact by construction. The inversion is
    not exact on a schedule that ends at the clean latent (``alpha = 1``), because the last step is first-order and adds
    no noise.

    Without a source prompt, the seed and the noise maps equal the results of diffusers' pipeline. With a source prompt,
    the results differ, because the pipeline of diffusers up to 0.42.1 swaps the embeddings of the source prompt and the
    empty prompt. In this class, guidance leads towards the source prompt, as in the paper. To skip the noisiest steps,
    as the published method does with its parameter ``skip``, pass the result of ``schedule.tail`` as the schedule.
    """

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError for a schedule that begins with pure noise, whose log signal-to-noise ratio is infinite."""
        if schedule.alpha[0] == 0:
            raise ValueError(
                "LEDITS++ does not support a schedule that begins with pure noise (alpha = 0, as in flow matching), "
                "because it needs a finite logarithm of the signal-to-noise ratio. Choose another method."
            )

    def sampler(self, schedule: Schedule) -> Step:
        self.check_schedule(schedule)
        solver = _solver(schedule)
        return lambda z, predictor, i: _step(solver, z, predictor, schedule, i=i)


def _solver(schedule: Schedule) -> DPMSolverMultistepScheduler:
    """Return diffusers' SDE-DPM-Solver++(2M) before its first step, with the schedule's noise levels in float64."""
    from diffusers import DPMSolverMultistepScheduler  # imported here because importing diffusers takes seconds

    clean_end = float(schedule.sigma_next[-1]) == 0  # the second-order formula is infinite at sigma = 0
    solver = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
        lower_order_final=False,
        prediction_type="sample",
        final_sigmas_type="zero" if clean_end else "sigma_min",
    )
    solver.set_timesteps(timesteps=schedule.timesteps.tolist())
    alpha, sigma = _levels(schedule)
    solver.sigmas = sigma / alpha  # replaces the noise levels of the solver's default betas
    solver.set_begin_index(0)
    return solver


def _step(
    solver: DPMSolverMultistepScheduler, z: Tensor, predictor: NoisePredictor, schedule: Schedule, *, i: int
) -> tuple[Tensor, float]:
    """Return the mean ``[B,C,h,w]`` and the standard deviation of the latent after sampling step ``i``.

    ``z`` is the latent before step ``i``, which must be the next step of ``solver``.
    """
    t = schedule.timestep(i)
    sigma, sigma_next = solver.sigmas[i : i + 2].tolist()
    clean, _ = schedule.clean_and_noise(i, z, predictor(z, t))
    # sqrt(alpha^2 + sigma^2), which is 1 except for flow matching
    norm, norm_next = torch.hypot(*_levels(schedule))[i : i + 2].tolist()
    mean = solver.step(clean, t, z / norm, variance_noise=torch.zeros_like(z)).prev_sample
    deviation = sigma_next / math.sqrt(1 + sigma_next**2) * math.sqrt(1 - (sigma_next / sigma) ** 2)
    return norm_next * mean, norm_next * deviation


def _levels(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return alpha (signal levels) and sigma (noise levels) before every step and after the last step, ``[N+1]``."""
    alpha = torch.cat([schedule.alpha, schedule.alpha_next[-1:]])
    sigma = torch.cat([schedule.sigma, schedule.sigma_next[-1:]])
    return alpha, sigma
