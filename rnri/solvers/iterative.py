"""The iteration that all solvers of the implicit equation ``z = f(z)`` share.

A solver only implements ``step``, which computes the next iterate. ``IterativeSolver`` implements the loop, selects the
best iterate, and stops samples that reach the tolerance or diverge. Each sample is solved independently of the other
samples of its batch. Only the network's rounding errors depend on the batch size: the relative difference between seeds
from two batch sizes is 1e-5 in float32, 2e-3 in bfloat16 and 4e-4 in float16.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from itertools import compress
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from rnri.models.predictor import to_device
from rnri.solvers.implicit import EvaluationCounter, ImplicitStep, Solution, mean_absolute
from rnri.validation import dataclass

MAX_EVALUATIONS_WITHOUT_WAIT = 2
"""Maximum number of network evaluations per inversion step with which converged samples remain in a batch on a GPU.

With more evaluations per inversion step, converged samples are removed from the batch, which saves evaluations but
synchronizes the CPU with the GPU.
"""

State = tuple[Tensor, ...]
"""Tensors that a solver keeps between iterations; the first dimension of each tensor is the batch."""


@dataclasses.dataclass(frozen=True)
class Iterate:
    """An evaluated iterate of the ``b`` samples that are still being solved.

    Attributes:
        problem: the equation of the ``b`` samples.
        z: ``[b,C,h,w]``, the iterate.
        f: ``[b,C,h,w]``, the value ``f(z)``; part of an autograd graph with ``z`` for solvers with ``needs_grad``.
        state: the state that the previous call of ``step`` returned; empty in the first iteration.
    """

    problem: ImplicitStep
    z: Tensor
    f: Tensor
    state: State

    def detach(self) -> Iterate:
        if not self.z.requires_grad:
            return self
        return dataclasses.replace(self, z=self.z.detach(), f=self.f.detach())

    def relaxed(self) -> Iterate:
        """Return the same iterate with the relaxed value ``z + relaxation * (f - z)`` instead of ``f``."""
        if self.problem.relaxation == 1:
            return self
        return dataclasses.replace(self, f=self.problem.relaxed(self.z, self.f))

    def select(self, mask: list[bool]) -> Iterate:
        """Return the iterate of the samples for which ``mask`` (``b`` values) is True."""
        if all(mask):
            return self
        rows = torch.tensor(_indices(mask))
        device_rows = to_device(rows, self.z.device)
        state = tuple(tensor[device_rows] for tensor in self.state)
        return Iterate(self.problem.select(rows), self.z[device_rows], self.f[device_rows], state)


@dataclass(frozen=True)
class IterativeSolver(ABC):
    """A solver with one network evaluation per iteration; ``step`` computes the next iterate.

    A sample is removed from the batch, and uses no further evaluations, as soon as its residual is at most
    ``tolerance`` or its ``f(z)`` is not finite. A sample whose ``f(z)`` is not finite has diverged. For a diverged
    sample, the solver returns the best iterate (``z_init`` if no evaluation was finite), marks the sample as not
    converged, and sets the residual of the sample to ``inf``. The best iterate is the evaluated iterate with the
    smallest :meth:`merit`, by default the smallest residual; with ``keep_best=False``, it is the latest finite iterate.
    If ``f(z)`` is not finite, solvers with ``has_safeguard`` continue from the best iterate of the sample. With
    ``has_safeguard``, a sample therefore diverges only if its last evaluation was not finite.

    Attributes:
        iterations: maximum number of network evaluations per sample, 1 or more.
        tolerance: maximum residual of a converged sample; the residual is the mean ``|z - f(z)|`` over the elements of
            the sample. The solver returns the evaluated ``z`` of a converged sample. With ``tolerance`` 0, only an
            exact root ends the iteration early. The default tolerance is the stopping criterion of the RNRI paper
            (appendix G).
        keep_best: if True, the solver returns ``f(z_k)`` for the evaluated iterate ``z_k`` with the smallest residual.
            If False, the solver returns the last iterate that ``step`` computed. ``f`` is not evaluated at the last
            iterate, and the returned residual is the residual of the previous iterate.
    """

    iterations: PositiveInt = 5
    tolerance: NonNegativeFloat = 1e-4
    keep_best: bool = True

    needs_grad: ClassVar[bool] = False
    """Whether ``step`` differentiates ``f`` by autograd."""
    returns_step: ClassVar[bool] = False
    """Whether a solver with ``keep_best`` may return an iterate at which ``f`` was not evaluated.

    If True, and if the last evaluated iterate has the smallest residual, the solver returns the next iterate that
    ``step`` computes. If False, the solver always returns ``f(z_k)`` of the best iterate ``z_k``, by default the
    iterate with the smallest residual.
    """
    has_safeguard: ClassVar[bool] = False
    """Whether ``step`` can continue a sample whose ``f(z)`` is not finite, from an earlier finite evaluation."""
    step_is_finite: ClassVar[bool] = False
    """Whether finite inputs of ``step`` always give a finite iterate.

    If True, the solver does not check whether the iterate is finite, which saves a synchronization of the GPU with the
    CPU.
    """

    @property
    def min_nfe(self) -> int:
        """Minimum number of evaluations; with fewer evaluations the solver equals a simpler method.

        With one evaluation and the initial guess ``z_s``, most solvers return ``f(z_s)``, which is the result of DDIM
        inversion. Solvers that override this property equal DDIM inversion or the fixed-point iteration if they have
        fewer than ``min_nfe`` evaluations.
        """
        return 2

    @property
    def backward_passes(self) -> int:
        """Maximum number of backward passes per sample."""
        if not self.needs_grad:
            return 0
        return self.iterations if self._steps_after_last else self.iterations - 1

    @property
    def _steps_after_last(self) -> bool:
        """Whether the solver calls ``step`` after the last evaluation of ``f``."""
        return self.returns_step or not self.keep_best

    @abstractmethod
    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        """Return the next iterate ``[b,C,h,w]``, and the state that the next call of ``step`` receives."""

    def merit(self, iterate: Iterate, residual: Tensor) -> Tensor:
        """Return the quantity ``[b]`` by which iterates are compared; the best iterate has the smallest value.

        By default, the quantity is ``residual``, the mean ``|z - f(z)|`` over the elements of a sample.
        """
        return residual

    def final_iterate(self, z: Tensor, state: State) -> Tensor:
        """Return the solver's result ``[b,C,h,w]`` from the iterate ``z`` and the ``state`` of the last ``step``."""
        return z

    def has_budget(self, nfe: int, max_nfe: int) -> bool:
        """Return whether a sample that used ``nfe`` of at most ``max_nfe`` network evaluations may iterate again."""
        return nfe + 1 <= max_nfe

    def __call__(self, problem: ImplicitStep, z_init: Tensor, max_nfe: Tensor | None = None) -> Solution:
        """Solve ``problem`` from the initial guess ``z_init [B,C,h,w]``.

        ``max_nfe`` (int64 ``[B]``) is the maximum number of network evaluations of each sample and replaces
        ``iterations``. On a GPU, a solver with ``needs_no_wait`` counts ``max_nfe`` evaluations for every sample, even
        if the sample converges earlier. The number of evaluations in later inversion steps therefore does not depend on
        the other samples of the batch. A solver with ``needs_no_wait`` synchronizes the CPU with the GPU only if
        ``max_nfe`` is not the same for all samples of the batch.
        """
        limits = [self.iterations] * len(z_init) if max_nfe is None else max_nfe.tolist()
        counts_limits = z_init.device.type != "cpu" and self.needs_no_wait
        if counts_limits and len(set(limits)) == 1:
            return self._solve_without_wait(problem.with_zero_counts(), z_init, limits[0])
        problem = problem.with_zero_counts()
        counter = problem.counter
        best = BestIterate(z_init, self.keep_best)
        steps_after_last = self._steps_after_last
        z = z_init
        state: State = ()
        while True:
            # Evaluate f at the current iterate.
            rows = problem.counter.rows
            is_last = [not self.has_budget(counter.forward[row] + 1, limits[row]) for row in rows]
            differentiate = self.needs_grad and (steps_after_last or not all(is_last))
            iterate = Iterate(problem, *_evaluate(problem, z, differentiate), state)

            # Record the iterate, and stop samples that have converged, diverged or used all of their evaluations.
            residual = self._record(best, iterate.detach())
            active = [
                r > self.tolerance and self._is_usable(best, row, r) and (steps_after_last or not last)
                for row, r, last in zip(rows, residual, is_last, strict=True)
            ]
            if not any(active):
                break

            # Compute the next iterate. If the solver needs gradients, stopped samples are removed only after the step,
            # because the autograd graph spans the whole batch.
            if not self.needs_grad:
                iterate = iterate.select(active)
                is_last = list(compress(is_last, active))
                residual = list(compress(residual, active))
                active = [True] * len(is_last)
            z, state = self.step(iterate.relaxed())
            if not self.step_is_finite:
                finite = z.flatten(1).isfinite().all(1).cpu().tolist()
                active = [is_active and is_finite for is_active, is_finite in zip(active, finite, strict=True)]

            # Store the result of samples after their last evaluation, and continue with the other samples.
            problem = iterate.problem
            if steps_after_last:
                ends = [
                    is_active and last and r <= best.residual[row]
                    for row, r, is_active, last in zip(problem.counter.rows, residual, active, is_last, strict=True)
                ]
                best.finalize(problem.counter.rows, ends, self.final_iterate(z, state))
                active = [is_active and not last for is_active, last in zip(active, is_last, strict=True)]
            if not any(active):
                break
            iterate = Iterate(problem, z, z, state).select(active)
            problem, z, state = iterate.problem, iterate.z, iterate.state
        solution = best.solution(self.tolerance, counter)
        if not counts_limits:
            return solution
        nfe = torch.tensor(limits)
        without_backward = self.iterations - self.backward_passes
        backward = nfe - without_backward if self.needs_grad else torch.zeros_like(nfe)
        return dataclasses.replace(solution, nfe=nfe, backward=backward)

    @property
    def needs_no_wait(self) -> bool:
        """Whether the solver evaluates all samples equally often on a GPU, without synchronizing the CPU with the GPU.

        The property is True if no sample is expected to stop early (``tolerance`` 0), or if ``iterations`` is at most
        2. All other solvers synchronize the CPU with the GPU once per evaluation, in order to remove converged samples
        from the batch. If converged samples remained in the batch, their evaluations would be counted, and an
        allocation by difficulty would have fewer evaluations for later inversion steps.
        """
        if type(self).has_budget is not IterativeSolver.has_budget:
            return False
        return self.tolerance == 0 or self.iterations <= MAX_EVALUATIONS_WITHOUT_WAIT

    def _solve_without_wait(self, problem: ImplicitStep, z_init: Tensor, evaluations: int) -> Solution:
        """Solve ``problem`` with ``evaluations`` evaluations of every sample, without synchronizing with the device.

        The solutions equal the solutions of ``__call__``. A sample that stops early remains in the batch: the iterate
        and the result of the sample do not change any more, but all evaluations of the sample are counted.
        """
        z = z_init
        best_z = best_f = result = z_init
        state: State = ()
        best_residual = best_merit = z_init.new_full((len(z_init),), math.inf)
        diverged = z_init.new_zeros(len(z_init), dtype=torch.bool)
        active = ~diverged
        for k in range(evaluations):
            has_step = self._steps_after_last or k + 1 < evaluations
            iterate = Iterate(problem, *_evaluate(problem, z, self.needs_grad and has_step), state)
            evaluated = iterate.detach()
            residual = mean_absolute(evaluated.z - evaluated.f)
            merit = self.merit(evaluated, residual)
            finite = residual.isfinite()
            accepted = active & finite
            if self.keep_best:
                accepted = accepted & (merit < best_merit)
            best_residual = torch.where(accepted, residual, best_residual)
            best_merit = torch.where(accepted, merit, best_merit)
            diverged = torch.where(active, ~finite, diverged)
            rows = _as_rows(accepted)
            best_z = torch.where(rows, evaluated.z, best_z)
            best_f = torch.where(rows, evaluated.f, best_f)
            result = torch.where(rows, evaluated.relaxed().f, result)
            result = torch.where(_as_rows(diverged), best_z, result)
            usable = best_residual.isfinite() if self.has_safeguard else finite
            active = active & usable & ~(residual <= self.tolerance)
            if has_step:
                z, state = self.step(iterate.relaxed())
                if not self.step_is_finite:
                    active = active & z.flatten(1).isfinite().all(1)
                if k + 1 == evaluations:
                    ends = active & (residual <= best_residual)
                    result = torch.where(_as_rows(ends), self.final_iterate(z, state), result)
                z = torch.where(_as_rows(active), z, evaluated.z)
        best_residual = torch.where(diverged, math.inf, best_residual)
        converged = best_residual <= self.tolerance
        result = torch.where(_as_rows(converged), best_z, result)
        counter = problem.counter
        nfe, backward = torch.tensor(counter.forward), torch.tensor(counter.backward)
        return Solution(result, best_residual, nfe, backward, converged, best_f)

    def _record(self, best: BestIterate, iterate: Iterate) -> list[float]:
        """Update ``best`` with ``iterate``, and return the residuals of the ``b`` samples in ``iterate``."""
        residual = mean_absolute(iterate.z - iterate.f)
        return best.update(iterate, residual, self.merit(iterate, residual))

    def _is_usable(self, best: BestIterate, row: int, residual: float) -> bool:
        """Return whether ``step`` can continue the sample ``row``, whose last evaluation has the ``residual``.

        A solver with ``has_safeguard`` needs one finite evaluation of the sample; any other solver needs a finite last
        evaluation.
        """
        return math.isfinite(best.residual[row] if self.has_safeguard else residual)


