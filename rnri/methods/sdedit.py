"""SDEdit: adds random noise to the latent and samples from the noisy latent, without any inversion."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import constant_counts, make_inversion
from rnri.methods.noise_maps import diffused
from rnri.methods.registry import register_method
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample, steps_for_strength, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import HalfOpenUnitInterval, RandomSeed, dataclass


@register_method(
    "sdedit",
    paper="SDEdit, Meng et al. 2022, arXiv 2108.01073",
    source="ermongroup/SDEdit@66a5e44 runners/image_editing.py:119-131",
)
@dataclass(frozen=True)
class SDEdit(Inverter):
    """SDEdit (Meng et al. 2022, arXiv 2108.01073): adds noise, and then samples with the last steps of the schedule.

    ``invert`` only adds noise ``n`` to the clean latent ``z_0``, ``z = alpha z_0 + sigma n``, which needs no network
    evaluation. The image that is sampled from the noisy latent is similar to the input image; the similarity decreases
    with larger ``strength``. In the experiments of this project, SDEdit is the baseline without an inversion.

    Attributes:
        strength: fraction, in (0, 1], of the schedule's steps that are sampled
            (:func:`rnri.models.sampling.steps_for_strength`).
        seed: random seed of the noise, which is the same for every image.
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
        """Return an inversion whose seeds are the clean latents ``z0 [B,C,h,w]`` with added noise.

        ``on_step`` is not called.
        """
        z0 = to_state_dtype(z0)
        seed = diffused(z0, self._sampled_steps(schedule).head(1), self.seed)[0]
        return make_inversion(seed, z0, constant_counts(0, schedule, len(z0)), exact=False, seed_only=False)

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that are sampled from the noisy latents."""
        return sample(inversion.seed, predictor, self._sampled_steps(schedule))

    def _sampled_steps(self, schedule: Schedule) -> Schedule:
        return schedule.tail(steps_for_strength(self.strength, len(schedule)))
