"""Direct inversion: stores the error of DDIM inversion for every step, and corrects this error in the sampler."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import ddim_path, make_inversion
from rnri.methods.registry import NO_LICENSE, register_method
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, ddim_step, no_callback
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@register_method("direct", paper="Direct inversion, Ju et al. 2024, arXiv 2310.01506", source=NO_LICENSE)
@dataclass(frozen=True)
class DirectInversion(Inverter):
    """Direct inversion (Ju et al. 2024, arXiv 2310.01506), which is exact by construction.

    The inversion is DDIM inversion without guidance; its latents are called pivots. A sampler step with guidance,
    ``DDIM``, does not lead from a pivot ``pivot_t`` exactly to the next cleaner pivot ``pivot_s``. Therefore the offset
    ``pivot_s - DDIM(pivot_t)`` of every step is stored. The reconstruction adds the offset to the result of the
    sampler's step from ``z_t`` to ``z_s``: ``z_s = DDIM(z_t) + offset``. The offsets are stored as
    ``aux["offsets"] [B,N,C,h,w]``.
    """

    seed_only: ClassVar[bool] = False

    @property
    def nfe_per_step(self) -> float:
        return 2.0

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the DDIM inversion of the clean latents ``z0 [B,C,h,w]`` without guidance.

        ``aux["offsets"]`` contains, for every step, the difference between the next cleaner latent of the inversion and
        the result of the sampler's step with guidance.
        """
        ddim, path = ddim_path(z0, predictor.unguided(), schedule, on_step)
        offsets = [
            clean - ddim_step(noisy, predictor, schedule, i) for i, (noisy, clean) in enumerate(pairwise(path[::-1]))
        ]
        aux = {"offsets": torch.stack(offsets, 1)}
        return make_inversion(ddim.seed, ddim.z0, ddim.nfe + 1, exact=True, seed_only=False, aux=aux)

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` of the sampler, which adds the stored offset after each step."""
        z = inversion.seed
        for i in range(len(schedule)):
            z = ddim_step(z, predictor, schedule, i) + inversion.aux["offsets"][:, i]
        return z
