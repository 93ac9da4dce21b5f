"""Direct inversion: what DDIM inversion gets wrong, stored and added back (Ju et al. 2024, arXiv 2310.01506)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import ddim_path, inversion
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, ddim_step, no_callback
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@dataclass(frozen=True)
class DirectInversion(Inverter):
    """DDIM inversion without guidance, and at each step the offset that brings the guided sampler back to it.

    Exact by construction, at the price of one latent a step: ``aux["offsets"]`` is ``[B,N,C,h,w]``.
    """

    seed_only: ClassVar[bool] = False

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        found, path = ddim_path(z0, predictor.unguided(), schedule, on_step)
        offsets = [
            clean - ddim_step(noisy, predictor, schedule, i) for i, (noisy, clean) in enumerate(pairwise(path[::-1]))
        ]
        aux = {"offsets": torch.stack(offsets, 1)}
        return inversion(found.seed, found.z0, found.nfe + 1, exact=True, seed_only=False, aux=aux)

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        z = inversion.seed
        for i in range(len(schedule)):
            z = ddim_step(z, predictor, schedule, i) + inversion.aux["offsets"][:, i]
        return z
