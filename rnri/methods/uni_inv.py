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

    The inversion steps run from clean to noisy. Each inversion step computes::

        guess = A z_s + B y;    y <- y(guess, t);    z_t = A z_s + B y

    In the first equation, ``y`` is the network's prediction in the previous inversion step. Before the first step,
    ``y`` is the prediction at ``z_0`` and timestep 0, so that N steps use N + 1 evaluations. For flow matching,
    ``A = 1`` and ``B = sigma_t - sigma_s`` as in the paper. With the ``A`` and ``B`` of ``Schedule.coefficients``, the
    method also applies to DDIM. Reconstruction uses the schedule's own sampler (Euler or DDIM), so that the method is
    seed-only. The inversion is not exact, because each step equation is solved with only one evaluation.
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
