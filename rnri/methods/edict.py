"""EDICT: exact inversion with two coupled latents."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import constant_counts, make_inversion
from rnri.methods.registry import register_method
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import HalfOpenUnitInterval, dataclass


@register_method(
    "edict",
    paper="EDICT, Wallace et al. 2023, arXiv 2211.12446",
    source="huggingface/diffusers@16f4789 examples/community/edict_pipeline.py:73-128",
)
@dataclass(frozen=True)
class EDICT(Inverter):
    """EDICT (Wallace et al. 2023, arXiv 2211.12446): a sampler of two coupled latents ``x`` and ``y``.

    A step of the sampler consists of four equations, each of which can be solved for its input::

        x' = a x + b eps(y);  y' = a y + b eps(x');  x = p x' + (1 - p) y';  y = p y' + (1 - p) x

    Here ``eps`` is the network's prediction, ``p`` is ``mix``, ``a = 1 / A`` and ``b = -B / A`` with the coefficients
    ``A`` and ``B`` of the DDIM step. The last two equations of a step are called the mixing. As in the authors' code,
    every second step, counted from the noisy end, computes ``y'`` before ``x'``; the mixing computes ``x`` first in all
    steps. Sampling and inversion both count the steps from the noisy end. An inversion step therefore uses the order of
    the sampling step that it reverses, for even and odd numbers of steps. Diffusers' community pipeline of EDICT counts
    the inversion steps from the clean end, so that it can invert only an even number of steps.

    The inversion is computed in float64, because inverting the mixing divides by ``p`` twice per step, which magnifies
    rounding errors. With ``p = 0.93`` and 50 steps, rounding errors are magnified by 0.93^-100, about 1,400. The final
    ``y`` is stored as ``aux["partner"]``.

    Attributes:
        mix: the weight ``p`` of the mixing, in (0, 1]. With ``mix`` 1, the two latents are not mixed and drift apart.
    """

    mix: HalfOpenUnitInterval = 0.93

    seed_only: ClassVar[bool] = False

    @property
    def nfe_per_step(self) -> float:
        return 2.0

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds (noise latents) of the clean latents ``z0 [B,C,h,w]``.

        Both of EDICT's coupled latents start at ``z0``.
        """
        z0 = to_state_dtype(z0)
        p = self.mix
        x = y = z0
        for k, i in enumerate(reversed(range(len(schedule)))):
            a, b = schedule.coefficients(i)
            t = schedule.timestep(i)
            y = (y - (1 - p) * x) / p
            x = (x - (1 - p) * y) / p
            pair = [x, y]
            for updated, other in reversed(_update_order(i)):
                pair[updated] = a * pair[updated] + b * predictor(pair[other], t)
            x, y = pair
            on_step(k, x)
        nfe = constant_counts(2, schedule, len(z0))
        return make_inversion(x, z0, nfe, exact=True, seed_only=False, aux={"partner": y})

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that EDICT's sampler generates."""
        p = self.mix
        x = inversion.seed
        y = inversion.aux["partner"]
        for i in range(len(schedule)):
            a, b = schedule.coefficients(i)
            t = schedule.timestep(i)
            pair = [x, y]
            for updated, other in _update_order(i):
                pair[updated] = (pair[updated] - b * predictor(pair[other], t)) / a
            x = p * pair[0] + (1 - p) * pair[1]
            y = p * pair[1] + (1 - p) * x
        return x


def _update_order(i: int) -> list[tuple[int, int]]:
    """Return the two updates of sampling step ``i`` in the order in which the sampler computes them.

    Each update is a pair of indices, 0 for EDICT's latent ``x`` and 1 for its latent ``y``: first the latent that is
    updated, then the latent that the network receives.
    """
    x_first = [(0, 1), (1, 0)]
    return x_first[::-1] if i % 2 else x_first
