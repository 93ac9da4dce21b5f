"""Solvers of the implicit inversion equation ``z = f(z)``.

Each solver states only its step. The loop, the best iterate, the tolerance and the fate of a sample that
converges or diverges exist once, in ``IterativeSolver``, and are by sample: nothing that one image does
changes another's result. The network may: its own sums depend on the batch's size, which shows in the last digits, 1e-5
of a seed in float32 and, in half precision, as much as its other rounding (2e-3 in bfloat16, 4e-4 in float16).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from rnri.models.predictor import to_device
from rnri.solvers.implicit import ImplicitStep, Solution, mean_absolute
from rnri.validation import dataclass

State = tuple[Tensor, ...]
"""What a solver remembers between iterations: tensors whose first dimension is the batch."""


@dataclasses.dataclass(frozen=True)
class Iterate:
    """An evaluated iterate of the ``b`` samples still being solved, as a solver's step sees it."""

    problem: ImplicitStep
    z: Tensor  # [b,C,h,w]
    f: Tensor  # [b,C,h,w], f(z), relaxed in the form that is iterated; attached to z if the solver differentiates
    state: State


@dataclass(frozen=True)
class IterativeSolver(ABC):
    """One network evaluation an iteration; ``step`` makes the next iterate of it.

    A sample leaves the batch when its residual is within ``tolerance`` or ``f`` is not finite where it came to, and
    costs nothing from then on. In the latter case it has diverged: it comes back as its best evaluated iterate
    (``z_init`` if there is none), not converged and with residual ``inf``. Solvers with a safeguard (``has_safeguard``) go
    on from the best iterate instead, and diverge only where their last evaluation was not finite.

    Attributes:
        iterations: network evaluations at most, 1 or more.
        tolerance: on the mean ``|z - f(z)|`` of a sample. Then the evaluated ``z`` itself is returned. 0
            never stops early, short of an exact root. The default is the paper's criterion (appendix G).
        keep_best: return ``f(z_k)`` of the evaluated iterate with the smallest residual; False returns the
            last iterate that ``step`` made, unevaluated, with the residual of the one before it.
    """

    iterations: PositiveInt = 5
    tolerance: NonNegativeFloat = 1e-4
    keep_best: bool = True

    needs_grad: ClassVar[bool] = False
    returns_step: ClassVar[bool] = False
    """Whether, with ``keep_best``, the last evaluated iterate is stepped from if it is the best."""
    has_safeguard: ClassVar[bool] = False
    """Whether ``step`` finds a way on where ``f`` was not finite, once a sample had a finite evaluation."""
    step_is_finite: ClassVar[bool] = False
    """Whether what ``step`` makes of finite values is finite, so that nobody need look, and wait for the device."""

    @abstractmethod
    def step(self, at: Iterate) -> tuple[Tensor, State]:
        """The next iterate ``[b,C,h,w]`` and what to remember, from the evaluated one."""

    def merit(self, at: Iterate, residual: Tensor) -> Tensor:
        """What ``keep_best`` minimizes, ``[b]``: the ``residual``, mean ``|z - f(z)|``."""
        return residual

    def outcome(self, z: Tensor, state: State) -> Tensor:
        """What returns, without ``keep_best``, where the solver ends after a step that made ``z`` and ``state``."""
        return z

    def __call__(self, problem: ImplicitStep, z_init: Tensor, limits: Tensor | None = None) -> Solution:
        """Solves ``problem`` from ``z_init [B,C,h,w]``; the batch need not converge together.

        ``limits`` (int64 ``[B]``) replaces ``iterations`` sample by sample.
        """
        problem = problem.with_zero_counts()
        if limits is None:
            limits = torch.full((len(z_init),), self.iterations)
        record = BestIterate(z_init, self.keep_best)
        z, state, counts = z_init, (), problem.counts
        steps_last = self.returns_step or not self.keep_best
        while True:
            spent = ~self.has_budget(counts.forward[problem.rows] + 1, limits[problem.rows])
            z, f = self._evaluate(problem, z, self.needs_grad and (steps_last or not bool(spent.all())))
            at = Iterate(problem, z.detach(), f.detach(), tuple(state))
            residual = mean_absolute(at.z - at.f)
            residual = record.offer(problem.rows, at, residual, self.merit(at, residual))
            going = (record.found(problem.rows) if self.has_safeguard else residual.isfinite()) & (
                residual > self.tolerance
            )
            if not steps_last:
                going &= ~spent
            if not going.any():
                break
            if not self.needs_grad:  # whose graph holds the batch together until the step is made
                problem, z, f, *state = _select(problem, going, z, f, *state)
                spent, residual, going = spent[going], residual[going], going[going]
            z, state = self.step(Iterate(problem, z, problem.relaxed(z, f), tuple(state)))
            if not self.step_is_finite:
                going &= z.flatten(1).isfinite().all(1).cpu()
            if steps_last:
                ended = going & spent & record.is_current(problem.rows, residual)
                record.end(problem.rows, ended, self.outcome(z, state))
                going &= ~spent
            if not going.any():
                break
            problem, z, *state = _select(problem, going, z, *state)
        return record.solution(self.tolerance, counts.forward, counts.backward)

    def has_budget(self, spent: Tensor, limits: Tensor) -> Tensor:
        """Whether a sample that has spent ``spent [b]`` evaluations can afford another iteration, bool ``[b]``."""
        return spent + 1 <= limits

    @staticmethod
    def _evaluate(problem: ImplicitStep, z: Tensor, differentiate: bool) -> tuple[Tensor, Tensor]:
        if differentiate and torch.is_inference_mode_enabled():
            raise RuntimeError(
                "this solver differentiates the network, which torch.inference_mode forbids; use "
                "torch.no_grad (in Lightning, Trainer(inference_mode=False))."
            )
        with torch.set_grad_enabled(differentiate):
            z = z.detach().requires_grad_(differentiate)
            return z, problem(z)


