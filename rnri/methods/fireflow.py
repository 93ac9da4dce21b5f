"""FireFlow: the midpoint rule that reuses the previous step's midpoint velocity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion
from rnri.methods.explicit import ExplicitInverter
from rnri.methods.registry import register_method
from rnri.models.midpoint import timestep_at_sigma
from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@register_method("fireflow", paper="FireFlow, Deng et al. 2024, arXiv 2412.07517", requires="flow")
@dataclass(frozen=True)
class FireFlow(ExplicitInverter):
    """FireFlow (Deng et al. 2024, arXiv 2412.07517).

    In both directions, with the change ``h`` of sigma and the midpoint velocity ``p`` of the previous step::

        v = v(z + h/2 p, sigma + h/2);    z <- z + h v;    p <- v

    At either end ``p`` is initialized with the velocity there, so N steps use N + 1 evaluations. Reconstruction uses
    the same rule; a pipeline's own Euler sampler does not regenerate the image.
    """

    title: ClassVar[str] = "FireFlow"
    start_nfe: ClassVar[int] = 1

    def trajectory(self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule) -> Iterator[Tensor]:
        z = z0
        cleanest = len(schedule) - 1
        velocity = predictor(z, timestep_at_sigma(schedule, cleanest, schedule.alpha_sigma(cleanest)[3]))
        for i in reversed(range(len(schedule))):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            h = sigma - sigma_next
            velocity = predictor(z + h / 2 * velocity, timestep_at_sigma(schedule, i, sigma_next + h / 2))
            z = z + h * velocity
            yield z

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` of FireFlow's sampler."""
        z = inversion.seed
        velocity = predictor(z, schedule.timestep(0))
        for i in range(len(schedule)):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            h = sigma_next - sigma
            velocity = predictor(z + h / 2 * velocity, timestep_at_sigma(schedule, i, sigma + h / 2))
            z = z + h * velocity
        return z
