"""LEDITS++ inversion: edit-friendly noise maps of a second-order stochastic sampler, diffusers' own."""

from __future__ import annotations

import math

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from rnri.methods.edit_friendly_ddpm import NoiseMaps, Step
from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@dataclass(frozen=True)
class LEditsPP(NoiseMaps):
    """LEDITS++ inversion (Brack et al. 2024, arXiv 2311.16711): ``EditFriendly`` on SDE-DPM-Solver++ of order two.

    The steps are those of diffusers' ``DPMSolverMultistepScheduler`` at the schedule's timesteps and noise levels, each
    ending where the next begins. The first step is of order one and every other of order two, as diffusers'
    ``LEditsPPPipelineStableDiffusion`` inverts. That pipeline then samples its last step in order one (below 15 steps,
    or with a clean end) and without the source's guidance, so that it need not meet its image; here both directions
    take the same steps, and it is exact by construction but for a clean end at ``a = 1``, where the order is one and
    no noise is added.

    Without a source prompt seed and maps are the pipeline's. With one, diffusers up to 0.42.1 swaps the prompt's
    embedding with the empty one's (``invert`` unpacks ``encode_prompt`` in the wrong order), and guides away from the
    source; here guidance leads to it, as the paper has it. The published ``skip`` of the noisiest steps is
    ``schedule.last``.
    """

    def check_schedule(self, schedule: Schedule) -> None:
        """ValueError for a schedule that begins with noise alone, whose logarithmic signal-to-noise ratio is none."""
        if schedule.alpha[0] == 0:
            raise ValueError(
                "LEDITS++ steps in the logarithm of the signal-to-noise ratio, and this schedule begins with noise "
                "alone (sigma = 1, as flow matching's does): choose another method."
            )

    def sampler(self, schedule: Schedule) -> Step:
        self.check_schedule(schedule)
        solver = _solver(schedule)
        return lambda z, predictor, i: _step(solver, z, predictor, schedule, i)


def _solver(schedule: Schedule) -> DPMSolverMultistepScheduler:
    """SDE-DPM-Solver++(2M) at the schedule's own noise levels, in float64, before its first step."""
    clean_end = float(schedule.sigma_next[-1]) == 0  # the order two formula is then infinite
    solver = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=2, lower_order_final=False, prediction_type="sample",
        final_sigmas_type="zero" if clean_end else "sigma_min",
    )  # fmt: skip
    solver.set_timesteps(timesteps=schedule.timesteps.tolist())
    alpha, sigma = _levels(schedule)
    solver.sigmas = sigma / alpha  # not those of the betas that it was built with
    solver.set_begin_index(0)
    return solver


def _step(
    solver: DPMSolverMultistepScheduler, z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int
) -> tuple[Tensor, float]:
    """Mean ``[B,C,h,w]`` and standard deviation of the sampler's step ``i``, which must be the next it takes."""
    t, (sigma, sigma_next) = schedule.timestep(i), solver.sigmas[i : i + 2].tolist()
    clean, _ = schedule.clean_and_noise(i, z, predictor(z, t))
    size, size_next = torch.hypot(*_levels(schedule))[i : i + 2].tolist()  # 1 but for flow matching
    mean = solver.step(clean, t, z / size, variance_noise=torch.zeros_like(z)).prev_sample
    deviation = sigma_next / math.sqrt(1 + sigma_next**2) * math.sqrt(1 - (sigma_next / sigma) ** 2)
    return size_next * mean, size_next * deviation


def _levels(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Signal and noise before every step and after the last, ``[N+1]`` each."""
    return torch.cat([schedule.alpha, schedule.alpha_next[-1:]]), torch.cat([schedule.sigma, schedule.sigma_next[-1:]])
