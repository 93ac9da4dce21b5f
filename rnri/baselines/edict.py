"""EDICT: exact inversion by two coupled latents (Wallace et al. 2023, arXiv 2211.12446)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from checked import Fraction, dataclass
from rnri.baselines.common import evenly, inversion
from rnri.inversion import Inversion
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentObserver, ignore, in_state_dtype
from rnri.models.schedule import Schedule


@dataclass(frozen=True)
class EDICT:
    """A sampler over a pair ``(x, y)`` whose every step can be undone algebraically.

    With ``a = 1 / A`` and ``b = -B / A`` of the DDIM step::

        x' = a x + b eps(y);  y' = a y + b eps(x');  x = p x' + (1 - p) y';  y = p y' + (1 - p) x

    The roles of ``x`` and ``y`` alternate by the step's index in the schedule, the same both ways, so that any
    number of steps is undone. Un-mixing divides by ``p`` twice a step (0.93^-100 is about 1,400 at 50 steps),
    hence float64. The seed alone does not reconstruct: the second latent is kept.

    Attributes:
        mix: p, in (0, 1]; 1 does not mix, and the two latents drift apart.
    """

    mix: Fraction = 0.93

    single_latent: ClassVar[bool] = False

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentObserver = ignore
    ) -> Inversion:
        x = y = z0 = in_state_dtype(z0)
        p = self.mix
        for k, i in enumerate(reversed(range(len(schedule)))):
            (a, b), t = schedule.coefficients(i), int(schedule.timesteps[i])
            if i % 2:
                x, y = y, x
            y = (y - (1 - p) * x) / p
            x = (x - (1 - p) * y) / p
            y = a * y + b * predictor(x, t)
            x = a * x + b * predictor(y, t)
            if i % 2:
                x, y = y, x
            on_step(k, x)
        return inversion(x, z0, evenly(2, schedule, len(z0)), exact=True, single_latent=False, extra={"partner": y})

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        x, y, p = inversion.seed, inversion.extra["partner"], self.mix
        for i in range(len(schedule)):
            (a, b), t = schedule.coefficients(i), int(schedule.timesteps[i])
            if i % 2:
                x, y = y, x
            x = (x - b * predictor(y, t)) / a
            y = (y - b * predictor(x, t)) / a
            x = p * x + (1 - p) * y
            y = p * y + (1 - p) * x
            if i % 2:
                x, y = y, x
        return x
