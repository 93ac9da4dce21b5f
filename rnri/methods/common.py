"""Base classes and functions that several inversion methods use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from rnri.inversion import ImplicitInverter, Inversion, Inverter
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import LatentCallback
from rnri.models.schedule import Schedule
from rnri.solvers.iterative import FixedPoint
from rnri.validation import dataclass


@dataclass(frozen=True)
class FixedNfeInverter(ImplicitInverter):
    """An ``ImplicitInverter`` whose number of network evaluations is part of the method's definition.

    For example, DDIM inversion uses one network evaluation per step; with more evaluations per step it would be a
    fixed-point iteration.
    """

    def with_nfe(self, nfe: int) -> FixedNfeInverter:
        """Return this inverter, whose number of network evaluations cannot be changed.

        Raises:
            ValueError: the inverter does not use exactly ``nfe`` network evaluations per step.
        """
        if nfe != self.solver.iterations or self.extra_evaluations:
            count = f"{self.solver.iterations} per step"
            if self.extra_evaluations:
                count += f" and {self.extra_evaluations} more per image"
            raise ValueError(f"this method has a fixed number of network evaluations, {count}; choose another method.")
        return self


@dataclass(frozen=True)
class InverterWrapper(Inverter):
    """Base class of the inversion methods that call another inversion method.

    Attributes:
        inverter: the inversion method that is called.
    """

    inverter: Inverter

    @property
    def seed_only(self) -> bool:
        """Whether the seeds that ``inverter`` returns regenerate the images without other stored tensors."""
        return self.inverter.seed_only

    @property
    def initial_guess(self) -> str | None:
        """Name of the initial guess of ``inverter``; None if ``inverter`` has no initial guess."""
        return self.inverter.initial_guess

    @property
    def nfe_per_step(self) -> float:
        """Number of network evaluations of ``inverter`` per step."""
        return self.inverter.nfe_per_step

    def with_nfe(self, nfe: int) -> Self:
        """Return a copy whose ``inverter`` uses at most ``nfe`` network evaluations per step."""
        return replace(self, inverter=self.inverter.with_nfe(nfe))


def check_noisy_start(inverter: Inverter) -> None:
    """Raise ValueError if ``inverter`` cannot start at a noisy latent, because its solver needs the clean latent.

    If ``inverter`` wraps another inverter, the solver of the wrapped inverter is also checked. A solver that needs the
    clean latent would use the noisy latent, with which the inversion starts, as the clean latent.
    """
    inner = getattr(inverter, "inverter", None)
    if inner is not None:
        check_noisy_start(inner)
    solver = getattr(inverter, "solver", None)
    if getattr(solver, "uses_clean_latent", False):
        raise ValueError(
            "inverter: must not need the clean latent, because the inversion starts at a noisy latent, got the solver "
            f"{type(solver).__name__}, whose prior q(z_t | z_0) contains the clean latent z_0; use another solver, "
            "such as SafeguardedAnderson."
        )


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
    """Return an ``Inversion`` for a method that does not measure residuals; the residuals are NaN.

    Args:
        seed: the seeds (noise latents) ``[B,C,h,w]``.
        z0: the clean latents ``[B,C,h,w]`` that were inverted.
        nfe: number of network evaluations, int64 ``[N,B]``.
        exact: whether the method is exact by construction. If True, all samples whose ``seed`` and ``aux`` tensors are
            finite are marked as solved.
        seed_only: whether the seeds alone regenerate the images, without the tensors in ``aux``.
        aux: tensors that the method stores in addition to the seeds; None if there are no such tensors.
        backward: number of backward passes, int64 ``[N,B]``; None if there are no backward passes.
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
    """Return an int64 tensor ``[N,B]`` that contains ``nfe_per_step`` for each of N inversion steps and B samples."""
    return torch.full((len(schedule), batch_size), nfe_per_step)


def ddim() -> FixedNfeInverter:
    """Return DDIM inversion: one fixed-point iteration per inversion step."""
    return FixedNfeInverter(FixedPoint(iterations=1, tolerance=0))


def ddim_path(
    z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback
) -> tuple[Inversion, list[Tensor]]:
    """Return the DDIM inversion of the clean latents ``z0 [B,C,h,w]``, and the latents of its trajectory.

    The trajectory of N inversion steps has N + 1 latents ``[B,C,h,w]``, from clean to noisy. ``on_step`` is called
    after each inversion step.
    """
    path: list[Tensor] = []

    def record(k: int, z: Tensor) -> None:
        path.append(z)
        on_step(k, z)

    result = ddim().invert(z0, predictor, schedule, record)
    return result, [result.z0, *path]


def check_chain(schedule: Schedule, method: str) -> None:
    """Raise ValueError unless every step of ``schedule`` ends at the noise level where the next step begins.

    ``method`` is the name of the inversion method in the error message.
    """
    if not torch.equal(schedule.alpha_next[:-1], schedule.alpha[1:]):
        raise ValueError(
            f"{method} combines neighboring sampler steps, but this schedule has a step that does not end at the noise "
            "level where the next step begins; choose a number of steps that divides the number of training timesteps "
            "of the scheduler."
        )
