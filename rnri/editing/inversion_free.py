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
    """A method that transforms an image into its edit by the predictions for both prompts."""

    def guidances(self, guidance: float) -> tuple[float, float]:
        """Return the guidance scales of the source's and of the edit's predictor, for the user's ``guidance``."""
        ...

    def edit(self, z0: Tensor, source: NoisePredictor, target: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the edited latents ``[B,C,h,w]`` of ``z0 [B,C,h,w]``."""
        ...


@dataclass(frozen=True)
class FlowEdit:
    """FlowEdit (Kulikov et al. 2024, arXiv 2412.08629), Algorithm 1: an ODE from the image to its edit.

    With the velocities ``v`` of flow matching and fresh noise ``n`` in every step, starting at ``z = z_0``::

        z_src = (1 - sigma) z_0 + sigma n;    z_tar = z + z_src - z_0
        z <- z + (sigma_next - sigma) (v_target(z_tar) - v_source(z_src))

    The algorithm's final ``n_min`` steps of plain sampling, 0 by default, are not implemented.

    Attributes:
        share: share of the schedule's steps that are used, the cleanest ones; the paper uses 33 of 50 steps for
            Stable Diffusion 3 and 24 of 28 for FLUX.
        average: number of noise samples per step over which the difference of velocities is averaged.
        source_guidance, target_guidance: guidance scales of the two prompts, instead of the user's; the paper uses 3.5
            and 13.5 for Stable Diffusion 3, and 1.5 and 5.5 for FLUX.
        seed: random seed of the noise, the same for every image.
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
        """Return the edits ``[B,C,h,w]`` of ``z0 [B,C,h,w]``; ValueError without a flow-matching schedule."""
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
    """TurboEdit's pseudo-guidance (Deutch et al. 2024, arXiv 2408.00735): scales the effect of the prompt on a step.

    ``x_t`` are independent noisy samples of the image at every level, as in edit-friendly inversion, ``mu`` is the
    mean of a DDPM step, and the edit ``z`` starts at the noisiest of them::

        z <- x_s + w (mu(z, target) - mu(z, source)) + (mu(z, source) - mu(x_t, source))

    ``w = 1`` is edit-friendly editing with all noise maps. With equal prompts the edit is the image, for every ``w``.
    The paper's shift of the timesteps, which SDXL turbo's noise needs, and its clipping of the last map's norm are not
    implemented.

    Attributes:
        scale: ``w``; the paper uses 1.5.
        seed: random seed of the noise.
    """

    scale: NonNegativeFloat = 1.5
    seed: RandomSeed = 0

    def guidances(self, guidance: float) -> tuple[float, float]:
        return guidance, guidance

    @torch.no_grad()
    def edit(self, z0: Tensor, source: NoisePredictor, target: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the edits ``[B,C,h,w]`` of ``z0 [B,C,h,w]``."""
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
