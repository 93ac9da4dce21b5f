"""RF-Solver: the explicit midpoint rule for inversion and for sampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion
from rnri.methods.explicit import ExplicitInverter
from rnri.methods.registry import register_method
from rnri.models.midpoint import MidpointPredictor, timestep_at_sigma
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import sample
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@register_method(
    "rf_solver",
    paper="RF-Solver, Wang et al. 2024, arXiv 2411.04746",
    source="wangjiangshan0725/RF-Solver-Edit@3388e29 FLUX_Image_Edit/src/flux/sampling.py:118-134",
    requires="flow",
)
@dataclass(frozen=True)
class RFSolver(ExplicitInverter):
    """RF-Solver (Wang et al. 2024, arXiv 2411.04746), with two network evaluations per step.

    Inversion and reconstruction use the same step ``z <- z + h v(z + h/2 v(z, sigma), sigma + h/2)``, where ``v`` is
    the velocity that the network predicts and ``h`` is the change of sigma. The paper writes the step as a second-order
    Taylor expansion whose derivative is a finite difference over half a step, which is the same formula. The pipeline's
    own Euler sampler does not regenerate the image from the seed.
    """

    title: ClassVar[str] = "RF-Solver"
    step_nfe: ClassVar[int] = 2

    def trajectory(self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule) -> Iterator[Tensor]:
        z = z0
        for i in reversed(range(len(schedule))):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            h = sigma - sigma_next
            midpoint = z + h / 2 * predictor(z, timestep_at_sigma(schedule, i, sigma_next))
            z = z + h * predictor(midpoint, timestep_at_sigma(schedule, i, sigma_next + h / 2))
            yield z

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that the midpoint sampler generates."""
        return sample(inversion.seed, MidpointPredictor.from_predictor(predictor, schedule), schedule)
