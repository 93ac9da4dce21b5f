"""Helpers of the methods that solve no implicit equation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rnri.inversion import ImplicitInverter, Inversion
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback
from rnri.models.schedule import Schedule
from rnri.solvers.iterative import FixedPoint


def make_inversion(
    seed: Tensor,
    z0: Tensor,
    nfe: Tensor,
    *,
    exact: bool,
    seed_only: bool,
    aux: Mapping[str, Tensor] | None = None,
    backward: Tensor | None = None,
) -> Inversion:
    """Return an ``Inversion`` without residuals.

    Args:
        seed, z0: ``[B,C,h,w]``.
        nfe, backward: network evaluations, int64 ``[N,B]``; no ``backward`` means zeros.
        exact: whether the method is exact by construction; its finite samples then count as solved.
        seed_only, aux: see ``Inversion``.
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


def constant_counts(nfe_per_step: int, schedule: Schedule, batch_size: int) -> Tensor:
    """Return ``nfe_per_step`` for every step and sample, int64 ``[N,B]``."""
    return torch.full((len(schedule), batch_size), nfe_per_step)


def ddim_path(
    z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback
) -> tuple[Inversion, list[Tensor]]:
    """Return the DDIM inversion of ``z0`` and its N + 1 latents ``[B,C,h,w]``, the clean one first."""
    path: list[Tensor] = []

    def record(k: int, z: Tensor) -> None:
        path.append(z)
        on_step(k, z)

    result = ImplicitInverter(FixedPoint(iterations=1)).invert(z0, predictor, schedule, record)
    return result, [result.z0, *path]


def check_chain(schedule: Schedule, method: str) -> None:
    """Raise ValueError unless every step ends at the noise level where the next begins."""
    if not torch.equal(schedule.alpha_next[:-1], schedule.alpha[1:]):
        raise ValueError(
            f"{method} combines neighboring steps, but on this schedule a step does not end where the next begins; "
            "choose a number of steps that divides the scheduler's training timesteps."
        )
