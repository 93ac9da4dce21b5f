"""FireFlow: the midpoint rule with one evaluation per step, which reuses the midpoint velocity of the previous step."""

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


@register_method(
    "fireflow",
    paper="FireFlow, Deng et al. 2024, arXiv 2412.07517",
    source=(
        "HolmesShuan/FireFlow-Fast-Inversion-of-Rectified-Flow-for-Image-Semantic-Editing@98588a6 "
        "src/flux/sampling.py:208-246"
    ),
    requires="flow",
)
@dataclass(frozen=True)
class FireFlow(ExplicitInverter):
    """FireFlow (Deng et al. 2024, arXiv 2412.07517), an inversion method and a sampler for flow matching.

    Inversion and reconstruction use the same step::

        v = v(z + h/2 p, sigma + h/2);    z <- z + h v;    p <- v

    Here ``v(z, sigma)`` is the velocity that the network predicts, ``h`` is the change of sigma in the step, and ``p``
    is the midpoint velocity of the previous step. Before the first step, ``p`` is the velocity at the initial latent,
    so that N steps use N + 1 network evaluations. The pipeline's own Euler sampler does not regenerate the image from
    FireFlow's seed.
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
        """Return the clean latents ``[B,C,h,w]`` that FireFlow's sampler generates."""
        z = inversion.seed
        velocity = predictor(z, schedule.timestep(0))
        for i in range(len(schedule)):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            h = sigma_next - sigma
            velocity = predictor(z + h / 2 * velocity, timestep_at_sigma(schedule, i, sigma + h / 2))
            z = z + h * velocity
        return z
