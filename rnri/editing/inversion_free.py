"""Edits that do not need the seed of an image: FlowEdit and TurboEdit's pseudo-guidance."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from rnri.methods.edit_friendly_ddpm import EditFriendly
from rnri.methods.noise_maps import diffused, draw_noise
from rnri.models.midpoint import require_flow_matching
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import GuidanceScale, HalfOpenUnitInterval, RandomSeed, dataclass


@runtime_checkable
class Editor(Protocol):
    """A method that turns an image into an edited image, with predictions for the source and for the edited prompt."""

    def guidances(self, guidance: float) -> tuple[float, float]:
        """Return the guidance scales ``(source, edit)`` of the two predictors, given the user's ``guidance`` scale."""
        ...

    def edit(self, z0: Tensor, source: NoisePredictor, target: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the edited latents ``[B,C,h,w]`` of the clean latents ``z0 [B,C,h,w]``."""
        ...


@dataclass(frozen=True)
class FlowEdit:
    """FlowEdit (Kulikov et al. 2024, arXiv 2412.08629), Algorithm 1: an ODE from the image to the edited image.

    The edit ``z`` starts at the image's latent, ``z = z_0``. Every step draws new noise ``n`` and uses the velocities
    ``v`` of flow matching for the source and the target prompt::

        z_src = (1 - sigma) z_0 + sigma n;    z_tar = z + z_src - z_0
        z <- z + (sigma_next - sigma) (v_target(z_tar) - v_source(z_src))

    The paper's option to end with ``n_min`` steps of ordinary sampling (0 by default) is not implemented.

    Attributes:
        share: fraction of the schedule's steps that the edit uses; these are the steps with the least noise. The paper
            uses the last 33 of 50 steps for Stable Diffusion 3 and the last 24 of 28 steps for FLUX.
        average: number of noise samples per step over which the difference of the two velocities is averaged.
        source_guidance, target_guidance: guidance scales of the source prompt and of the edited prompt, which replace
            the user's guidance scale; the paper uses 3.5 and 13.5 for Stable Diffusion 3, and 1.5 and 5.5 for FLUX.
        seed: random seed of the noise; every image gets the same noise.
    """

    share: HalfOpenUnitInterval = 0.66
    average: PositiveInt = 1
    source_guidance: GuidanceScale = 3.5
    target_guidance: GuidanceScale = 13.5
    seed: RandomSeed = 0

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError unless ``schedule`` is a flow-matching schedule."""
        require_flow_matching(schedule, "FlowEdit")

    def guidances(self, guidance: float) -> tuple[float, float]:
        return self.source_guidance, self.target_guidance

    @torch.no_grad()
    def edit(self, z0: Tensor, source: NoisePredictor, target: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the edited latents ``[B,C,h,w]`` of the clean latents ``z0 [B,C,h,w]``.

        Raises:
            ValueError: ``schedule`` is not a flow-matching schedule.
        """
        self.check_schedule(schedule)
        z = z0 = to_state_dtype(z0)
        steps = schedule.tail(max(1, round(self.share * len(schedule))))
        noise_samples = draw_noise(z0, len(steps) * self.average, self.seed)
        for i, noises in enumerate(noise_samples.unflatten(0, (len(steps), self.average))):
            _, sigma, _, sigma_next = steps.alpha_sigma(i)
            t = steps.timestep(i)
            difference = torch.zeros_like(z)
            for noise in noises:
                z_source = (1 - sigma) * z0 + sigma * noise
                difference += (target(z + z_source - z0, t) - source(z_source, t)) / self.average
            z = z + (sigma_next - sigma) * difference
        return z


@dataclass(frozen=True)
class PseudoGuidance:
    """Pseudo-guidance of TurboEdit (Deutch et al. 2024, arXiv 2408.00735): scales the prompt's effect on every step.

    ``x_t`` are independent noisy samples of the image, one per noise level, as in edit-friendly inversion. ``mu`` is
    the mean of a DDPM step. The edit ``z`` starts at the noisiest sample, and the step from ``x_t`` to ``x_s`` is::

        z <- x_s + w (mu(z, target) - mu(z, source)) + (mu(z, source) - mu(x_t, source))

    ``w = 1`` equals edit-friendly editing with all noise maps. If both prompts are equal, the edit equals the image for
    every ``w``. Two parts of the paper are not implemented: the shift of the timesteps for the noise of SDXL turbo, and
    the clipping of the norm of the last noise map.

    Attributes:
        scale: the factor ``w`` of the prompt's effect; the paper uses 1.5.
        seed: random seed of the noise.
    """

    scale: NonNegativeFloat = 1.5
    seed: RandomSeed = 0

    def guidances(self, guidance: float) -> tuple[float, float]:
        return guidance, guidance

    @torch.no_grad()
    def edit(self, z0: Tensor, source: NoisePredictor, target: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the edited latents ``[B,C,h,w]`` of the clean latents ``z0 [B,C,h,w]``."""
        z0 = to_state_dtype(z0)
        noisy = diffused(z0, schedule, self.seed)
        ddpm_mean = EditFriendly().sampler(schedule)
        z = noisy[0]
        for i, (x, x_next) in enumerate(pairwise([*noisy, z0])):
            mean_of_image = ddpm_mean(x, source, i)[0]
            mean_source = ddpm_mean(z, source, i)[0]
            mean_target = ddpm_mean(z, target, i)[0]
            z = x_next + self.scale * (mean_target - mean_source) + (mean_source - mean_of_image)
        return z
