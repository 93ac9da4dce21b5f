"""Exact inversion of the midpoint sampler of flow matching."""

from __future__ import annotations

from dataclasses import field, replace
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import ImplicitInverter, Inversion, Inverter
from rnri.methods.accelerated import anderson_inverter
from rnri.methods.registry import register_method
from rnri.models.midpoint import MidpointPredictor, require_flow_matching
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@register_method("midpoint", paper="ours", requires="flow")
@dataclass(frozen=True)
class Midpoint(Inverter):
    """A method of this project: solves the step equation of the midpoint sampler with an ``ImplicitInverter``.

    The step equation is ``z_t = z_s + (sigma_t - sigma_s) y(z_t)``, where ``sigma_t`` and ``sigma_s`` are the noise
    levels before and after the sampler's step, and ``y`` is the midpoint velocity of ``MidpointPredictor``. All
    settings of ``ImplicitInverter`` can be used. Each evaluation of ``y`` needs two network evaluations, and both are
    counted. Because the midpoint sampler is second-order, its seeds have a norm that is typical of Gaussian noise even
    with few steps. The inversion is exact if the step equations are solved exactly.

    Reconstruction needs the midpoint sampler; the pipeline's own Euler sampler does not regenerate the image from the
    seed. ``Inversion.residuals`` is NaN, because residuals are defined by the step equation of the Euler sampler.
    ``Inversion.solved`` marks the inversion steps whose residual is at most the ``tolerance`` of the solver.

    Attributes:
        inverter: solves the step equation. The ``iterations`` of the solver limit the number of evaluations of ``y``,
            not of the network.
    """

    inverter: ImplicitInverter = field(default_factory=anderson_inverter)

    seed_only: ClassVar[bool] = False

    @property
    def nfe_per_step(self) -> float:
        """Number of network evaluations per step: twice that of ``inverter``, because a midpoint velocity needs two."""
        return 2 * self.inverter.nfe_per_step

    def with_nfe(self, nfe: int) -> Midpoint:
        """Return a copy that uses at most ``nfe`` network evaluations per step.

        Raises:
            ValueError: ``nfe`` is odd.
        """
        if nfe % 2:
            raise ValueError(f"Midpoint needs an even number of network evaluations per step, got {nfe}.")
        return replace(self, inverter=self.inverter.with_nfe(nfe // 2))

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError unless ``schedule`` is a flow-matching schedule."""
        require_flow_matching(schedule, "the midpoint rule")

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds (noise latents) of the clean latents ``z0 [B,C,h,w]``.

        Raises:
            ValueError: ``check_schedule`` rejects the schedule.
        """
        midpoint = MidpointPredictor.from_predictor(predictor, schedule)
        inversion = self.inverter.invert(z0, midpoint, schedule, on_step)
        return replace(
            inversion,
            residuals=torch.full_like(inversion.residuals, torch.nan),
            nfe=2 * inversion.nfe,
            backward=2 * inversion.backward,
            seed_only=False,
        )

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that the midpoint sampler generates."""
        return sample(inversion.seed, MidpointPredictor.from_predictor(predictor, schedule), schedule)
