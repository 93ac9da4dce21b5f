"""Wrapper that uses the seeds of a second-order sampler with the schedule's own first-order sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter, check_schedule
from rnri.methods.fireflow import FireFlow
from rnri.methods.midpoint import Midpoint
from rnri.methods.registry import register_method
from rnri.methods.slerp_flow import SlerpFlow
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@dataclass(frozen=True)
class SeedOnly(Inverter):
    """Computes the seeds with ``inverter``, and reconstructs with the schedule's own sampler.

    The Euler sampler does not regenerate the image from the seed of a second-order sampler. However, the seed of a
    second-order sampler is closer to the seed of the exact ODE trajectory than the seed of the Euler sampler. The seed
    of a second-order sampler may therefore be a better start for NAO and SeedSelect, which optimize seeds and do not
    need the exact image.

    Attributes:
        inverter: an inversion method that stores no tensors in addition to the seed.
    """

    inverter: Inverter

    seed_only: ClassVar[bool] = True

    @property
    def nfe_per_step(self) -> float:
        """Number of network evaluations of ``inverter`` per step."""
        return self.inverter.nfe_per_step

    def with_nfe(self, nfe: int) -> SeedOnly:
        """Return a copy whose ``inverter`` uses at most ``nfe`` network evaluations per step."""
        return replace(self, inverter=self.inverter.with_nfe(nfe))

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if ``inverter`` does not support ``schedule``."""
        check_schedule(self.inverter, schedule)

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds (noise latents) of the clean latents ``z0``, with every inversion step marked as not solved.

        Raises:
            ValueError: ``inverter`` stores tensors in addition to the seed.
        """
        inversion = self.inverter.invert(z0, predictor, schedule, on_step)
        if inversion.aux:
            raise ValueError(
                f"{type(self.inverter).__name__} stores {', '.join(inversion.aux)} in addition to the seed; "
                "choose a method that stores only the seed."
            )
        return replace(inversion, seed_only=True, solved=torch.zeros_like(inversion.solved))

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that the schedule's own sampler generates."""
        return sample(inversion.seed, predictor, schedule)


register_method("fireflow_seed", lambda: SeedOnly(FireFlow()), paper="seeds of `fireflow`", requires="flow")
register_method("slerp_flow_seed", lambda: SeedOnly(SlerpFlow()), paper="seeds of `slerp_flow`", requires="flow")
register_method("midpoint_seed", lambda: SeedOnly(Midpoint()), paper="seeds of `midpoint`", requires="flow")
