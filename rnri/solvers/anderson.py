"""Anderson acceleration of the implicit equation, plain and safeguarded; every sample is accelerated on its own."""

from __future__ import annotations

from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from rnri.solvers.implicit import ImplicitStep
from rnri.solvers.iterative import Iterate, IterativeSolver, State
from rnri.solvers.secants import Secants
from rnri.validation import OpenUnitInterval, dataclass

DERIVATIVE_DRIFT = 6.0
"""Measured change of the network's derivative from one step to the next, per unit of ``B``."""
LONG_STEP = 0.9
"""``B`` above which a noise prediction's older differences mislead; measured."""
LONG_STEP_MEMORY = 2
"""Maximum number of differences in such a step."""
RETRIES = 3
"""Failures without a new best iterate before the safeguard changes its direction; measured on tests.problems."""


@dataclass(frozen=True)
class Anderson(IterativeSolver):
    """Anderson acceleration of the fixed-point iteration (AIDI-A; Walker & Ni 2011, type II).

    The next iterate is ``f_k - dF gamma``, where ``gamma`` is the least-squares solution of ``dR gamma = r_k`` over the
    last ``memory`` differences of values and residuals.

    Attributes:
        memory: maximum number of differences, 1 or more.
        regularization: Tikhonov weight relative to the squared norm of each difference; keeps the least-squares problem
            solvable when differences are parallel or as small as the network's rounding error.
    """

    memory: PositiveInt = 3
    regularization: NonNegativeFloat = 1e-10

    step_is_finite: ClassVar[bool] = True

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        f = iterate.f.flatten(1)  # [b,d]
        r = (iterate.f - iterate.z).flatten(1)  # [b,d]
        if not iterate.state:
            return iterate.f, (f[:, None], r[:, None])
        fs = torch.cat([iterate.state[0], f[:, None]], 1)[:, -self.memory - 1 :]  # [b,m+1,d]
        rs = torch.cat([iterate.state[1], r[:, None]], 1)[:, -self.memory - 1 :]
        z = anderson_mix(f, r, Differences(fs.diff(dim=1), rs.diff(dim=1)), self.regularization)
        return z.view_as(iterate.f), (fs, rs)


