"""Round-trip correction: inverts again towards a target that is shifted by the reconstruction error."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from rnri.inversion import Inversion, Inverter, check_schedule
from rnri.methods.accelerated import anderson_inverter
from rnri.methods.registry import register_method
from rnri.models.predictor import NoisePredictor, to_device
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import ConfigError, HalfOpenUnitInterval, dataclass


@dataclass(frozen=True)
class RoundTripCorrected(Inverter):
    """Inverts, samples, and inverts again towards a target shifted by a fraction of the error. Our method.

    With the inversion ``G`` and the sampler ``F``, for each sample::

        target <- target + damping (z_0 - F(G(target)))

    It starts with ``target = z_0`` and repeats ``rounds`` times; each sample keeps the seed with the smallest error
    ``z_0 - F(G(target))``. Under strong guidance the sampler magnifies the remaining residuals up to a thousandfold,
    and more evaluations do not help in a step whose equation has no nearby solution. A slightly different target often
    has one. A damping of 0.5 works better than 1, which overshoots.

    A sample with an error within ``tolerance`` uses no further evaluations. A round costs an inversion and one
    evaluation per step.

    Attributes:
        inverter: a seed-only method.
        rounds: number of rounds after the first inversion; 0 only measures the error.
        damping: fraction of the error by which the target is shifted, in (0, 1].
        tolerance: of the mean square of ``z_0 - F(G(target))``.
    """

    inverter: Inverter
    rounds: NonNegativeInt = 2
    damping: HalfOpenUnitInterval = 0.5
    tolerance: NonNegativeFloat = 1e-4

    seed_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.inverter.seed_only:
            raise ConfigError(
                "inverter", f"must be a seed-only method, got {type(self.inverter).__name__}; it needs no correction."
            )

    @property
    def initial_guess(self) -> str | None:
        """The initial guess of ``inverter``."""
        return self.inverter.initial_guess

    @property
    def nfe_per_step(self) -> float:
        """Network evaluations of all inversions and samplings, per step."""
        return (1 + self.rounds) * (self.inverter.nfe_per_step + 1)

    def with_nfe(self, nfe: int) -> RoundTripCorrected:
        """Return a copy each of whose inversions uses at most ``nfe`` network evaluations per step."""
        return replace(self, inverter=self.inverter.with_nfe(nfe))

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if ``inverter`` does not support ``schedule``."""
        check_schedule(self.inverter, schedule)

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds of ``z0 [B,C,h,w]``; ``Inversion.z0`` are the shifted targets of these seeds.

        The counts include the evaluations of all rounds and of sampling. ``on_step`` is called after all rounds, with
        the trajectory of the returned seeds.
        """
        z0 = to_state_dtype(z0.detach())
        best, best_path = _invert_with_path(self.inverter, z0, predictor, schedule)
        deviation = z0 - sample(best.seed, predictor, schedule)
        best = replace(best, nfe=best.nfe + 1)
        best_error = _mean_square(deviation)
        target = z0 + self.damping * deviation
        for _ in range(self.rounds):
            # A sample that is not finite has the error NaN: no more evaluations are spent on it.
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
        """Return the clean latents ``[B,C,h,w]`` that ``inverter`` reconstructs."""
        return self.inverter.reconstruct(inversion, predictor, schedule)


register_method("round_trip_corrected", lambda: RoundTripCorrected(anderson_inverter(12)), paper="ours")


def _invert_with_path(
    inverter: Inverter, z0: Tensor, predictor: NoisePredictor, schedule: Schedule
) -> tuple[Inversion, list[Tensor]]:
    """Return an inversion and its latents ``[B,C,h,w]`` after each step."""
    path: list[Tensor] = []
    inversion = inverter.invert(z0, predictor, schedule, lambda _, z: path.append(z.clone()))
    return inversion, path


def _mean_square(deviation: Tensor) -> Tensor:
    """Return the mean square of each sample of ``deviation [B,C,h,w]``, float64 ``[B]`` on the CPU."""
    return deviation.square().flatten(1).mean(1).cpu().double()


def _replace_samples(inversion: Inversion, rows: Tensor, other: Inversion, mask: Tensor) -> Inversion:
    """Return ``inversion`` with its samples ``rows`` replaced by the samples ``mask`` (bool ``[b]``) of ``other``."""
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
