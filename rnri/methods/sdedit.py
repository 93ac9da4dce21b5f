"""SDEdit: adds noise and samples again, without any inversion."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import constant_counts, make_inversion
from rnri.methods.noise_maps import diffused
from rnri.methods.registry import register_method
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import HalfOpenUnitInterval, RandomSeed, dataclass


@register_method("sdedit", paper="SDEdit, Meng et al. 2022, arXiv 2108.01073")
@dataclass(frozen=True)
class SDEdit(Inverter):
    """SDEdit (Meng et al. 2022, arXiv 2108.01073): noise up to a part of the schedule, then the plain sampler.

    It needs no network evaluation and returns a similar image, less similar with larger ``strength``. It is the
    baseline without an inversion.

    Attributes:
        strength: fraction of the schedule's steps in (0, 1], rounded to the nearest step, at least one. Diffusers'
            image-to-image pipelines round down instead.
        seed: of the noise, which is the same for every image.
    """

    strength: HalfOpenUnitInterval = 0.8
    seed: RandomSeed = 0

    seed_only: ClassVar[bool] = False

    @property
    def nfe_per_step(self) -> float:
        return 0.0

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the noised latents of ``z0 [B,C,h,w]`` as seeds; ``on_step`` is not called."""
        z0 = to_state_dtype(z0)
        seed = diffused(z0, self._sampled_steps(schedule).head(1), self.seed)[0]
        return make_inversion(seed, z0, constant_counts(0, schedule, len(z0)), exact=False, seed_only=False)

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that are sampled in the cleanest part of the schedule."""
        return sample(inversion.seed, predictor, self._sampled_steps(schedule))

    def _sampled_steps(self, schedule: Schedule) -> Schedule:
        return schedule.tail(max(1, round(self.strength * len(schedule))))