@dataclass(frozen=True)
class SafeguardedAnderson(IterativeSolver):
    """Anderson acceleration that returns to the best iterate when it fails; the solver of the default inverter.

    A sample fails if the norm of its residual exceeds ``growth`` times its best so far, if ``f`` is not finite, or if
    ``patience`` consecutive evaluations brought no new best. The next iterate is then ``z + damping^j (a - z)``, where
    ``z`` is the best iterate, ``j`` the number of failures since ``z`` was evaluated, and ``a`` is one of

    - ``f(z)``, with all differences discarded. Damping makes a map contractive whose derivative has eigenvalues below
      -1, as with strong guidance.
    - Anderson's iterate from ``z``, with the failed iterates among the differences. As the steps shrink, the
      least-squares problem becomes GMRES on the derivative at ``z``, which also handles eigenvalues above 1.

    After three failures without a new best the solver changes from one to the other. The steps shrink until there is a
    new best, which rules out cycles. Damped steps as a safeguard: Zhang, O'Donoghue & Boyd 2020 (arXiv 1808.03971).

    A stalled residual does not prove that there is no root: a few differences may not span Newton's step.

    In an inversion, differences from previous steps (``carried`` at most) fill the part of ``memory`` that the step's
    own differences leave, so that already the second iterate is better than ``f(z)``. This helps with images whose map
    has eigenvalues near -1: the fixed point alternates there, and the sampler amplifies the remaining residual. In a
    step of nearly the full noise range only the last two differences are used, because older ones mislead.

    If the last evaluated iterate is the best, the next iterate is returned, unevaluated, instead of ``f(z)``.

    Attributes:
        memory: maximum number of differences, 1 or more.
        regularization: as in :class:`Anderson`.
        growth: 1 or more; 1 accepts no increase.
        damping: in (0, 1).
        patience: evaluations, 1 or more.
        carried: maximum number of differences from previous steps; 0 solves each step on its own.
    """

    memory: PositiveInt = 4
    regularization: NonNegativeFloat = 1e-10
    growth: Annotated[float, Ge(1)] = 2.0
    damping: OpenUnitInterval = 0.5
    patience: PositiveInt = 8
    carried: NonNegativeInt = 2

    step_is_finite: ClassVar[bool] = True
    returns_step: ClassVar[bool] = True
    has_safeguard: ClassVar[bool] = True

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        f = iterate.f.flatten(1)  # [b,d]
        r = (iterate.f - iterate.z).flatten(1)  # [b,d]
        if not iterate.state:
            return self._first_step(iterate, f, r)
        state = SafeguardState(*iterate.state)
        norm = r.norm(dim=1)
        improved = norm < state.best_norm
        failed, state = self._update_failures(state, norm, improved)
        memory = self._max_memory(iterate.problem)
        fs, rs, best_index = _append(state, f, r, improved, memory)
        best_f = _gather(fs, best_index)  # [b,1,d]
        best_r = _gather(rs, best_index)
        discard = (failed & ~state.keeps_differences)[:, None, None]
        fs = torch.where(discard, best_f, fs)
        rs = torch.where(discard, best_r, rs)

        carried, drift = self._carried(iterate.problem, fs.shape[1] - 1, discard)
        differences = Differences(fs - best_f, rs - best_r, carried, drift)
        mixed = anderson_mix(best_f[:, 0], best_r[:, 0], differences, self.regularization)
        best_z = (best_f - best_r)[:, 0]
        damped = best_z + (self.damping**state.failures)[:, None] * (mixed - best_z)
        z = torch.where(failed[:, None], damped, mixed)
        state = state._replace(
            fs=fs,
            rs=rs,
            best_index=best_index,
            best_norm=torch.where(improved, norm, state.best_norm),
            stalled=torch.where(failed, 0.0, state.stalled),
        )
        return z.view_as(iterate.f), state

    def _first_step(self, iterate: Iterate, f: Tensor, r: Tensor) -> tuple[Tensor, State]:
        norm = r.norm(dim=1)
        zero = torch.zeros_like(norm)
        carried, drift = self._carried(iterate.problem, 0)
        empty = f[:, None][:, :0]
        z = anderson_mix(f, r, Differences(empty, empty, carried, drift), self.regularization)
        return z.view_as(iterate.f), SafeguardState(
            f[:, None], r[:, None], zero.long(), norm, failures=zero, stalled=zero, keeps_differences=zero.bool()
        )

    def _update_failures(self, state: SafeguardState, norm: Tensor, improved: Tensor) -> tuple[Tensor, SafeguardState]:
        """Return which samples failed, bool ``[b]``, and the state with updated counts."""
        grown = ~(norm <= self.growth * state.best_norm)  # true for NaN
        stalled = torch.where(improved, 0.0, state.stalled + 1)
        failed = grown | (stalled >= self.patience)
        failures = torch.where(improved, 0.0, state.failures + failed)
        changes = failed & (failures > 1) & (failures % RETRIES == 1)
        keeps_differences = state.keeps_differences ^ changes
        return failed, state._replace(failures=failures, stalled=stalled, keeps_differences=keeps_differences)

    def _carried(
        self, problem: ImplicitStep, num_current: int, discard: Tensor | None = None
    ) -> tuple[Secants | None, float]:
        """Return differences of ``f`` from previous steps, and the expected error of their derivative.

        The derivative of ``y`` drifts in proportion to the length of the step, which ``B`` measures; in that of ``f``
        the drift is multiplied by ``B`` again. ``num_current`` differences of this step take precedence. Samples with
        ``discard`` (bool ``[b,1,1]``) get zeros.
        """
        count = min(self.carried, self._max_memory(problem) - num_current)
        if problem.recorder is None or count <= 0:
            return None, 0.0
        secants = problem.recorder.previous
        dz = secants.dz[:, -count:]
        dy = problem.relaxed(dz, problem.b * secants.dy[:, -count:])
        if discard is not None:
            dz = torch.where(discard, 0.0, dz)
            dy = torch.where(discard, 0.0, dy)
        return Secants(dz, dy), DERIVATIVE_DRIFT * problem.relaxation * problem.b**2

    def _max_memory(self, problem: ImplicitStep) -> int:
        is_long = problem.recorder is not None and problem.predicts == "epsilon" and problem.b > LONG_STEP
        return min(self.memory, LONG_STEP_MEMORY) if is_long else self.memory


