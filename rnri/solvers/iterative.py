"""The iteration that all solvers of the implicit equation ``z = f(z)`` share.

A solver implements its step only. ``IterativeSolver`` implements the loop, the best iterate, the tolerance and the
handling of samples that converge or diverge. All of it is per sample: no sample changes another sample's result. The
network itself may depend on the batch size in its last digits: by 1e-5 of a seed in float32, and by as much as other
rounding in half precision (2e-3 in bfloat16, 4e-4 in float16).
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
"""Tensors that a solver keeps between iterations; the first dimension of each is the batch."""


@dataclasses.dataclass(frozen=True)
class Iterate:
    """An evaluated iterate of the ``b`` samples that are still being solved.

    Attributes:
        problem: the equation of these samples.
        z: ``[b,C,h,w]``.
        f: ``[b,C,h,w]``, ``f(z)``; attached to ``z`` for solvers with ``needs_grad``.
        state: what the solver's last step returned; empty at the first.
    """

    problem: ImplicitStep
    z: Tensor
    f: Tensor
    state: State

    def detach(self) -> Iterate:
        return dataclasses.replace(self, z=self.z.detach(), f=self.f.detach())

    def relaxed(self) -> Iterate:
        """Return the same iterate with the relaxed value of ``f(z)``."""
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

    A sample leaves the batch when its residual is within ``tolerance`` or its ``f(z)`` is not finite, and uses no
    further evaluations. A sample whose ``f(z)`` is not finite has diverged: its best evaluated iterate (``z_init`` if
    there is none) is returned, not converged and with residual ``inf``. Solvers with ``has_safeguard`` continue from
    the best iterate instead; their samples diverge only if the last evaluation was not finite.

    Attributes:
        iterations: maximum number of network evaluations, 1 or more.
        tolerance: on the mean ``|z - f(z)|`` of a sample; within it the evaluated ``z`` itself is returned. 0 stops
            early at an exact root only. The default is the paper's criterion (appendix G).
        keep_best: return ``f(z_k)`` of the evaluated iterate with the smallest residual. False returns the last
            iterate of ``step``, which is not evaluated, with the residual of the iterate before it.
    """

    iterations: PositiveInt = 5
    tolerance: NonNegativeFloat = 1e-4
    keep_best: bool = True

    needs_grad: ClassVar[bool] = False
    """Whether ``step`` differentiates ``f`` by autograd."""
    returns_step: ClassVar[bool] = False
    """Whether, with ``keep_best``, a step from the last evaluated iterate is returned if that iterate is the best."""
    has_safeguard: ClassVar[bool] = False
    """Whether ``step`` recovers from an ``f(z)`` that is not finite, once a sample had a finite evaluation."""
    step_is_finite: ClassVar[bool] = False
    """Whether ``step`` maps finite values to finite values; then no check is needed, which would synchronize."""

    @abstractmethod
    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        """Return the next iterate ``[b,C,h,w]`` and the new state."""

    def merit(self, iterate: Iterate, residual: Tensor) -> Tensor:
        """Return the quantity ``[b]`` that ``keep_best`` minimizes, by default the mean ``|z - f(z)|``."""
        return residual

    def final_iterate(self, z: Tensor, state: State) -> Tensor:
        """Return the result ``[b,C,h,w]`` of a solver that ends after a step with the iterate ``z`` and ``state``."""
        return z

    def has_budget(self, nfe: Tensor, max_nfe: Tensor) -> Tensor:
        """Return whether another iteration fits after ``nfe [b]`` evaluations, bool ``[b]``."""
        return nfe + 1 <= max_nfe

    def __call__(self, problem: ImplicitStep, z_init: Tensor, max_nfe: Tensor | None = None) -> Solution:
        """Solve ``problem`` from the initial guess ``z_init [B,C,h,w]``.

        ``max_nfe`` (int64 ``[B]``) replaces ``iterations`` for each sample.
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

            # Record it, and stop samples that are solved, diverged or out of budget.
            residual = self._record(best, iterate.detach())
            active = (residual > self.tolerance) & self._is_usable(best, rows, residual)
            if not steps_after_last:
                active &= ~is_last
            if not active.any():
                break

            # Step. An autograd graph spans the batch, so that with gradients the batch is reduced after the step.
            if not self.needs_grad:
                iterate = iterate.select(active)
                is_last = is_last[active]
                residual = residual[active]
                active = active[active]
            z, state = self.step(iterate.relaxed())
            if not self.step_is_finite:
                active &= z.flatten(1).isfinite().all(1).cpu()

            # Return the step from a sample's last evaluation, and continue with the others.
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
        """Update ``best`` with ``iterate``; return its residuals on the CPU, float64 ``[b]``."""
        residual = mean_absolute(iterate.z - iterate.f)
        return best.update(iterate, residual, self.merit(iterate, residual))

    def _is_usable(self, best: BestIterate, rows: Tensor, residual: Tensor) -> Tensor:
        """Return whether a step can be computed from the last evaluation of each sample, bool ``[b]``."""
        return best.has_finite(rows) if self.has_safeguard else residual.isfinite()


def _evaluate(problem: ImplicitStep, z: Tensor, differentiate: bool) -> tuple[Tensor, Tensor]:
    """Return ``z`` and ``f(z)``, attached to each other if ``differentiate``."""
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
    """The best (or, without ``keep_best``, the latest) finite iterate of every sample, and the result for it.

    Attributes:
        z, f: ``[B,C,h,w]``, the iterate and its ``f(z)``.
        result: ``[B,C,h,w]``, what is returned for samples that do not converge.
        residual: float64 ``[B]`` on the CPU, ``inf`` before the first finite evaluation.
        merit: float64 ``[B]`` on the CPU, of ``IterativeSolver.merit``.
        diverged: bool ``[B]``, whether the last evaluation was not finite.
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
        """Keep ``iterate`` for the samples that it improves.

        Returns the residuals on the CPU, float64 ``[b]``, ``inf`` where they are not finite.
        """
        rows = iterate.problem.counter.rows
        # One transfer for both: the only synchronization of an evaluation.
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
        if not finite.all():  # the result of these samples may be the point at which f is not finite
            diverged = to_device(rows[~finite], self.z.device)
            self.result[diverged] = self.z[diverged]
        return residual

    def has_finite(self, rows: Tensor) -> Tensor:
        """Return whether each sample had a finite evaluation, bool ``[b]``."""
        return self.residual[rows].isfinite()

    def is_best(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Return whether the last iterate, with ``residual [b]``, is the one that is kept, bool ``[b]``."""
        return residual <= self.residual[rows]

    def finalize(self, rows: Tensor, mask: Tensor, z: Tensor) -> None:
        """Set the result of the samples ``rows`` with ``mask`` (bool ``[b]``) to ``z [b,C,h,w]``."""
        scatter_rows_(self.result, rows, mask, z)

    def solution(self, tolerance: float, nfe: Tensor, backward: Tensor) -> Solution:
        residual = self.residual.masked_fill(self.diverged, torch.inf)
        converged = residual <= tolerance
        z = torch.where(to_device(converged, self.z.device).view(-1, 1, 1, 1), self.z, self.result)
        return Solution(z, residual, nfe, backward, converged, self.f)


def scatter_rows_(table: Tensor, rows: Tensor, mask: Tensor, values: Tensor) -> None:
    """Write ``values [b,...]`` with ``mask`` (bool ``[b]``) into the ``rows [b]`` of ``table [B,...]``, in place."""
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

    It damps error components of alternating sign and halves the convergence rate of the others.
    """

    step_is_finite: ClassVar[bool] = True

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        z = (iterate.f + iterate.state[0]) / 2 if iterate.state else iterate.f
        return z, (iterate.f,)
