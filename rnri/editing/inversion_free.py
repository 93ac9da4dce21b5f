"""Edits that need no seed of the image: FlowEdit and TurboEdit's pseudo-guidance."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from rnri.methods.edit_friendly_ddpm import EditFriendly, diffused, draw_noise
from rnri.models.midpoint import require_flow_matching
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import GuidanceScale, HalfOpenUnitInterval, RandomSeed, dataclass


@runtime_checkable
class Editor(Protocol):
    """A method that goes from an image to its edit by the predictions under both prompts."""

    def guidances(self, guidance: float) -> tuple[float, float]:
        """Of the source's and of the edit's predictor, where the user's choice is ``guidance``."""
        ...

    def edit(self, z0: Tensor, source: NoisePredictor, target: NoisePredictor, schedule: Schedule) -> Tensor:
        """The edited latents ``[B,C,h,w]`` of ``z0 [B,C,h,w]``."""
        ...


@dataclass(frozen=True)
class FlowEdit:
    """FlowEdit (Kulikov et al. 2024, arXiv 2412.08629), Algorithm 1: an ODE from the image to its edit.

    With flow matching's velocities ``v`` and fresh noise ``n`` at every step, from ``z = z_0``::

        z_src = (1 - sigma) z_0 + sigma n;    z_tar = z + z_src - z_0
        z <- z + (sigma_next - sigma) (v_target(z_tar) - v_source(z_src))

    The algorithm's last ``n_min`` steps of plain sampling are left out: its default is none.

    Attributes:
        share: of the schedule's steps that are walked, the cleanest; published are 33 of 50 for Stable Diffusion 3 and
            24 of 28 for FLUX.
        average: draws of noise a step, over which the difference of velocities is averaged.
        source_guidance, target_guidance: its own, for the two prompts need different ones: published are 3.5 and 13.5
            for Stable Diffusion 3, 1.5 and 5.5 for FLUX.
        seed: of the noise, the same for every image.
    """

    share: HalfOpenUnitInterval = 0.66
    average: PositiveInt = 1
    source_guidance: GuidanceScale = 3.5
    target_guidance: GuidanceScale = 13.5
    seed: RandomSeed = 0

    def check_schedule(self, schedule: Schedule) -> None:
        """ValueError for a schedule that is not flow matching's."""
        require_flow_matching(schedule, "FlowEdit")

    def guidances(self, guidance: float) -> tuple[float, float]:
        return self.source_guidance, self.target_guidance

    @torch.no_grad()
    def edit(self, z0: Tensor, source: NoisePredictor, target: NoisePredictor, schedule: Schedule) -> Tensor:
        """The edits ``[B,C,h,w]`` of ``z0 [B,C,h,w]``; ValueError for a schedule that is not flow matching's."""
        self.check_schedule(schedule)
        z = z0 = to_state_dtype(z0)
        part = schedule.tail(max(1, round(self.share * len(schedule))))
        draws = draw_noise(z0, len(part) * self.average, self.seed).unflatten(0, (len(part), self.average))
        for i, noises in enumerate(draws):
            _, sigma, _, sigma_next = part.alpha_sigma(i)
            change = torch.zeros_like(z)
            for noise in noises:
                noisy = (1 - sigma) * z0 + sigma * noise
                t = part.timestep(i)
                change += (target(z + noisy - z0, t) - source(noisy, t)) / self.average
            z = z + (sigma_next - sigma) * change
        return z


@dataclass(frozen=True)
class PseudoGuidance:
    """TurboEdit's pseudo-guidance (Deutch et al. 2024, arXiv 2408.00735): the prompt's part of a step, scaled.

    ``x_t`` are independent draws at every level as in edit-friendly inversion, ``mu`` the mean of DDPM's step, and the
    edit ``z`` begins at the noisiest of them::

        z <- x_s + w (mu(z, target) - mu(z, source)) + (mu(z, source) - mu(x_t, source))

    ``w = 1`` is edit-friendly editing with every noise map kept. Where the prompts are equal the edit is the image, for
    every ``w``. The paper's shift of the timesteps, which it needs for SDXL turbo's noise, and its clipping of the last
    map's norm are left out.

    Attributes:
        scale: ``w``; published is 1.5.
        seed: of the draws, the same for every image.
    """

    scale: NonNegativeFloat = 1.5
    seed: RandomSeed = 0

    def guidances(self, guidance: float) -> tuple[float, float]:
        return guidance, guidance

    @torch.no_grad()
    def edit(self, z0: Tensor, source: NoisePredictor, target: NoisePredictor, schedule: Schedule) -> Tensor:
        """The edits ``[B,C,h,w]`` of ``z0 [B,C,h,w]``."""
        z0 = to_state_dtype(z0)
        noisy, mean = diffused(z0, schedule, self.seed), EditFriendly().sampler(schedule)
        z = noisy[0]
        for i, (x, x_next) in enumerate(pairwise([*noisy, z0])):
            plain, own = mean(x, source, i)[0], mean(z, source, i)[0]
            wanted, _ = mean(z, target, i)
            z = x_next + self.scale * (wanted - own) + (own - plain)
        return z
