"""PMI: explicit inversion whose velocity is corrected towards the mean of the previous velocities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from rnri.inversion import Inversion
from rnri.methods.explicit import ExplicitInverter
from rnri.methods.fireflow import FireFlow
from rnri.methods.registry import NO_CODE, register_method
from rnri.methods.rf_solver import RFSolver
from rnri.models.midpoint import timestep_at_sigma
from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@register_method("pmi", paper="PMI, Wang et al. 2026, arXiv 2602.11850", source=NO_CODE, requires="flow")
@dataclass(frozen=True)
class PMI(ExplicitInverter):
    """Proximal-mean inversion (Wang, Zhu & Zhang 2026, arXiv 2602.11850), for flow matching.

    The velocity ``v`` of every inversion step is replaced by::

        v <- v - r g / ||g||,    g = dF/dv,    F(v) = ||v - v_{k-1}||_1 + ||v - mean||^2 / (2 lam)

    ``v_{k-1}`` is the corrected velocity of the previous inversion step. ``mean`` is the mean of the corrected
    velocities of all previous inversion steps, weighted by the lengths of the steps. ``mean`` is computed as the change
    of the latent since the start of the inversion, divided by the change of sigma. The length of the correction is
    ``r = sqrt(2 n + 3 sqrt(2 n)) h / N`` for a latent of ``n`` elements, a step of length ``h`` in sigma and ``N``
    steps. The first inversion step has no previous velocity and is not corrected. The correction needs no network
    evaluation. The velocities of the reconstruction are not corrected.

    The default of ``lam``, and the use of corrected instead of predicted velocities for ``v_{k-1}`` and ``mean``, are
    choices of this project.

    Attributes:
        base: the method whose velocity is corrected: ``euler`` (explicit Euler steps), ``rf_solver`` or ``fireflow``.
            With ``euler``, the pipeline's own Euler sampler reconstructs the image from the seed; ``rf_solver`` and
            ``fireflow`` need their own samplers.
        lam: proximal parameter; the larger ``lam``, the less the mean velocity influences the correction.
    """

    base: Literal["euler", "rf_solver", "fireflow"] = "euler"
    lam: PositiveFloat = 1.0

    title: ClassVar[str] = "PMI"

    @property
    def seed_only(self) -> bool:  # type: ignore[override]
        """True if ``base`` is ``euler``, whose seed alone regenerates the image."""
        return self.base == "euler"

    @property
    def step_nfe(self) -> int:  # type: ignore[override]
        return RFSolver.step_nfe if self.base == "rf_solver" else 1

    @property
    def start_nfe(self) -> int:  # type: ignore[override]
        return FireFlow.start_nfe if self.base == "fireflow" else 0

    def trajectory(self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule) -> Iterator[Tensor]:
        z = z0
        previous: Tensor | None = None
        elapsed = 0.0
        predict = self._velocity(z0, predictor, schedule)
        for i in reversed(range(len(schedule))):
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            h = sigma - sigma_next
            velocity = predict(z, i, previous)
            if previous is not None:
                radius = math.sqrt(2 * z[0].numel() + 3 * math.sqrt(2 * z[0].numel())) * h / len(schedule)
                velocity = self._corrected(velocity, previous, (z - z0) / elapsed, radius)
            z = z + h * velocity
            elapsed += h
            previous = velocity
            yield z

    def _velocity(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule
    ) -> Callable[[Tensor, int, Tensor | None], Tensor]:
        """Return the function ``(z, i, previous)`` that computes the velocity of the method ``base`` in step ``i``.

        ``z`` is the latent at the cleaner end of step ``i``. ``previous`` is the corrected velocity of the previous
        inversion step, or None in the first inversion step.
        """

        def at(z: Tensor, i: int, sigma: float) -> Tensor:
            return predictor(z, timestep_at_sigma(schedule, i, sigma))

        def euler(z: Tensor, i: int, _previous: Tensor | None) -> Tensor:
            return at(z, i, schedule.alpha_sigma(i)[3])

        def midpoint(z: Tensor, i: int, previous: Tensor | None) -> Tensor:
            _, sigma, _, sigma_next = schedule.alpha_sigma(i)
            if self.base == "rf_solver" or previous is None:
                previous = euler(z, i, None)
            half = (sigma - sigma_next) / 2
            return at(z + half * previous, i, sigma_next + half)

        return euler if self.base == "euler" else midpoint

    def _corrected(self, velocity: Tensor, previous: Tensor, mean: Tensor, radius: float) -> Tensor:
        """Return ``velocity - radius g / ||g||``, ``[B,C,h,w]``, where ``g`` is the gradient of ``F`` at ``velocity``.

        ``F(v) = ||v - previous||_1 + ||v - mean||^2 / (2 lam)``. Samples with ``g = 0`` are not corrected.
        """
        gradient = (velocity - previous).sign() + (velocity - mean) / self.lam
        norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return velocity - radius * torch.where(norm > 0, gradient / norm, torch.zeros_like(gradient))

    @torch.no_grad()
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that the sampler of ``base`` generates."""
        if self.base == "euler":
            return super().reconstruct(inversion, predictor, schedule)
        sampler = RFSolver() if self.base == "rf_solver" else FireFlow()
        return sampler.reconstruct(inversion, predictor, schedule)
