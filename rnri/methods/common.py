"""What the methods that solve no implicit equation share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnri.inversion import ImplicitInverter, Inversion
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback
from rnri.models.schedule import Schedule
from rnri.solvers.iterative import FixedPoint


def inversion(
    seed: Tensor,
    z0: Tensor,
    nfe: Tensor,
    *,
    exact: bool,
    seed_only: bool,
    aux: Mapping[str, Tensor] | None = None,
    backward: Tensor | None = None,
) -> Inversion:
    """An ``Inversion`` without residuals; ``exact`` samples count as solved where they are finite.

    ``nfe`` is int64 ``[N,B]``.
    """
    aux = aux or {}
    finite = torch.ones(len(seed), dtype=torch.bool)
    for tensor in (seed, *aux.values()):
        finite &= tensor.flatten(1).isfinite().all(1).cpu()
    return Inversion(
        seed=seed,
        z0=z0,
        residuals=torch.full(nfe.shape, torch.nan, dtype=torch.float64),
        nfe=nfe,
        backward=torch.zeros_like(nfe) if backward is None else backward,
        solved=(finite & exact).expand(nfe.shape),
        seed_only=seed_only,
        aux=aux,
    )


def evenly(per_step: int, schedule: Schedule, batch: int) -> Tensor:
    """``per_step`` evaluations at every step and for every sample, int64 ``[N,B]``."""
    return torch.full((len(schedule), batch), per_step)


def ddim_path(
    z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback
) -> tuple[Inversion, list[Tensor]]:
    """DDIM inversion and its latents, the clean one first (N + 1 of them)."""
    path: list[Tensor] = []

    def follow(k: int, z: Tensor) -> None:
        path.append(z)
        on_step(k, z)

    found = ImplicitInverter(FixedPoint(iterations=1)).invert(z0, predictor, schedule, follow)
    return found, [found.z0, *path]


def check_chain(schedule: Schedule, method: str) -> None:
    """Raises ValueError unless every step ends at the noise level where the next begins."""
    if not torch.equal(schedule.alpha_next[:-1], schedule.alpha[1:]):
        raise ValueError(
            f"{method} joins neighboring steps, but on this schedule a step does not end where the next begins; "
            "choose a number of steps that divides the scheduler's training timesteps."
        )
