"""First-order inversion methods that were made for flow matching: Uni-Inv and RF-Inversion."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import Inversion, Inverter
from rnri.methods.common import evenly, inversion
from rnri.methods.edit_friendly_ddpm import draw_noise
from rnri.models.midpoint import require_flow_matching, timestep_at_sigma
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, ddim_step, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import RandomSeed, UnitInterval, dataclass


@dataclass(frozen=True)
class UniInv(Inverter):
    """Uni-Inv (Jiao et al. 2025, UniEdit-Flow, arXiv 2504.13109): one evaluation a step at an extrapolated latent.

    From the clean end, with the prediction ``y`` of the step before::

        guess = A z_s + B y;    y <- y(guess, t);    z_t = A z_s + B y

    Before the first step ``y`` is the prediction at ``z_0`` and label 0, so that N steps take N + 1 evaluations. With
    flow matching ``A = 1`` and ``B = sigma_t - sigma_s``, as published; the coefficients of
    ``Schedule.coefficients`` make it DDIM's too. The sampler is Euler's (DDIM's), so the seed alone leads back, as
    near as one evaluation comes to the equation's root.
    """

    seed_only: ClassVar[bool] = True

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of ``z0 [B,C,h,w]``."""
        z = z0 = to_state_dtype(z0)
        prediction = predictor(z, 0 if schedule.predicts == "epsilon" else 0.0)
        for k, i in enumerate(reversed(range(len(schedule)))):
            a, b = schedule.coefficients(i)
            prediction = predictor(a * z + b * prediction, schedule.timestep(i))
            z = a * z + b * prediction
            on_step(k, z)
        nfe = evenly(1, schedule, len(z0))
        nfe[0] += 1
        return inversion(z, z0, nfe, exact=False, seed_only=True)

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Euler's (DDIM's) sampler from the seed."""
        return sample(inversion.seed, predictor, schedule)


@dataclass(frozen=True)
class RFInversion(Inverter):
    """RF-Inversion (Rout et al. 2024, arXiv 2410.10792): both ways steered towards where they should end.

    With flow matching's velocity ``v = n - x0``, noise ``y1`` and Euler's steps at the latent that each begins with::

        inversion:       v + gamma ((y1 - z) / (1 - sigma) - v),   sigma from 0 up
        reconstruction:  v + eta   ((z - z_0) / sigma - v),        sigma down; eta only from start to stop

    As published, inversion is in the empty prompt without guidance: of a guided predictor that is its negative
    condition. One without guidance holds no empty prompt, and is taken as it is. ``z_0`` itself is kept for the
    reconstruction, ``aux["clean"]``: that steered sampler is its own, and the seed alone does not lead back.

    Attributes:
        gamma: how far inversion is drawn to ``y1``; 0 is explicit Euler, 1 ends in ``y1`` itself.
        eta: how far the controlled steps of the reconstruction are drawn to ``z_0``.
        start, stop: the controlled steps, as shares of the schedule from its noisy end; published are 7 of 28.
        seed: of ``y1``, which is the same for every image.
    """

    gamma: UnitInterval = 0.5
    eta: UnitInterval = 0.9
    start: UnitInterval = 0.0
    stop: UnitInterval = 0.25
    seed: RandomSeed = 0

    seed_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.start > self.stop:
            raise ValueError(f"start={self.start} lies behind stop={self.stop}: control must end after it begins.")

    def check_schedule(self, schedule: Schedule) -> None:
        """ValueError for a schedule that is not flow matching's."""
        require_flow_matching(schedule, "RF-Inversion")

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of ``z0 [B,C,h,w]``; ValueError for a schedule that is not flow matching's."""
        self.check_schedule(schedule)
        z = z0 = to_state_dtype(z0)
        y1, empty = draw_noise(z0, 1, self.seed)[0], _unconditional(predictor)
        for k, i in enumerate(reversed(range(len(schedule)))):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            velocity = empty(z, timestep_at_sigma(schedule, i, sigma_next))
            velocity = velocity + self.gamma * ((y1 - z) / (1 - sigma_next) - velocity)
            z = z + (sigma - sigma_next) * velocity
            on_step(k, z)
        return inversion(
            z, z0, evenly(1, schedule, len(z0)), exact=False, seed_only=False, aux={"clean": z0}
        )  # fmt: skip

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Euler's sampler from the seed, steered to the clean latent in the controlled steps."""
        z, clean, steps = inversion.seed, inversion.aux["clean"], len(schedule)
        for i in range(steps):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            plain = ddim_step(z, predictor, schedule, i)
            controlled = self.start * steps <= i < self.stop * steps
            straight = z + (sigma_next - sigma) / sigma * (z - clean)
            z = plain + self.eta * (straight - plain) if controlled else plain
        return z


def _unconditional(predictor: NoisePredictor) -> NoisePredictor:
    """The prediction under the negative condition alone; the predictor itself where guidance is off."""
    negative = getattr(predictor.denoiser, "negative", None)
    if negative is None:
        return predictor
    return replace(predictor, denoiser=replace(predictor.denoiser, positive=negative, negative=None, guidance=1.0))