def _evaluate(problem: ImplicitStep, z: Tensor, differentiate: bool) -> tuple[Tensor, Tensor]:
    """Return ``z`` and ``f(z)``; with ``differentiate``, ``f(z)`` is differentiable with respect to ``z``."""
    if differentiate and torch.is_inference_mode_enabled():
        raise RuntimeError(
            "this solver differentiates the network, which torch.inference_mode forbids; use torch.no_grad instead "
            "(with Lightning, create the Trainer with inference_mode=False)."
        )
    with torch.set_grad_enabled(differentiate):
        z = z.detach().requires_grad_(differentiate)
        return z, problem(z)


def _as_rows(mask: Tensor) -> Tensor:
    """Return ``mask [B]`` with the shape ``[B,1,1,1]``."""
    return mask.view(-1, 1, 1, 1)


def _indices(mask: list[bool]) -> list[int]:
    return [i for i, selected in enumerate(mask) if selected]


class BestIterate:
    """The finite iterate with the smallest merit of each sample; the latest finite iterate if ``keep_best`` is False.

    Per-sample scalars are stored in Python lists, which are faster than tensors for the small batches of an inversion.

    Attributes:
        z, f: ``[B,C,h,w]``, the best iterate ``z`` and the value ``f(z)``.
        result: ``[B,C,h,w]``, the latents that the solver returns for samples that do not converge.
        residual: ``B`` numbers, residual of the best iterate; ``inf`` before the first finite evaluation.
        merit: ``B`` numbers, value of ``IterativeSolver.merit`` at the best iterate.
        diverged: ``B`` values, whether the last evaluation of a sample was not finite.
    """

    def __init__(self, z_init: Tensor, keep_best: bool) -> None:
        self.keep_best = keep_best
        self.z = z_init
        self.f = z_init
        self.result = z_init.clone()
        self.residual = [math.inf] * len(z_init)
        self.merit = [math.inf] * len(z_init)
        self.diverged = [False] * len(z_init)

    def update(self, iterate: Iterate, residual: Tensor, merit: Tensor) -> list[float]:
        """Replace the best iterate of each sample whose finite ``iterate`` has a smaller merit than the best iterate.

        If ``keep_best`` is False, every finite ``iterate`` replaces the previous one. The merit is the value of
        ``IterativeSolver.merit``; ``residual`` and ``merit`` have the shape ``[b]``.

        Returns:
            The ``b`` residuals; residuals that are not finite are replaced by ``inf``.
        """
        rows = iterate.problem.counter.rows
        # Residual and merit are transferred to the CPU together, so that each evaluation has only one GPU
        # synchronization.
        if merit is residual:
            residuals = merits = residual.cpu().tolist()
        else:
            residuals, merits = torch.stack([residual, merit.to(residual)]).cpu().tolist()
        finite = [math.isfinite(r) for r in residuals]
        accepted = [
            is_finite and (not self.keep_best or m < self.merit[row])
            for row, is_finite, m in zip(rows, finite, merits, strict=True)
        ]
        for row, r, m, is_finite, is_accepted in zip(rows, residuals, merits, finite, accepted, strict=True):
            self.diverged[row] = not is_finite
            if is_accepted:
                self.residual[row] = r
                self.merit[row] = m
        self.z = replace_rows(self.z, rows, accepted, iterate.z)
        self.f = replace_rows(self.f, rows, accepted, iterate.f)
        self.result = replace_rows(self.result, rows, accepted, iterate.relaxed().f)
        if not all(finite):  # the result of a diverged sample is its best iterate z instead of f(z)
            diverged = to_device(torch.tensor(self.diverged), self.z.device).view(-1, 1, 1, 1)
            self.result = torch.where(diverged, self.z, self.result)
        return [r if is_finite else math.inf for r, is_finite in zip(residuals, finite, strict=True)]

    def finalize(self, rows: list[int], mask: list[bool], z: Tensor) -> None:
        """Set the results of the samples ``rows`` for which ``mask`` is True to their rows of ``z [b,C,h,w]``."""
        self.result = replace_rows(self.result, rows, mask, z)

    def solution(self, tolerance: float, counter: EvaluationCounter) -> Solution:
        residual = [math.inf if diverged else r for r, diverged in zip(self.residual, self.diverged, strict=True)]
        converged = torch.tensor([r <= tolerance for r in residual])
        z = self.result
        if converged.any():
            z = torch.where(to_device(converged, z.device).view(-1, 1, 1, 1), self.z, z)
        return Solution(
            z,
            torch.tensor(residual, dtype=torch.float64),
            torch.tensor(counter.forward),
            torch.tensor(counter.backward),
            converged,
            self.f,
        )


