"""Inversion of second-order samplers of flow matching: RF-Solver, FireFlow, and the midpoint rule's exact inverse."""

from __future__ import annotations

from dataclasses import field, replace
from typing import ClassVar

import torch
from torch import Tensor

from rnri.inversion import ImplicitInverter, Inversion, Inverter, anderson_inverter, check_schedule
from rnri.methods.common import evenly, inversion
from rnri.models.midpoint import MidpointPredictor, require_flow_matching, timestep_at_sigma
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@dataclass(frozen=True)
class RFSolver(Inverter):
    """RF-Solver (Wang et al. 2024, arXiv 2411.04746): the explicit midpoint rule both ways, two evaluations a step.

    Upwards as downwards, with ``h`` the change of sigma: ``z <- z + h v(z + h/2 v(z, sigma), sigma + h/2)``. The paper
    writes it as a Taylor step whose derivative is a difference over half a step, which is the same.
    Reconstruction is by the midpoint sampler, not Euler's: a pipeline's own sampler does not lead back.
    """

    seed_only: ClassVar[bool] = False

    def check_schedule(self, schedule: Schedule) -> None:
        """ValueError for a schedule that is not flow matching's."""
        require_flow_matching(schedule, "RF-Solver")

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of ``z0 [B,C,h,w]``; ValueError for a schedule that is not flow matching's."""
        self.check_schedule(schedule)
        z = z0 = to_state_dtype(z0)
        for k, i in enumerate(reversed(range(len(schedule)))):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            h = sigma - sigma_next
            middle = z + h / 2 * predictor(z, timestep_at_sigma(schedule, i, sigma_next))
            z = z + h * predictor(middle, timestep_at_sigma(schedule, i, sigma_next + h / 2))
            on_step(k, z)
        return inversion(z, z0, evenly(2, schedule, len(z0)), exact=False, seed_only=False)

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """The midpoint sampler from the seed."""
        return sample(inversion.seed, MidpointPredictor.from_predictor(predictor, schedule), schedule)


@dataclass(frozen=True)
class FireFlow(Inverter):
    """FireFlow (Deng et al. 2024, arXiv 2412.07517): the midpoint rule with the last middle velocity as its first.

    Both ways, with ``h`` the change of sigma and ``p`` the velocity at the middle of the step before::

        v = v(z + h/2 p, sigma + h/2);    z <- z + h v;    p <- v

    At either end ``p`` begins as the velocity there, so that N steps take N + 1 evaluations. Reconstruction is by this
    same rule, not Euler's: a pipeline's own sampler does not lead back.
    """

    seed_only: ClassVar[bool] = False

    def check_schedule(self, schedule: Schedule) -> None:
        """ValueError for a schedule that is not flow matching's."""
        require_flow_matching(schedule, "FireFlow")

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of ``z0 [B,C,h,w]``; ValueError for a schedule that is not flow matching's."""
        self.check_schedule(schedule)
        z = z0 = to_state_dtype(z0)
        last = len(schedule) - 1
        velocity = predictor(z, timestep_at_sigma(schedule, last, schedule.alpha_sigma(last)[3]))
        for k, i in enumerate(reversed(range(len(schedule)))):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            z, velocity = _reusing_step(z, velocity, predictor, schedule, i, sigma_next, sigma)
            on_step(k, z)
        nfe = evenly(1, schedule, len(z0))
        nfe[0] += 1
        return inversion(z, z0, nfe, exact=False, seed_only=False)

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """FireFlow's sampler from the seed."""
        z = inversion.seed
        velocity = predictor(z, schedule.timestep(0))
        for i in range(len(schedule)):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            z, velocity = _reusing_step(z, velocity, predictor, schedule, i, sigma, sigma_next)
        return z


def _reusing_step(
    z: Tensor, velocity: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int, sigma: float, to: float
) -> tuple[Tensor, Tensor]:
    """The latent at the level ``to`` and the velocity at the middle of the step, from the last middle's."""
    h = to - sigma
    velocity = predictor(z + h / 2 * velocity, timestep_at_sigma(schedule, i, sigma + h / 2))
    return z + h * velocity, velocity


@dataclass(frozen=True)
class Midpoint(Inverter):
    """The exact inverse of the midpoint sampler: its implicit equation, solved as Euler's is. Ours.

    ``z_t = z_s + (sigma_t - sigma_s) y(z_t)`` with the midpoint velocity ``y`` of ``MidpointPredictor``, so that
    every solver, start and sharing serves; each of the solver's evaluations is two of the network, and is counted so.
    The sampler is second-order, so seeds keep to a normal norm at few steps, and the inverse is exact once solved.
    Reconstruction is by the midpoint sampler, not Euler's: a pipeline's own sampler does not lead back. The residuals
    are of another equation than ``Inversion.residuals`` speaks of, and are NaN there; ``solved`` says which steps
    met the solver's tolerance.

    Attributes:
        inverter: the walk; ``iterations`` of its solver are evaluations of ``y``.
    """

    inverter: ImplicitInverter = field(default_factory=anderson_inverter)

    seed_only: ClassVar[bool] = False

    @property
    def nfe_per_step(self) -> float:
        """Twice that of ``inverter``: each of its evaluations is two of the network."""
        return 2 * self.inverter.nfe_per_step

    def with_nfe(self, nfe: int) -> Midpoint:
        """Return a copy that uses at most ``nfe`` network evaluations per step; ValueError for an odd number."""
        if nfe % 2:
            raise ValueError(f"Midpoint needs an even number of network evaluations per step, got {nfe}.")
        return replace(self, inverter=self.inverter.with_nfe(nfe // 2))

    def check_schedule(self, schedule: Schedule) -> None:
        """ValueError for a schedule that is not flow matching's."""
        require_flow_matching(schedule, "the midpoint rule")

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of ``z0 [B,C,h,w]``; ValueError for a schedule that is not flow matching's."""
        found = self.inverter.invert(z0, MidpointPredictor.from_predictor(predictor, schedule), schedule, on_step)
        return replace(
            found,
            residuals=torch.full_like(found.residuals, torch.nan),
            nfe=2 * found.nfe,
            backward=2 * found.backward,
            seed_only=False,
        )

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """The midpoint sampler from the seed."""
        return sample(inversion.seed, MidpointPredictor.from_predictor(predictor, schedule), schedule)


@dataclass(frozen=True)
class SeedOnly(Inverter):
    """What another method's seeds are worth to Euler's sampler: of what ``inverter`` finds the seed alone is kept.

    A second-order sampler's seed does not give the image back under Euler's, but it is nearer to that of the exact
    path, and may be the better start for NAO and SeedSelect, which need no more.

    Args:
        inverter: whose seeds; it must keep nothing besides.
    """

    inverter: Inverter
    seed_only: ClassVar[bool] = True

    def check_schedule(self, schedule: Schedule) -> None:
        """ValueError where ``invert`` would raise it for a schedule."""
        check_schedule(self.inverter, schedule)

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of ``z0 [B,C,h,w]``, none of them solved; ValueError where the method keeps more than the seed."""
        found = self.inverter.invert(z0, predictor, schedule, on_step)
        if found.aux:
            raise ValueError(f"{type(self.inverter).__name__} keeps {', '.join(found.aux)} besides the seed.")
        return replace(found, seed_only=True, solved=torch.zeros_like(found.solved))

    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """The schedule's own sampler from the seed."""
        with torch.no_grad():
            return sample(inversion.seed, predictor, schedule)
