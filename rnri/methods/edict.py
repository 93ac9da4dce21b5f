"""EDICT: exact inversion by two coupled latents (Wallace et al. 2023, arXiv 2211.12446)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import evenly, inversion
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import HalfOpenUnitInterval, dataclass


@dataclass(frozen=True)
class EDICT(Inverter):
    """A sampler over a pair ``(x, y)`` whose every step can be undone algebraically.

    With ``a = 1 / A`` and ``b = -B / A`` of the DDIM step::

        x' = a x + b eps(y);  y' = a y + b eps(x');  x = p x' + (1 - p) y';  y = p y' + (1 - p) x

    As in the authors' code, ``y`` takes its network step before ``x`` at every second step from the noisy end, and the
    mixing of the last two equations always begins with ``x``. The order goes by the step's place in the schedule, the
    same both ways, so that any number of steps is undone (diffusers' community pipeline counts from the start of each
    walk, and undoes even numbers only). Un-mixing divides by ``p`` twice a step (0.93^-100 is about 1,400 at 50
    steps), hence float64. The seed alone does not reconstruct: the second latent is kept, ``aux["partner"]``.

    Attributes:
        mix: p, in (0, 1]; 1 does not mix, and the two latents drift apart.
    """

    mix: HalfOpenUnitInterval = 0.93

    seed_only: ClassVar[bool] = False

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of ``z0 [B,C,h,w]``, both latents of a pair being ``z0`` at the clean end."""
        z0, p = to_state_dtype(z0), self.mix
        x = y = z0
        for k, i in enumerate(reversed(range(len(schedule)))):
            (a, b), t = schedule.coefficients(i), schedule.timestep(i)
            y = (y - (1 - p) * x) / p
            pair = [(x - (1 - p) * y) / p, y]
            for moved, seen in reversed(_order(i)):
                pair[moved] = a * pair[moved] + b * predictor(pair[seen], t)
            x, y = pair
            on_step(k, x)
        return inversion(x, z0, evenly(2, schedule, len(z0)), exact=True, seed_only=False, aux={"partner": y})

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        x, y, p = inversion.seed, inversion.aux["partner"], self.mix
        for i in range(len(schedule)):
            (a, b), t = schedule.coefficients(i), schedule.timestep(i)
            pair = [x, y]
            for moved, seen in _order(i):
                pair[moved] = (pair[moved] - b * predictor(pair[seen], t)) / a
            x = p * pair[0] + (1 - p) * pair[1]
            y = p * pair[1] + (1 - p) * x
        return x


def _order(i: int) -> list[tuple[int, int]]:
    """The network steps of the sampler's step ``i``: which of ``(x, y)`` moves, and which the network sees."""
    x_first = [(0, 1), (1, 0)]
    return x_first[::-1] if i % 2 else x_first