def _select(problem: ImplicitStep, going: Tensor, *tensors: Tensor) -> tuple[ImplicitStep, *tuple[Tensor, ...]]:
    """The equation and the rows of ``tensors`` of the samples that go on."""
    if going.all():
        return problem, *tensors
    rows = going.nonzero().flatten()
    return problem.select(rows), *(tensor[to_device(rows, tensor.device)] for tensor in tensors)


class BestIterate:
    """The best (or latest) finite evaluated iterate of every sample, and what to return for it.

    Residuals lie on the CPU in float64, whatever the device can hold.
    """

    def __init__(self, z_init: Tensor, keep_best: bool) -> None:
        self.keep_best = keep_best
        self.z, self.f, self.result = z_init.clone(), z_init.clone(), z_init.clone()
        self.residual = torch.full((len(z_init),), torch.inf, dtype=torch.float64)
        self.merit = self.residual.clone()
        self.diverged = torch.zeros(len(z_init), dtype=torch.bool)

    def offer(self, rows: Tensor, at: Iterate, residual: Tensor, merit: Tensor) -> Tensor:
        """Takes note of ``f(z)`` for the samples ``rows``; returns their residuals, ``[b]``, ``inf`` if not finite."""
        told = torch.stack([residual, merit.to(residual)]).cpu().double()  # the only wait of an evaluation
        residual, merit = told[0].nan_to_num(nan=torch.inf, posinf=torch.inf), told[1]
        finite = residual.isfinite()
        accepted = finite & (merit < self.merit[rows]) if self.keep_best else finite
        self.residual[rows[accepted]], self.merit[rows[accepted]] = residual[accepted], merit[accepted]
        for own, new in ((self.z, at.z), (self.f, at.f), (self.result, at.problem.relaxed(at.z, at.f))):
            scatter_rows_(own, rows, accepted, new)
        self.diverged[rows] = ~finite
        if not finite.all():  # what was to be returned may be the very place where f is not finite
            lost = to_device(rows[~finite], self.z.device)
            self.result[lost] = self.z[lost]
        return residual

    def found(self, rows: Tensor) -> Tensor:
        """Whether a sample has had a finite evaluation, bool ``[b]``."""
        return self.residual[rows].isfinite()

    def is_current(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Whether the iterate with ``residual``, just offered, is the one that counts, bool ``[b]``."""
        return residual <= self.residual[rows]

    def end(self, rows: Tensor, ended: Tensor, z: Tensor) -> None:
        scatter_rows_(self.result, rows, ended, z)

    def solution(self, tolerance: float, nfe: Tensor, backward: Tensor) -> Solution:
        residual = self.residual.masked_fill(self.diverged, torch.inf)
        converged = residual <= tolerance
        z = torch.where(to_device(converged, self.z.device).view(-1, 1, 1, 1), self.z, self.result)
        return Solution(z, residual, nfe, backward, converged, self.f)


def scatter_rows_(table: Tensor, rows: Tensor, chosen: Tensor, values: Tensor) -> None:
    """``values [b,...]`` of the ``chosen`` (bool ``[b]``) in the ``rows`` (``[b]``) of ``table [B,...]``, in place."""
    if chosen.all() and len(rows) == len(table):
        table.copy_(values)
    elif chosen.any():
        table[to_device(rows[chosen], table.device)] = values[to_device(chosen.nonzero().flatten(), values.device)]


@dataclass(frozen=True)
class FixedPoint(IterativeSolver):
    """``z <- f(z)`` (AIDI, Pan et al. 2023). DDIM inversion is ``FixedPoint(iterations=1, tolerance=0)``."""

    step_is_finite: ClassVar[bool] = True

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        return at.f, ()


@dataclass(frozen=True)
class AveragedFixedPoint(IterativeSolver):
    """``z <- (f(z_k) + f(z_{k-1})) / 2``: AIDI's "empirical" acceleration (AIDI-E, Pan et al. 2023).

    Damps the components of the error that alternate in sign; halves the speed of those that do not.
    """

    step_is_finite: ClassVar[bool] = True

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        return (at.f + at.state[0]) / 2 if at.state else at.f, (at.f,)