class SafeguardState(NamedTuple):
    """State of :class:`SafeguardedAnderson` between iterations.

    Attributes:
        fs, rs: ``[b,m,d]``, values ``f(z)`` and residuals ``f(z) - z`` of the last iterates.
        best_index: int64 ``[b]``, index of the best iterate among them.
        best_norm: ``[b]``, norm of its residual.
        failures: ``[b]``, failures since the best iterate was evaluated.
        stalled: ``[b]``, consecutive evaluations without a new best.
        keeps_differences: bool ``[b]``, whether a failed step keeps its differences (Anderson's iterate) or discards
            them (``f(z)``).
    """

    fs: Tensor
    rs: Tensor
    best_index: Tensor
    best_norm: Tensor
    failures: Tensor
    stalled: Tensor
    keeps_differences: Tensor


class Differences(NamedTuple):
    """Differences that Anderson's method combines.

    Attributes:
        df, dr: ``[b,m,d]``, differences of values and of residuals.
        carried: differences of ``f`` (as ``dy``) from previous steps, of norm 1 in ``z``.
        drift: expected error of the derivative in ``carried``; its square is their Tikhonov weight.
    """

    df: Tensor
    dr: Tensor
    carried: Secants | None = None
    drift: float = 0.0


def anderson_mix(f: Tensor, r: Tensor, differences: Differences, regularization: float) -> Tensor:
    """Return Anderson's iterate ``f - df gamma``, ``[b,d]``, of the value ``f [b,d]`` and residual ``r [b,d]``."""
    df, dr, carried, drift = differences
    norm = dr.norm(dim=2, keepdim=True)
    norm = torch.where(norm > 0, norm, 1.0)  # equal iterates: a difference of 0 has the weight 0
    dr = dr / norm  # of norm 1, so that the regularization acts on short and long differences alike
    df = df / norm
    num_current = dr.shape[1]
    if carried is not None:
        dr = torch.cat([dr, carried.dy - carried.dz], 1)
        df = torch.cat([df, carried.dy], 1)
    products = _to_float64(torch.cat([dr @ dr.mT, dr @ r[:, :, None]], 2))
    gram, projection = products.split([dr.shape[1], 1], 2)
    ridge = torch.full(dr.shape[:2], regularization, dtype=torch.float64, device=gram.device)
    ridge[:, num_current:] = drift**2
    ridge = ridge + (gram.diagonal(dim1=1, dim2=2) == 0)
    # solve_ex leaves a singular sample non-finite instead of raising for the batch; that sample's next iterate is f.
    gamma = torch.linalg.solve_ex(gram + torch.diag_embed(ridge), projection)[0].to(df)  # [b,m,1]
    return f - (gamma.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) * df).sum(1)


def _append(
    state: SafeguardState, f: Tensor, r: Tensor, improved: Tensor, memory: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Append ``f`` and ``r`` ``[b,d]`` to the last iterates; return ``fs``, ``rs`` and the new ``best_index``.

    Beyond ``memory`` differences the oldest iterate that is not the best is removed. An iterate that is not finite is
    replaced by the best one, a difference of 0.
    """
    finite = r.isfinite().all(1)
    f = torch.where(finite[:, None], f, _gather(state.fs, state.best_index)[:, 0])
    r = torch.where(finite[:, None], r, _gather(state.rs, state.best_index)[:, 0])
    fs = torch.cat([state.fs, f[:, None]], 1)
    rs = torch.cat([state.rs, r[:, None]], 1)
    length = fs.shape[1]
    best_index = torch.where(improved, length - 1, state.best_index)
    if length <= min(memory, f.shape[1]) + 1:  # more differences than elements are redundant
        return fs, rs, best_index
    removed = torch.where(finite, (best_index == 0).long(), length - 1)
    remaining = torch.arange(length - 1, device=best_index.device).expand(len(best_index), -1)
    remaining = remaining + (remaining >= removed[:, None])
    remaining = remaining[:, :, None].expand(-1, -1, f.shape[1])
    return fs.gather(1, remaining), rs.gather(1, remaining), best_index - (removed < best_index).long()


def _to_float64(matrix: Tensor) -> Tensor:
    """Return ``matrix`` in float64, on the CPU if its device has no float64 (MPS)."""
    return matrix.cpu().double() if matrix.device.type == "mps" else matrix.double()


def _gather(history: Tensor, index: Tensor) -> Tensor:
    """Return the entries ``[b,1,d]`` of ``history [b,m,d]`` at ``index [b]``."""
    return history.gather(1, index[:, None, None].expand(-1, 1, history.shape[2]))
