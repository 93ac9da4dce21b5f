"""BDIA and O-BELM: two-step samplers that can be inverted exactly.

Each latent of a two-step sampler is a linear combination of the two previous latents and one network prediction.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import check_chain, constant_counts, make_inversion
from rnri.methods.registry import register_method
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import HalfOpenUnitInterval, dataclass

Levels = list[tuple[float, float]]
"""List of noise levels, each a tuple ``(scale, time)`` of values from ``Schedule.scale_and_time``."""


@dataclass(frozen=True)
class TwoStepSampler(Inverter):
    """Base class of samplers with the step ``z_{j-1} = c_far z_{j+1} + c_mid z_j + c_y y(z_j, t_j)``.

    ``j`` is the index of the noise level, 0 at the clean end. ``y`` is the prediction of the network, and the
    coefficients ``c_far``, ``c_mid`` and ``c_y`` depend on ``j``. Solving the equation of a step for ``z_{j+1}``
    inverts the sampler exactly, with one network evaluation per step. The first inversion step, from ``z_0`` to
    ``z_1``, is an explicit DDIM inversion step, because there is no latent ``z_{-1}``. The inversion is exact for any
    value of ``z_1``. The two noisiest latents are stored: the seed and ``aux["neighbor"]``. Every inversion step
    divides by ``c_far``, which magnifies rounding errors; therefore the inversion is computed in float64.
    """

    seed_only: ClassVar[bool] = False

    @property
    def nfe_per_step(self) -> float:
        return 1.0

    @abstractmethod
    def coefficients(self, levels: Levels) -> tuple[float, float, float]:
        """Return the coefficients of the step ``z_{j-1} = c_far z_{j+1} + c_mid z_j + c_y y(z_j)``.

        ``levels`` contains the noise levels with the indices ``j - 1``, ``j`` and ``j + 1``.

        Returns:
            The tuple ``(c_far, c_mid, c_y)``.
        """

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError unless every step of ``schedule`` ends at the noise level where the next step begins."""
        check_chain(schedule, type(self).__name__)

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds (noise latents) of the clean latents ``z0 [B,C,h,w]``.

        Raises:
            ValueError: ``check_schedule`` rejects the schedule.
        """
        self.check_schedule(schedule)
        z0 = to_state_dtype(z0)
        a, b = schedule.coefficients(len(schedule) - 1)
        previous = z0
        z = a * z0 + b * predictor(z0, schedule.timestep(-1))
        on_step(0, z)
        for j in range(1, len(schedule)):
            c_far, c_mid, c_y = self.coefficients(_levels(schedule, j))
            prediction = predictor(z, schedule.timestep(-j))
            z_far = (previous - c_mid * z - c_y * prediction) / c_far
            previous = z
            z = z_far
            on_step(j, z)
        nfe = constant_counts(1, schedule, len(z0))
        return make_inversion(z, z0, nfe, exact=True, seed_only=False, aux={"neighbor": previous})

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that this two-step sampler generates from the stored latents."""
        z_far = inversion.seed
        z = inversion.aux["neighbor"]
        for j in reversed(range(1, len(schedule))):
            c_far, c_mid, c_y = self.coefficients(_levels(schedule, j))
            prediction = predictor(z, schedule.timestep(-j))
            z_clean = c_far * z_far + c_mid * z + c_y * prediction
            z_far = z
            z = z_clean
        return z


def _levels(schedule: Schedule, j: int) -> Levels:
    """Return the noise levels ``j - 1``, ``j`` and ``j + 1`` of ``schedule``, where level 0 is the clean end.

    Each noise level is a tuple ``(scale, time)`` of ``Schedule.scale_and_time``.
    """
    clean_first = [table.flip(0).tolist() for table in schedule.scale_and_time]
    return list(zip(*(table[j - 1 : j + 2] for table in clean_first), strict=True))


@register_method(
    "bdia",
    paper="BDIA, Zhang, Lewis & Kleijn 2023, arXiv 2307.10829",
    source="zituitui/BELM@aa09c5e samplers/BDIA.py:61-73",
)
@dataclass(frozen=True)
class BDIA(TwoStepSampler):
    """Bi-directional integration approximation (Zhang, Lewis & Kleijn 2023, arXiv 2307.10829).

    The sampler is ``z_{j-1} = gamma (z_{j+1} - DDIM(z_j -> j+1)) + DDIM(z_j -> j-1)``, where ``DDIM(z_j -> k)`` is the
    DDIM step from ``z_j`` to noise level ``k``.

    Attributes:
        gamma: weight, in (0, 1], of the latent ``z_{j+1}`` in the step from ``z_j`` to ``z_{j-1}``. Every inversion
            step magnifies rounding errors by ``1 / gamma``; with ``gamma`` 0.5 and 50 steps, the rounding errors are
            magnified by 10^15 in total.
    """

    gamma: HalfOpenUnitInterval = 0.96

    def coefficients(self, levels: Levels) -> tuple[float, float, float]:
        to_clean = _first_order(levels[1], levels[0])
        to_noisy = _first_order(levels[1], levels[2])
        c_mid, c_y = (clean - self.gamma * noisy for clean, noisy in zip(to_clean, to_noisy, strict=True))
        return self.gamma, c_mid, c_y


@register_method(
    "obelm",
    paper="O-BELM, Wang et al. 2024, arXiv 2410.07273",
    source="zituitui/BELM@aa09c5e samplers/BELM.py:61-85",
)
@dataclass(frozen=True)
class OBELM(TwoStepSampler):
    """O-BELM (Wang et al. 2024, arXiv 2410.07273): the two-step sampler with the smallest discretization error.

    With the network's prediction ``y``, the scales ``c`` and times ``tau`` of ``Schedule.scale_and_time``, and
    ``h_j = tau_j - tau_{j-1}``, a step is::

        z_{j-1} = (h_j / h_{j+1})^2 c_{j-1} / c_{j+1} z_{j+1} + (1 - (h_j / h_{j+1})^2) c_{j-1} / c_j z_j
                  - h_j (h_j + h_{j+1}) / h_{j+1} c_{j-1} y(z_j)

    The sampler is second-order accurate.
    """

    def coefficients(self, levels: Levels) -> tuple[float, float, float]:
        scale, time = zip(*levels, strict=True)
        h = time[1] - time[0]
        h_far = time[2] - time[1]
        square = (h / h_far) ** 2
        c_far = square * scale[0] / scale[2]
        c_mid = (1 - square) * scale[0] / scale[1]
        c_y = -h * (h + h_far) / h_far * scale[0]
        return c_far, c_mid, c_y


def _first_order(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Return the factors of the latent and of the prediction in the DDIM or Euler step from ``start`` to ``end``.

    ``start`` and ``end`` are noise levels ``(scale, time)`` of ``Schedule.scale_and_time``.
    """
    scale_start, time_start = start
    scale_end, time_end = end
    return scale_end / scale_start, scale_end * (time_end - time_start)
