"""LEDITS++ inversion: edit-friendly noise maps of a second-order stochastic sampler, diffusers' own."""

from __future__ import annotations

import math

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from checked import dataclass
from rnri.baselines.stochastic import NoiseMaps, Step
from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule


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

    def sampler(self, schedule: Schedule) -> Step:
        solver = _solver(schedule)
        return lambda z, predictor, i: _step(solver, z, predictor, schedule, i)


def _solver(schedule: Schedule) -> DPMSolverMultistepScheduler:
    """SDE-DPM-Solver++(2M) at the schedule's own noise levels, in float64, before its first step."""
    clean_end = float(schedule.alpha_bar_next[-1]) == 1  # the order two formula is then infinite
    solver = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=2, lower_order_final=False,
        final_sigmas_type="zero" if clean_end else "sigma_min",
    )  # fmt: skip
    solver.set_timesteps(timesteps=schedule.timesteps.tolist())
    levels = torch.cat([schedule.alpha_bar, schedule.alpha_bar_next[-1:]])
    solver.sigmas = (1 / levels - 1).sqrt()  # not those of the betas that it was built with
    solver.set_begin_index(0)
    return solver


def _step(
    solver: DPMSolverMultistepScheduler, z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int
) -> tuple[Tensor, float]:
    """Mean ``[B,C,h,w]`` and standard deviation of the sampler's step ``i``, which must be the next it takes."""
    t, (sigma, sigma_next) = int(schedule.timesteps[i]), solver.sigmas[i : i + 2].tolist()
    mean = solver.step(predictor(z, t), t, z, variance_noise=torch.zeros_like(z)).prev_sample
    return mean, sigma_next / math.sqrt(1 + sigma_next**2) * math.sqrt(1 - (sigma_next / sigma) ** 2)
