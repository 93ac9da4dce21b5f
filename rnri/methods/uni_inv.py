"""Uni-Inv: one network evaluation per step, at an extrapolated latent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from rnri.methods.explicit import ExplicitInverter
from rnri.methods.registry import register_method
from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@register_method("uni_inv", paper="Uni-Inv, Jiao et al. 2025, arXiv 2504.13109")
@dataclass(frozen=True)
class UniInv(ExplicitInverter):
    """Uni-Inv (Jiao et al. 2025, UniEdit-Flow, arXiv 2504.13109).

    From the clean end, with the prediction ``y`` of the previous step::

        guess = A z_s + B y;    y <- y(guess, t);    z_t = A z_s + B y

    Before the first step ``y`` is the prediction at ``z_0`` and timestep 0, so N steps use N + 1 evaluations. In flow
    matching ``A = 1`` and ``B = sigma_t - sigma_s``, as published; ``Schedule.coefficients`` extend the method to DDIM.
    The sampler is the schedule's own (Euler or DDIM), so the method is seed-only. Its error is that of one explicit
    evaluation per step.
    """

    title: ClassVar[str] = "Uni-Inv"
    needs_flow: ClassVar[bool] = False
    seed_only: ClassVar[bool] = True
    start_nfe: ClassVar[int] = 1

    def trajectory(self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule) -> Iterator[Tensor]:
        z = z0
        prediction = predictor(z, 0 if schedule.predicts == "epsilon" else 0.0)
        for i in reversed(range(len(schedule))):
            a, b = schedule.coefficients(i)
            prediction = predictor(a * z + b * prediction, schedule.timestep(i))
            z = a * z + b * prediction
            yield z
