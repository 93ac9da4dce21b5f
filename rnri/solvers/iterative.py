"""The iteration that all solvers of the implicit equation ``z = f(z)`` share.

A solver only implements ``step``, which computes the next iterate. ``IterativeSolver`` implements the loop, selects the
best iterate, and stops samples that reach the tolerance or diverge. Each sample is solved independently of the other
samples of its batch. Only the network's rounding errors depend on the batch size: the relative difference of seeds is
1e-5 in float32, 2e-3 in bfloat16 and 4e-4 in float16.
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
"""Tensors that a solver keeps between iterations; the first dimension of each tensor is the batch."""


@dataclasses.dataclass(frozen=True)
class Iterate:
    """An evaluated iterate of the ``b`` samples that are still being solved.

    Attributes:
        problem: the equation of these samples.
        z: ``[b,C,h,w]``, the iterate.
        f: ``[b,C,h,w]``, the value ``f(z)``; part of an autograd graph with ``z`` for solvers with ``needs_grad``.
        state: the state that the previous call of ``step`` returned; empty in the first iteration.
    """

    problem: ImplicitStep
    z: Tensor
    f: Tensor
    state: State

    def detach(self) -> Iterate:
        return dataclasses.replace(self, z=self.z.detach(), f=self.f.detach())

    def relaxed(self) -> Iterate:
        """Return the same iterate with the relaxed value ``z + relaxation * (f - z)`` instead of ``f``."""
        return dataclasses.replace(self, f=self.problem.relaxed(self.z, self.f))

    def select(self, mask: Tensor) -> Iterate:
        """Return the iterate of the samples with ``mask`` (bool ``[b]``)."""
        return Iterate(
            _select_step(self.problem, mask),
            _select_rows(self.z, mask),
            _select_rows(self.f, mask),
            tuple(_select_rows(tensor, mask) for tensor in self.state),
        )


@dataclass(frozen=True)
class IterativeSolver(ABC):
    """A solver with one network evaluation per iteration; ``step`` computes the next iterate.

    A sample is removed from the batch, and uses no further evaluations, as soon as its residual is at most
    ``tolerance`` or its ``f(z)`` is not finite. A sample whose ``f(z)`` is not finite has diverged: the solver returns
    the best evaluated iterate of this sample (``z_init`` if no evaluation was finite), marked as not converged and with
    residual ``inf``. Solvers with ``has_safeguard`` continue such a sample from its best iterate; with these solvers a
    sample diverges only if its last evaluation was not finite.

    Attributes:
        iterations: maximum number of network evaluations per sample, 1 or more.
        tolerance: maximum residual, the mean ``|z - f(z)|`` over the elements of a sample, of a converged sample. The
            solver returns the evaluated ``z`` of a converged sample. With 0 only an exact root ends the iteration
            early. The default is the stopping criterion of the RNRI paper (appendix G).
        keep_best: True returns ``f(z_k)`` for the evaluated iterate ``z_k`` with the smallest residual. False returns
            the last iterate that ``step`` computed, at which ``f`` is not evaluated, with the residual of the
            iterate before it.
    """

    iterations: PositiveInt = 5
    tolerance: NonNegativeFloat = 1e-4
    keep_best: bool = True

    needs_grad: ClassVar[bool] = False
    """Whether ``step`` differentiates ``f`` by autograd."""
    returns_step: ClassVar[bool] = False
    """Whether the solver with ``keep_best`` returns the iterate after the last evaluated one if the latter is the best.

    If False, the solver returns ``f(z_k)`` for the best iterate ``z_k`` in this case, too.
    """
    has_safeguard: ClassVar[bool] = False
    """Whether ``step`` can continue a sample whose ``f(z)`` is not finite, from an earlier finite evaluation."""
    step_is_finite: ClassVar[bool] = False
    """Whether finite inputs of ``step`` always give a finite iterate.

    If True, the iterate is not checked, which saves a synchronization of the GPU with the CPU.
    """

    @abstractmethod
    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        """Return the next iterate ``[b,C,h,w]`` and the new state."""

    def merit(self, iterate: Iterate, residual: Tensor) -> Tensor:
        """Return the quantity ``[b]`` that ``keep_best`` minimizes, by default the mean ``|z - f(z)|``."""
        return residual

    def final_iterate(self, z: Tensor, state: State) -> Tensor:
        """Return the solver's result ``[b,C,h,w]`` from the iterate ``z`` and the ``state`` of the last ``step``."""
        return z

    def has_budget(self, nfe: Tensor, max_nfe: Tensor) -> Tensor:
        """Return whether each sample may do another iteration after ``nfe [b]`` network evaluations, bool ``[b]``."""
        return nfe + 1 <= max_nfe

    def __call__(self, problem: ImplicitStep, z_init: Tensor, max_nfe: Tensor | None = None) -> Solution:
        """Solve ``problem`` from the initial guess ``z_init [B,C,h,w]``.

        ``max_nfe`` (int64 ``[B]``) is the maximum number of network evaluations of each sample and replaces
        ``iterations``.
        """
        if max_nfe is None:
            max_nfe = torch.full((len(z_init),), self.iterations)
        problem = problem.with_zero_counts()
        counter = problem.counter
        best = BestIterate(z_init, self.keep_best)
        steps_after_last = self.returns_step or not self.keep_best
        z = z_init
        state: State = ()
        while True:
            # Evaluate f at the current iterate.
            rows = problem.counter.rows
            is_last = ~self.has_budget(problem.counter.nfe + 1, max_nfe[rows])
            differentiate = self.needs_grad and (steps_after_last or not bool(is_last.all()))
            iterate = Iterate(problem, *_evaluate(problem, z, differentiate), state)

            # Record the iterate, and stop samples that have converged, diverged or used all of their evaluations.
            residual = self._record(best, iterate.detach())
            active = (residual > self.tolerance) & self._is_usable(best, rows, residual)
            if not steps_after_last:
                active &= ~is_last
            if not active.any():
                break

            # Compute the next iterate. With gradients, stopped samples are removed only after the step, because the
            # autograd graph spans the whole batch.
            if not self.needs_grad:
                iterate = iterate.select(active)
                is_last = is_last[active]
                residual = residual[active]
                active = active[active]
            z, state = self.step(iterate.relaxed())
            if not self.step_is_finite:
                active &= z.flatten(1).isfinite().all(1).cpu()

            # Store the result of samples after their last evaluation, and continue with the other samples.
            problem = iterate.problem
            if steps_after_last:
                rows = problem.counter.rows
                ends = active & is_last & best.is_best(rows, residual)
                best.finalize(rows, ends, self.final_iterate(z, state))
                active &= ~is_last
            if not active.any():
                break
            problem = _select_step(problem, active)
            z = _select_rows(z, active)
            state = tuple(_select_rows(tensor, active) for tensor in state)
        return best.solution(self.tolerance, counter.forward, counter.backward)

    def _record(self, best: BestIterate, iterate: Iterate) -> Tensor:
        """Update ``best`` with ``iterate``; return the residuals of ``iterate`` on the CPU, float64 ``[b]``."""
        residual = mean_absolute(iterate.z - iterate.f)
        return best.update(iterate, residual, self.merit(iterate, residual))

    def _is_usable(self, best: BestIterate, rows: Tensor, residual: Tensor) -> Tensor:
        """Return whether ``step`` can continue each sample after its last evaluation, bool ``[b]``."""
        return best.has_finite(rows) if self.has_safeguard else residual.isfinite()


