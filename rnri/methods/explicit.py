"""Base class of explicit inversion methods, which compute every inversion step by a formula instead of a solver."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import constant_counts, make_inversion
from rnri.models.midpoint import require_flow_matching
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@dataclass(frozen=True)
class ExplicitInverter(Inverter):
    """Base class of explicit inversion methods; a subclass implements ``trajectory``.

    By default, an explicit method supports only flow-matching models and reconstructs with the schedule's own sampler
    (Euler or DDIM).

    Attributes:
        title: name of the method in error messages.
        needs_flow: whether ``check_schedule`` rejects schedules that are not flow-matching schedules.
        step_nfe: number of network evaluations per inversion step.
        start_nfe: number of network evaluations before the first inversion step.
    """

    title: ClassVar[str]
    needs_flow: ClassVar[bool] = True
    seed_only: ClassVar[bool] = False
    step_nfe: ClassVar[int] = 1
    start_nfe: ClassVar[int] = 0

    @property
    def nfe_per_step(self) -> float:
        """Number of network evaluations per step, not counting the evaluations before the first inversion step."""
        return float(self.step_nfe)

    @abstractmethod
    def trajectory(self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule) -> Iterator[Tensor]:
        """Yield the latents ``[B,C,h,w]`` after each inversion step, from clean to noisy."""

    def aux(self, z0: Tensor) -> dict[str, Tensor]:
        """Return the tensors, by name, that ``reconstruct`` needs in addition to the seed.

        ``z0 [B,C,h,w]`` are the clean latents that are inverted.
        """
        return {}

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if the method needs flow matching and ``schedule`` is not a flow-matching schedule."""
        if self.needs_flow:
            require_flow_matching(schedule, self.title)

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds (noise latents) of the clean latents ``z0 [B,C,h,w]``.

        Raises:
            ValueError: ``check_schedule`` rejects the schedule.
        """
        self.check_schedule(schedule)
        z = z0 = to_state_dtype(z0)
        for k, z in enumerate(self.trajectory(z0, predictor, schedule)):
            on_step(k, z)
        nfe = constant_counts(self.step_nfe, schedule, len(z0))
        nfe[0] += self.start_nfe
        return make_inversion(z, z0, nfe, exact=False, seed_only=self.seed_only, aux=self.aux(z0))

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that the schedule's own sampler, Euler or DDIM, generates."""
        return sample(inversion.seed, predictor, schedule)
