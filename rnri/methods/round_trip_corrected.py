"""Round-trip correction: repeats the inversion with a target that is shifted by the reconstruction error."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from rnri.inversion import Inversion, Inverter, check_schedule
from rnri.methods.accelerated import anderson_inverter
from rnri.methods.common import InverterWrapper
from rnri.methods.registry import register_method
from rnri.models.predictor import NoisePredictor, to_device
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import ConfigError, HalfOpenUnitInterval, dataclass


@dataclass(frozen=True)
class RoundTripCorrected(InverterWrapper):
    """A method of this project: inverts, samples, shifts the target by a fraction of the error, and inverts again.

    The target of each sample is updated by::

        target <- target + damping * (z_0 - F(G(target)))

    Here ``z_0`` is the clean latent, ``G`` is the inversion by ``inverter``, and ``F`` is the sampler. The first target
    is ``z_0``, and the update is repeated ``rounds`` times. The result is, for each sample, the seed with the smallest
    error ``z_0 - F(G(target))``. Under strong guidance the sampler magnifies the remaining residuals of the inversion
    steps up to a thousandfold. More network evaluations do not reduce the residual of an inversion step whose equation
    has no solution near the initial guess. For a slightly shifted target, the equation often has a solution near the
    initial guess. The reconstruction error is smaller with ``damping`` 0.5 than with 1, because with ``damping`` 1 the
    target is shifted too far.

    A sample whose error is at most ``tolerance`` uses no further network evaluations. Each round needs the network
    evaluations of one inversion, and for the sampler one evaluation per step.

    Attributes:
        inverter: an inversion method whose seed alone regenerates the image (seed-only method).
        rounds: number of rounds after the first inversion; with 0 the seed is not corrected and only its error is
            measured.
        damping: fraction of the error by which the target is shifted, in (0, 1].
        tolerance: a sample is not corrected further if the mean square of ``z_0 - F(G(target))`` is at most this value.
    """

    rounds: NonNegativeInt = 2
    damping: HalfOpenUnitInterval = 0.5
    tolerance: NonNegativeFloat = 1e-4

    seed_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.inverter.seed_only:
            raise ConfigError(
                "inverter",
                f"must be a seed-only method, got {type(self.inverter).__name__}, whose seed alone does not "
                "regenerate the image.",
            )

    @property
    def nfe_per_step(self) -> float:
        """Maximum number of network evaluations per step, including all rounds and the sampling in each round."""
        return (1 + self.rounds) * (self.inverter.nfe_per_step + 1)

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if ``inverter`` does not support ``schedule``."""
        check_schedule(self.inverter, schedule)

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds (noise latents) of ``z0 [B,C,h,w]``; ``Inversion.z0`` contains the shifted targets.

        ``Inversion.nfe`` includes the network evaluations of all rounds and of the sampler. ``on_step`` is called only
        after the last round, with the latents of the inversions that lead to the returned seeds.
        """
        z0 = to_state_dtype(z0.detach())
        best, best_path = _invert_with_path(self.inverter, z0, predictor, schedule)
        deviation = z0 - sample(best.seed, predictor, schedule)
        best = replace(best, nfe=best.nfe + 1)
        best_error = _mean_square(deviation)
        target = z0 + self.damping * deviation
        for _ in range(self.rounds):
            # A sample with NaN or infinite elements has the error NaN and is not inverted again.
            rows = ((best_error > self.tolerance) & best_error.isfinite()).nonzero().flatten()
            if not len(rows):
                break
            device_rows = to_device(rows, z0.device)
            selected = predictor.select(rows)
            retry, path = _invert_with_path(self.inverter, target[device_rows], selected, schedule)
            deviation = z0[device_rows] - sample(retry.seed, selected, schedule)
            target[device_rows] += self.damping * deviation
            nfe = best.nfe.clone()
            nfe[:, rows] += retry.nfe + 1
            backward = best.backward.clone()
            backward[:, rows] += retry.backward
            error = _mean_square(deviation)
            better = error < best_error[rows]
            best = replace(_replace_samples(best, rows[better], retry, better), nfe=nfe, backward=backward)
            for best_z, z in zip(best_path, path, strict=True):
                best_z[to_device(rows[better], best_z.device)] = z[to_device(better.nonzero().flatten(), z.device)]
            best_error[rows] = torch.where(better, error, best_error[rows])
        for k, z in enumerate(best_path):
            on_step(k, z)
        return best

    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that ``inverter`` reconstructs from ``inversion``."""
        return self.inverter.reconstruct(inversion, predictor, schedule)


register_method("round_trip_corrected", lambda: RoundTripCorrected(anderson_inverter(12)), paper="ours")


def _invert_with_path(
    inverter: Inverter, z0: Tensor, predictor: NoisePredictor, schedule: Schedule
) -> tuple[Inversion, list[Tensor]]:
    """Return the inversion of ``z0`` and a list of the latents ``[B,C,h,w]`` after each inversion step."""
    path: list[Tensor] = []
    inversion = inverter.invert(z0, predictor, schedule, lambda _, z: path.append(z.clone()))
    return inversion, path


def _mean_square(deviation: Tensor) -> Tensor:
    """Return the mean square of each sample of ``deviation [B,C,h,w]``, float64 ``[B]`` on the CPU."""
    return deviation.square().flatten(1).mean(1).cpu().double()


def _replace_samples(inversion: Inversion, rows: Tensor, other: Inversion, mask: Tensor) -> Inversion:
    """Return a copy of ``inversion`` in which some samples have the seed, target and residuals of ``other``.

    The samples ``rows`` (int64, indices into ``inversion``) are replaced by the samples of ``other`` for which ``mask``
    (bool ``[b]``) is True. Evaluation counts are not replaced.
    """
    other_rows = mask.nonzero().flatten()
    seed = inversion.seed.clone()
    z0 = inversion.z0.clone()
    residuals = inversion.residuals.clone()
    solved = inversion.solved.clone()
    target = to_device(rows, seed.device)
    source = to_device(other_rows, seed.device)
    seed[target] = other.seed[source]
    z0[target] = other.z0[source]
    residuals[:, rows] = other.residuals[:, other_rows]
    solved[:, rows] = other.solved[:, other_rows]
    return replace(inversion, seed=seed, z0=z0, residuals=residuals, solved=solved)
