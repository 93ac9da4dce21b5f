"""Exact two-step samplers, BDIA and O-BELM: each latent is linear in the two before it and one prediction."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import check_chain, evenly, inversion
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import HalfOpenUnitInterval, dataclass

Levels = list[tuple[float, float]]
"""Noise levels as ``Schedule.scale_and_time`` gives them."""


@dataclass(frozen=True)
class TwoStepSampler(Inverter):
    """``z_{j-1} = c_far z_{j+1} + c_mid z_j + c_y y(z_j, t_j)``, ``j`` counting noise levels from clean (0).

    ``y`` is what the schedule's predictor returns. Solved for ``z_{j+1}``, the same equation inverts exactly, one
    evaluation a step. The first inversion step, ``z_0`` to ``z_1``, has no ``z_{-1}`` and is an explicit DDIM
    inversion step; whatever it gives, the sampler leads back to ``z_0``. The two noisiest latents are kept. Inverting
    divides by ``c_far`` every step, which magnifies rounding, hence float64.
    """

    seed_only: ClassVar[bool] = False

    @abstractmethod
    def coefficients(self, levels: Levels) -> tuple[float, float, float]:
        """``(c_far, c_mid, c_y)`` from the levels ``j - 1``, ``j`` and ``j + 1``."""

    def check_schedule(self, schedule: Schedule) -> None:
        """ValueError for a schedule whose steps do not join."""
        check_chain(schedule, type(self).__name__)

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of ``z0 [B,C,h,w]``; ValueError for a schedule whose steps do not join."""
        self.check_schedule(schedule)
        z0 = to_state_dtype(z0)
        a, b = schedule.coefficients(len(schedule) - 1)
        before, z = z0, a * z0 + b * predictor(z0, schedule.timestep(-1))
        on_step(0, z)
        for j in range(1, len(schedule)):
            far, mid, gain = self.coefficients(_levels(schedule, j))
            noise = predictor(z, schedule.timestep(-j))
            before, z = z, (before - mid * z - gain * noise) / far
            on_step(j, z)
        return inversion(z, z0, evenly(1, schedule, len(z0)), exact=True, seed_only=False, aux={"perturb": before})

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        far_z, z = inversion.seed, inversion.aux["perturb"]
        for j in reversed(range(1, len(schedule))):
            far, mid, gain = self.coefficients(_levels(schedule, j))
            noise = predictor(z, schedule.timestep(-j))
            far_z, z = z, far * far_z + mid * z + gain * noise
        return z


def _levels(schedule: Schedule, j: int) -> Levels:
    """The levels ``j - 1``, ``j``, ``j + 1``; level 0 is the clean end."""
    clean_first = [table.flip(0).tolist() for table in schedule.scale_and_time]
    return list(zip(*(table[j - 1 : j + 2] for table in clean_first), strict=True))


@dataclass(frozen=True)
class BDIA(TwoStepSampler):
    """Bi-directional integration approximation (Zhang, Lewis & Kleijn 2023, arXiv 2307.10829).

    ``z_{j-1} = gamma (z_{j+1} - DDIM(z_j -> j+1)) + DDIM(z_j -> j-1)``.

    Attributes:
        gamma: in (0, 1]. Inversion magnifies rounding by ``1 / gamma`` a step: 0.5 gives 10^15 at 50 steps.
    """

    gamma: HalfOpenUnitInterval = 0.96

    def coefficients(self, levels: Levels) -> tuple[float, float, float]:
        to_clean, to_noisy = _first_order(levels[1], levels[0]), _first_order(levels[1], levels[2])
        mid, prediction = (c - self.gamma * n for c, n in zip(to_clean, to_noisy, strict=True))
        return self.gamma, mid, prediction


@dataclass(frozen=True)
class OBELM(TwoStepSampler):
    """O-BELM, of all such samplers the most accurate (Wang et al. 2024, arXiv 2410.07273): second order."""

    def coefficients(self, levels: Levels) -> tuple[float, float, float]:
        scale, time = zip(*levels, strict=True)
        h, h_far = time[1] - time[0], time[2] - time[1]
        square = (h / h_far) ** 2
        far = square * scale[0] / scale[2]
        mid = (1 - square) * scale[0] / scale[1]
        return far, mid, -h * (h + h_far) / h_far * scale[0]


def _first_order(at: tuple[float, float], to: tuple[float, float]) -> tuple[float, float]:
    """Factors of ``z`` and ``y`` in the step from the level ``at`` to the level ``to``, DDIM's or Euler's."""
    (scale, time), (scale_to, time_to) = at, to
    return scale_to / scale, scale_to * (time_to - time)
