"""Inversion that looks at what its seed makes, and corrects what it aims at."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Le
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from rnri.inversion import Inversion, Inverter, check_schedule
from rnri.models.predictor import NoisePredictor, to_device
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import dataclass


@dataclass(frozen=True)
class RoundTripCorrected(Inverter):
    """Inverts, samples, and inverts again towards a target moved by a share of what was missing. Ours.

    With ``G`` the inversion and ``F`` the sampler, by sample::

        target <- target + damping (z_0 - F(G(target)))

    from ``target = z_0``, ``rounds`` times; the seed whose sample is nearest to ``z_0`` is kept. Under strong guidance
    the sampler magnifies what an inversion leaves of its residuals up to a thousandfold, and where a step has no root
    near by more evaluations do not help; the same steps towards a target a little away often do. Half of what is
    missing serves better than all of it, which overshoots.

    A sample that is within ``tolerance`` costs nothing further. A round takes an inversion and one evaluation a step.

    Attributes:
        inverter: of seeds that alone lead back.
        rounds: after the first inversion; 0 only measures it.
        damping: in (0, 1].
        tolerance: on the mean square of ``z_0 - F(G(target))``.
    """

    inverter: Inverter
    rounds: NonNegativeInt = 2
    damping: Annotated[float, Gt(0), Le(1)] = 0.5
    tolerance: NonNegativeFloat = 1e-4

    seed_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.inverter.seed_only:
            raise ValueError(
                f"inverter={type(self.inverter).__name__} keeps more than a seed, and needs no correction: "
                "take one whose seed alone leads back."
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
        """ValueError where ``invert`` would raise it for a schedule."""
        check_schedule(self.inverter, schedule)

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of ``z0 [B,C,h,w]``; ``Inversion.z0`` are the targets that they were found for.

        Evaluations are those of all rounds, samplings included. ``on_step`` hears of the walk that was kept, at the
        end.
        """
        z0 = to_state_dtype(z0.detach())
        found, path = _walk(self.inverter, z0, predictor, schedule)
        missing = z0 - sample(found.seed, predictor, schedule)
        found = replace(found, nfe=found.nfe + 1)
        error, target = _mean_square(missing), z0 + self.damping * missing
        for _ in range(self.rounds):
            # NaN, of a sample that is not finite, is never within a tolerance and never better
            rows = ((error > self.tolerance) & error.isfinite()).nonzero().flatten()
            if not len(rows):
                break
            at, some = to_device(rows, z0.device), predictor.select(rows)
            again, own_path = _walk(self.inverter, target[at], some, schedule)
            left = z0[at] - sample(again.seed, some, schedule)
            target[at] += self.damping * left
            spent = found.nfe.clone(), found.backward.clone()
            spent[0][:, rows] += again.nfe + 1
            spent[1][:, rows] += again.backward
            own_error = _mean_square(left)
            better = own_error < error[rows]
            found = _with_rows(found, rows[better], again, better)
            found = replace(found, nfe=spent[0], backward=spent[1])
            for z, own in zip(path, own_path, strict=True):
                z[to_device(rows[better], z.device)] = own[to_device(better.nonzero().flatten(), z.device)]
            error[rows] = torch.where(better, own_error, error[rows])
        for k, z in enumerate(path):
            on_step(k, z)
        return found

    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        return self.inverter.reconstruct(inversion, predictor, schedule)


def _walk(
    inverter: Inverter, z0: Tensor, predictor: NoisePredictor, schedule: Schedule
) -> tuple[Inversion, list[Tensor]]:
    """An inversion, and the latents after each of its steps."""
    path: list[Tensor] = []
    found = inverter.invert(z0, predictor, schedule, lambda _, z: path.append(z.clone()))
    return found, path


def _mean_square(missing: Tensor) -> Tensor:
    """By sample, float64 ``[B]`` on the CPU."""
    return missing.square().flatten(1).mean(1).cpu().double()


def _with_rows(inversion: Inversion, rows: Tensor, other: Inversion, chosen: Tensor) -> Inversion:
    """``inversion`` with the ``chosen`` samples (bool ``[b]``) of another in its ``rows``."""
    which = chosen.nonzero().flatten()
    seed, z0 = inversion.seed.clone(), inversion.z0.clone()
    at, those = to_device(rows, seed.device), to_device(which, seed.device)
    seed[at], z0[at] = other.seed[those], other.z0[those]
    residuals, solved = inversion.residuals.clone(), inversion.solved.clone()
    residuals[:, rows], solved[:, rows] = other.residuals[:, which], other.solved[:, which]
    return replace(inversion, seed=seed, z0=z0, residuals=residuals, solved=solved)
