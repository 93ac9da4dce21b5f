"""Rex: exactly reversible exponential Runge-Kutta samplers with two latents."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import check_chain, constant_counts, make_inversion
from rnri.methods.registry import register_method
from rnri.models.midpoint import require_flow_matching, timestep_at_sigma
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import HalfOpenUnitInterval, dataclass

MIN_LEVEL = 2e-4
"""Minimum noise level with ``form="data"``, and minimum signal level with ``form="noise"``, as in the authors' code.

The time variable of Rex is infinite at noise level 0 with ``form="data"``, and at signal level 0 with ``form="noise"``.
"""


class Level(NamedTuple):
    """A noise level: ``alpha`` (signal level), ``sigma`` (noise level) and the timestep that the network receives."""

    alpha: float
    sigma: float
    timestep: int | float


@register_method(
    "rex",
    paper="Rex, Blasingame & Liu 2026, arXiv 2502.08834",
    source="zblasingame/Rex-solver@be056e7 image-experiments/samplers/rex.py:827-930",
)
@dataclass(frozen=True)
class Rex(Inverter):
    """Rex (Blasingame & Liu 2026, arXiv 2502.08834): makes an explicit Runge-Kutta sampler exactly reversible.

    The sampler has two latents, ``x`` and ``y``. A step from the noise level ``t`` to the cleaner level ``s`` is::

        x' = (w_s / w_t) (zeta x + (1 - zeta) y) + w_s Psi(t -> s, y)
        y' = (w_s / w_t) y - w_s Psi(s -> t, x')

    The inversion solves both equations for their inputs, in reverse order::

        y = (w_t / w_s) y' + w_t Psi(s -> t, x')
        x = (w_t / w_s) x' / zeta + (1 - 1 / zeta) y - w_t / zeta Psi(t -> s, y)

    ``Psi(t -> s, x)`` is the increment of a Runge-Kutta step in the variable ``x / w`` and the time ``tau``. With
    ``form="data"``, the step integrates the network's estimate of the clean latent, ``w`` is ``sigma`` and ``tau`` is
    ``alpha / sigma``. With ``form="noise"``, the step integrates the estimate of the noise, ``w`` is ``alpha`` and
    ``tau`` is ``sigma / alpha``. The inversion starts with ``x`` and ``y`` equal to the clean latent ``z_0``. The final
    ``y`` is stored as ``aux["partner"]``. The inversion is computed in float64, because a step divides by ``zeta`` and
    by ``w``, which magnifies rounding errors.

    As in the authors' code, ``w`` is at least 2e-4. In flow matching, a noise level whose ``w`` is below 2e-4 is
    replaced by the level with ``w = 2e-4``, and the network receives the timestep of the replacement.

    Attributes:
        tableau: Runge-Kutta method: ``euler``, or the second-order ``midpoint`` rule, which needs a flow-matching model
            because it evaluates the network between two timesteps.
        form: whether the network's estimate of the clean latent (``data``) or of the noise (``noise``) is integrated.
        zeta: weight, in (0, 1], of the latent ``x`` in the mixture ``zeta x + (1 - zeta) y`` of the two latents.
    """

    tableau: Literal["euler", "midpoint"] = "euler"
    form: Literal["data", "noise"] = "data"
    zeta: HalfOpenUnitInterval = 0.999

    seed_only: ClassVar[bool] = False

    @property
    def stages(self) -> int:
        """Number of network evaluations of one Runge-Kutta step."""
        return 1 if self.tableau == "euler" else 2

    @property
    def nfe_per_step(self) -> float:
        """Number of network evaluations per step of the sampler, which consists of two Runge-Kutta steps."""
        return 2.0 * self.stages

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError unless the steps are contiguous and, for the midpoint rule, the model uses flow matching."""
        check_chain(schedule, "Rex")
        if self.tableau == "midpoint":
            require_flow_matching(schedule, "Rex with tableau=midpoint")

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds (noise latents) of the clean latents ``z0 [B,C,h,w]``.

        Both of Rex's latents start at ``z0``.

        Raises:
            ValueError: ``check_schedule`` rejects the schedule.
        """
        self.check_schedule(schedule)
        z0 = to_state_dtype(z0)
        levels = self._levels(schedule)
        x = y = z0
        for k, i in enumerate(reversed(range(len(schedule)))):
            noisy, clean = levels[i], levels[i + 1]
            w_t, w_s = self._weight(noisy), self._weight(clean)
            y = w_t / w_s * y + w_t * self._increment(x, clean, noisy, predictor, schedule=schedule)
            increment = self._increment(y, noisy, clean, predictor, schedule=schedule)
            x = w_t / w_s * x / self.zeta + (1 - 1 / self.zeta) * y - w_t / self.zeta * increment
            on_step(k, x)
        nfe = constant_counts(2 * self.stages, schedule, len(z0))
        return make_inversion(x, z0, nfe, exact=True, seed_only=False, aux={"partner": y})

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that Rex samples from the two stored latents."""
        levels = self._levels(schedule)
        x = inversion.seed
        y = inversion.aux["partner"]
        for i in range(len(schedule)):
            noisy, clean = levels[i], levels[i + 1]
            w_t, w_s = self._weight(noisy), self._weight(clean)
            mixed = self.zeta * x + (1 - self.zeta) * y
            x = w_s / w_t * mixed + w_s * self._increment(y, noisy, clean, predictor, schedule=schedule)
            y = w_s / w_t * y - w_s * self._increment(x, clean, noisy, predictor, schedule=schedule)
        return x

    def _increment(
        self, z: Tensor, start: Level, end: Level, predictor: NoisePredictor, *, schedule: Schedule
    ) -> Tensor:
        """Return ``Psi(start -> end, z)``, the increment of ``z / w`` in one Runge-Kutta step, ``[B,C,h,w]``.

        ``w`` is the noise level (``form="data"``) or the signal level (``form="noise"``) of ``z``.
        """
        h = self._time(end) - self._time(start)
        slope = self._estimate(z, start, predictor, schedule)
        if self.tableau == "euler":
            return h * slope
        middle = self._level_at(self._time(start) + h / 2, schedule)
        scaled = z / self._weight(start) + h / 2 * slope
        return h * self._estimate(self._weight(middle) * scaled, middle, predictor, schedule)

    def _estimate(self, z: Tensor, level: Level, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the network's estimate of the clean latent (``form="data"``) or of the noise (``form="noise"``)."""
        prediction = predictor(z, level.timestep)
        alpha, sigma, _ = level
        if schedule.predicts == "epsilon":
            return (z - sigma * prediction) / alpha if self.form == "data" else prediction
        if self.form == "data":
            return (z - sigma * prediction) / (alpha + sigma)
        return (z + alpha * prediction) / (alpha + sigma)

    def _weight(self, level: Level) -> float:
        return level.sigma if self.form == "data" else level.alpha

    def _time(self, level: Level) -> float:
        return level.alpha / level.sigma if self.form == "data" else level.sigma / level.alpha

    def _level_at(self, time: float, schedule: Schedule) -> Level:
        """Return the noise level of flow matching at which Rex's time variable equals ``time``.

        The time variable is ``alpha / sigma`` with ``form="data"``, and ``sigma / alpha`` with ``form="noise"``.
        """
        sigma = 1 / (1 + time) if self.form == "data" else time / (1 + time)
        return Level(1 - sigma, sigma, timestep_at_sigma(schedule, 0, sigma))

    def _levels(self, schedule: Schedule) -> list[Level]:
        """Return the noise levels before each step and after the last step, from noisy to clean.

        A level whose noise level (``form="data"``) or signal level (``form="noise"``) is below ``MIN_LEVEL`` is
        replaced by the level at ``MIN_LEVEL``.
        """
        is_flow = schedule.predicts == "flow"
        numbers = [schedule.alpha_sigma(i) for i in range(len(schedule))]
        pairs = [(alpha, sigma) for alpha, sigma, _, _ in numbers] + [numbers[-1][2:]]
        levels = []
        for i, (alpha, sigma) in enumerate(pairs):
            weight = max(sigma if self.form == "data" else alpha, MIN_LEVEL)
            other = 1 - weight if is_flow else math.sqrt(1 - weight**2)
            if weight == MIN_LEVEL:
                alpha, sigma = (other, weight) if self.form == "data" else (weight, other)
            levels.append(Level(alpha, sigma, _timestep(schedule, i, sigma)))
        return levels


def _timestep(schedule: Schedule, i: int, sigma: float) -> int | float:
    """Return the network's timestep before step ``i``, or after the last step if ``i == len(schedule)``.

    For flow matching, the timestep is computed from the noise level ``sigma``.
    """
    if schedule.predicts == "flow":
        return timestep_at_sigma(schedule, 0, sigma)
    return schedule.timestep(i) if i < len(schedule) else 0


@register_method(
    "rex_midpoint",
    paper="Rex, Blasingame & Liu 2026, arXiv 2502.08834, midpoint rule",
    source="zblasingame/Rex-solver@be056e7 image-experiments/samplers/rex.py:827-930",
    requires="flow",
)
def rex_midpoint() -> Rex:
    """Return Rex with the midpoint rule, which evaluates the network twice per step for each of the two latents."""
    return Rex(tableau="midpoint")