def replace_rows(table: Tensor, rows: list[int], mask: list[bool], values: Tensor) -> Tensor:
    """Return ``table`` with ``table[rows[mask]]`` replaced by ``values[mask]``.

    Args:
        table: ``[B,...]``; the tensor is not modified.
        rows: ``b`` indices into ``table``.
        mask: ``b`` values, whether a row is replaced.
        values: ``[b,...]``, the new rows of ``table``.
    """
    if all(mask) and len(rows) == len(table):
        return values
    selected = _indices(mask)
    if not selected:
        return table
    table = table.clone()
    table[to_device(torch.tensor([rows[i] for i in selected]), table.device)] = values[
        to_device(torch.tensor(selected), values.device)
    ]
    return table


@dataclass(frozen=True)
class FixedPoint(IterativeSolver):
    """Fixed-point iteration ``z <- f(z)`` (AIDI, Pan et al. 2023).

    ``FixedPoint(iterations=1, tolerance=0)`` is DDIM inversion.
    """

    step_is_finite: ClassVar[bool] = True

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        return iterate.f, ()


@dataclass(frozen=True)
class AveragedFixedPoint(IterativeSolver):
    """AIDI-E, the "empirical" acceleration of AIDI (Pan et al. 2023): ``z <- (f(z_k) + f(z_{k-1})) / 2``.

    The mean damps error components whose sign alternates, and halves the convergence rate of all other error
    components.
    """

    step_is_finite: ClassVar[bool] = True

    @property
    def min_nfe(self) -> int:
        return 3

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        z = (iterate.f + iterate.state[0]) / 2 if iterate.state else iterate.f
        return z, (iterate.f,)
