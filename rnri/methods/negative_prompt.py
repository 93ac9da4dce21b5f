"""Negative-prompt inversion: DDIM inversion that uses the source prompt as the negative prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import ddim_path
from rnri.methods.registry import NO_CODE, register_method
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@register_method(
    "negative_prompt", paper="Negative-prompt inversion, Miyake et al. 2023, arXiv 2305.16807", source=NO_CODE
)
@dataclass(frozen=True)
class NegativePrompt(Inverter):
    """Negative-prompt inversion (Miyake et al. 2023, arXiv 2305.16807).

    The source prompt ``c`` is also the negative prompt. The guided prediction of the reconstruction is then
    ``eps(c) + w (eps(c) - eps(c)) = eps(c)`` for every guidance scale ``w``, where ``eps(c)`` is the network's
    prediction with prompt ``c``. Therefore the reconstruction equals the reconstruction of DDIM inversion without
    guidance. In an edit, guidance leads from the source prompt towards the edited prompt. Only the source prompt has to
    be stored in addition to the seed.
    """

    seed_only: ClassVar[bool] = False

    @property
    def nfe_per_step(self) -> float:
        return 1.0

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the DDIM inversion of the clean latents ``z0 [B,C,h,w]`` without guidance."""
        ddim, _ = ddim_path(z0, predictor.unguided(), schedule, on_step)
        # The residuals are replaced by NaN, because they belong to the step equation without guidance.
        return replace(ddim, seed_only=False, residuals=torch.full_like(ddim.residuals, torch.nan))

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that are sampled without guidance."""
        return sample(inversion.seed, predictor.unguided(), schedule)