def _evaluate(problem: ImplicitStep, z: Tensor, differentiate: bool) -> tuple[Tensor, Tensor]:
    """Return ``z`` and ``f(z)``; with ``differentiate``, ``f(z)`` is differentiable with respect to ``z``."""
    if differentiate and torch.is_inference_mode_enabled():
        raise RuntimeError(
            "this solver differentiates the network, which torch.inference_mode forbids; use torch.no_grad "
            "(in Lightning, Trainer(inference_mode=False))."
        )
    with torch.set_grad_enabled(differentiate):
        z = z.detach().requires_grad_(differentiate)
        return z, problem(z)


def _select_step(problem: ImplicitStep, mask: Tensor) -> ImplicitStep:
    return problem if mask.all() else problem.select(mask.nonzero().flatten())


def _select_rows(tensor: Tensor, mask: Tensor) -> Tensor:
    return tensor if mask.all() else tensor[to_device(mask.nonzero().flatten(), tensor.device)]


class BestIterate:
    """The best finite iterate of every sample, or the latest finite iterate without ``keep_best``.

    Attributes:
        z, f: ``[B,C,h,w]``, the best iterate ``z`` and the value ``f(z)``.
        result: ``[B,C,h,w]``, the latents that the solver returns for samples that do not converge.
        residual: float64 ``[B]`` on the CPU, residual of the best iterate; ``inf`` before the first finite evaluation.
        merit: float64 ``[B]`` on the CPU, value of ``IterativeSolver.merit`` at the best iterate.
        diverged: bool ``[B]``, whether the last evaluation of a sample was not finite.
    """

    def __init__(self, z_init: Tensor, keep_best: bool) -> None:
        self.keep_best = keep_best
        self.z = z_init.clone()
        self.f = z_init.clone()
        self.result = z_init.clone()
        self.residual = torch.full((len(z_init),), torch.inf, dtype=torch.float64)
        self.merit = self.residual.clone()
        self.diverged = torch.zeros(len(z_init), dtype=torch.bool)

    def update(self, iterate: Iterate, residual: Tensor, merit: Tensor) -> Tensor:
        """Replace the best iterate of the samples for which ``iterate`` has a smaller merit.

        Returns:
            The residuals on the CPU, float64 ``[b]``; residuals that are not finite are replaced by ``inf``.
        """
        rows = iterate.problem.counter.rows
        # Residual and merit are transferred to the CPU together: the only GPU synchronization per evaluation.
        residual, merit = torch.stack([residual, merit.to(residual)]).cpu().double()
        residual = residual.nan_to_num(nan=torch.inf, posinf=torch.inf)
        finite = residual.isfinite()
        accepted = finite & (merit < self.merit[rows]) if self.keep_best else finite
        self.residual[rows[accepted]] = residual[accepted]
        self.merit[rows[accepted]] = merit[accepted]
        scatter_rows_(self.z, rows, accepted, iterate.z)
        scatter_rows_(self.f, rows, accepted, iterate.f)
        scatter_rows_(self.result, rows, accepted, iterate.relaxed().f)
        self.diverged[rows] = ~finite
        if not finite.all():  # f may be not finite at the stored result of these samples, so return z instead
            diverged = to_device(rows[~finite], self.z.device)
            self.result[diverged] = self.z[diverged]
        return residual

    def has_finite(self, rows: Tensor) -> Tensor:
        """Return whether each sample had a finite evaluation, bool ``[b]``."""
        return self.residual[rows].isfinite()

    def is_best(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Return whether the last iterate, with ``residual [b]``, is the best iterate of each sample, bool ``[b]``."""
        return residual <= self.residual[rows]

    def finalize(self, rows: Tensor, mask: Tensor, z: Tensor) -> None:
        """Set the result of those samples ``rows [b]`` for which ``mask`` (bool ``[b]``) is True to ``z [b,C,h,w]``."""
        scatter_rows_(self.result, rows, mask, z)

    def solution(self, tolerance: float, nfe: Tensor, backward: Tensor) -> Solution:
        residual = self.residual.masked_fill(self.diverged, torch.inf)
        converged = residual <= tolerance
        z = torch.where(to_device(converged, self.z.device).view(-1, 1, 1, 1), self.z, self.result)
        return Solution(z, residual, nfe, backward, converged, self.f)


def scatter_rows_(table: Tensor, rows: Tensor, mask: Tensor, values: Tensor) -> None:
    """Set ``table[rows[mask]] = values[mask]`` in place.

    Args:
        table: ``[B,...]``.
        rows: int64 ``[b]``, indices into ``table``.
        mask: bool ``[b]``, the rows that are written.
        values: ``[b,...]``, the new rows of ``table``.
    """
    if mask.all() and len(rows) == len(table):
        table.copy_(values)
    elif mask.any():
        table[to_device(rows[mask], table.device)] = values[to_device(mask.nonzero().flatten(), values.device)]


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
    """``z <- (f(z_k) + f(z_{k-1})) / 2``, the "empirical" acceleration of AIDI (AIDI-E, Pan et al. 2023).

    The mean damps error components whose sign alternates, and halves the convergence rate of all other components.
    """

    step_is_finite: ClassVar[bool] = True

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        z = (iterate.f + iterate.state[0]) / 2 if iterate.state else iterate.f
        return z, (iterate.f,)
