"""Base class of explicit inversion methods: one pass from the clean latent to the seed, without solving equations."""

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
    """Base class of explicit methods; a subclass implements ``trajectory``, the latents after each step.

    By default the method needs flow matching, is not seed-only and reconstructs with the schedule's own sampler.

    Attributes:
        title: the method's name in error messages.
        needs_flow: whether ``check_schedule`` rejects models without flow matching.
        step_nfe: network evaluations per inversion step.
        start_nfe: network evaluations before the first step.
    """

    title: ClassVar[str]
    needs_flow: ClassVar[bool] = True
    seed_only: ClassVar[bool] = False
    step_nfe: ClassVar[int] = 1
    start_nfe: ClassVar[int] = 0

    @property
    def nfe_per_step(self) -> float:
        """Network evaluations per step, without those before the first step."""
        return float(self.step_nfe)

    @abstractmethod
    def trajectory(self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule) -> Iterator[Tensor]:
        """Yield the latents ``[B,C,h,w]`` after each inversion step, cleanest first."""

    def aux(self, z0: Tensor) -> dict[str, Tensor]:
        """Return what reconstruction needs in addition to the seed."""
        return {}

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if the method needs flow matching and ``schedule`` is not a flow-matching schedule."""
        if self.needs_flow:
            require_flow_matching(schedule, self.title)

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds of ``z0 [B,C,h,w]``; raise ValueError as ``check_schedule``."""
        self.check_schedule(schedule)
        z = z0 = to_state_dtype(z0)
        for k, z in enumerate(self.trajectory(z0, predictor, schedule)):
            on_step(k, z)
        nfe = constant_counts(self.step_nfe, schedule, len(z0))
        nfe[0] += self.start_nfe
        return make_inversion(z, z0, nfe, exact=False, seed_only=self.seed_only, aux=self.aux(z0))

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` of the schedule's own sampler, Euler or DDIM."""
        return sample(inversion.seed, predictor, schedule)
