"""Two solvers with Anderson acceleration of the fixed-point iteration for ``z = f(z)``; one of them has a safeguard.

Each sample of a batch has its own least-squares problem.
"""

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
"""Change of the derivative of the network's prediction ``y`` between two inversion steps, divided by ``B``.

The value was measured. ``B`` is the coefficient of the prediction ``y`` in the step equation ``z = A z_s + B y(z)``.
"""
LONG_STEP = 0.9
"""Coefficient ``B`` above which an inversion step with noise prediction uses few differences of iterates.

``B`` is the coefficient of the noise prediction ``y`` in the step equation ``z = A z_s + B y(z)``. An inversion step
with ``B`` above ``LONG_STEP`` uses at most ``LONG_STEP_MEMORY`` differences. The value was measured.
"""
LONG_STEP_MEMORY = 2
"""Maximum number of differences of iterates in the least-squares problem of an inversion step with a large ``B``.

``B`` is the coefficient of the noise prediction, and is large if it is above ``LONG_STEP``.
"""
RETRIES = 3
"""Number of failures without a smaller residual after which the safeguard switches between its two kinds of updates.

The two kinds of updates are described in :class:`SafeguardedAnderson`. The value was tuned on the test equations in
``tests.problems``.
"""


@dataclass(frozen=True)
class Anderson(IterativeSolver):
    """Anderson acceleration of the fixed-point iteration (AIDI-A; Walker & Ni 2011, type II).

    The iterate after ``z_k`` is ``f_k - dF gamma``, where ``f_k`` is ``f(z_k)`` and ``gamma`` is the least-squares
    solution of ``dR gamma = r_k`` with the residual ``r_k = f_k - z_k``. The columns of ``dF`` and ``dR`` are the last
    ``memory`` differences of the values ``f(z)`` and of the residuals ``f(z) - z``.

    Attributes:
        memory: maximum number of differences of iterates in the least-squares problem, 1 or more.
        regularization: Tikhonov weight of the least-squares problem, relative to the squared norm of each difference.
            The regularization keeps the least-squares problem solvable when differences are parallel or are as small as
            the network's rounding error.
    """

    memory: PositiveInt = 3
    regularization: NonNegativeFloat = 1e-10

    step_is_finite: ClassVar[bool] = True

    @property
    def min_nfe(self) -> int:
        return 3

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
    """Anderson acceleration that restarts from the best iterate after a failure; used by the default inversion method.

    The best iterate of a sample is the iterate with the smallest residual norm so far. An iteration of a sample fails
    in one of three cases: the residual norm exceeds ``growth`` times the smallest residual norm so far, ``f(z)`` is not
    finite, or ``patience`` consecutive evaluations found no new best iterate. After a failure the next iterate is
    ``z + damping^j (a - z)``, where ``z`` is the best iterate, ``j`` is the number of failures since ``z`` was
    evaluated, and ``a`` is one of two points:

    - ``a = f(z)``, and all differences of iterates are discarded. The damping makes the iteration converge even if the
      derivative of ``f`` has eigenvalues below -1, which occur with strong guidance.
    - ``a`` is Anderson's iterate from ``z``, and the failed iterates are included in the differences. As the updates
      shrink, the least-squares problem becomes GMRES on the derivative of ``f`` at ``z``, which also handles
      eigenvalues above 1.

    After three failures without a new best iterate, the solver switches from one of the two points ``a`` to the other
    point. The updates shrink until a new best iterate is found, which rules out cycles. Zhang, O'Donoghue & Boyd 2020
    (arXiv 1808.03971) introduced damped updates as a safeguard of Anderson acceleration.

    A residual that stops decreasing does not prove that the equation ``z = f(z)`` has no root: the few differences of
    iterates may not span the direction of Newton's step.

    The least-squares problem of an inversion step may also contain up to ``carried`` differences from previous
    inversion steps, while the current inversion step has fewer than ``memory`` differences. With differences from
    previous inversion steps, the second iterate is already better than the fixed-point iterate. Differences from
    previous inversion steps help with images for which the derivative of ``f`` has eigenvalues near -1. With
    eigenvalues near -1, the iterates of the fixed-point iteration alternate, and the sampler amplifies the remaining
    residual. An inversion step that spans nearly the full noise range uses only the last two differences, because older
    differences are inaccurate in such a long step.

    If the last evaluated iterate is the best iterate, the solver returns Anderson's next iterate instead of ``f(z)``,
    without evaluating the network at the next iterate.

    Attributes:
        memory: maximum number of differences in the least-squares problem, 1 or more.
        regularization: Tikhonov weight of the least-squares problem, as in :class:`Anderson`.
        growth: maximum ratio of the residual norm to the smallest residual norm so far, 1 or more. With ``growth`` 1,
            every increase of the residual norm is a failure.
        damping: factor, in (0, 1), by which each failure shortens the next update.
        patience: number of consecutive evaluations without a smaller residual norm that counts as a failure, 1 or more.
        carried: maximum number of differences from previous inversion steps in the least-squares problem; 0 disables
            the use of previous inversion steps.
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

    @property
    def min_nfe(self) -> int:
        return 1

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
        fs, rs, best_index = _append(state, f, r, improved, memory=memory)
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
        """Return a mask of the samples whose iteration failed, bool ``[b]``, and the state with updated counts.

        Args:
            state: state after the previous iteration.
            norm: norm of the residual ``f(z) - z`` of the current iterate, ``[b]``.
            improved: whether ``norm`` is smaller than the smallest residual norm so far, bool ``[b]``.
        """
        grown = ~(norm <= self.growth * state.best_norm)  # also True if the norm is NaN
        stalled = torch.where(improved, 0.0, state.stalled + 1)
        failed = grown | (stalled >= self.patience)
        failures = torch.where(improved, 0.0, state.failures + failed)
        changes = failed & (failures > 1) & (failures % RETRIES == 1)
        keeps_differences = state.keeps_differences ^ changes
        return failed, state._replace(failures=failures, stalled=stalled, keeps_differences=keeps_differences)

    def _carried(
        self, problem: ImplicitStep, num_current: int, discard: Tensor | None = None
    ) -> tuple[Secants | None, float]:
        """Return differences of ``f`` from previous inversion steps, and the expected error of these differences.

        ``f(z) = A z_s + B y(z)`` is the function in the step equation ``z = f(z)``. From one inversion step to the
        next, the derivative of the prediction ``y`` changes in proportion to ``B``. The derivative of ``f`` contains
        the factor ``B``, so that its change is proportional to ``B^2``.

        Args:
            problem: the equation of the current inversion step.
            num_current: number of differences of the current inversion step. At most ``memory - num_current``
                differences from previous inversion steps are returned.
            discard: mask of the samples whose returned differences are set to zero, bool ``[b,1,1]``.
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
        fs, rs: ``[b,m,d]``, values ``f(z)`` and residuals ``f(z) - z`` of the last ``m`` iterates.
        best_index: int64 ``[b]``, index in ``fs`` and ``rs`` of the iterate with the smallest residual norm.
        best_norm: ``[b]``, smallest residual norm so far.
        failures: ``[b]``, number of failures since the iterate with the smallest residual norm was evaluated.
        stalled: ``[b]``, number of consecutive evaluations without a smaller residual norm.
        keeps_differences: bool ``[b]``, the kind of update after a failure. True keeps the differences of iterates and
            continues with Anderson's iterate; False discards the differences and continues with ``f(z)``.
    """

    fs: Tensor
    rs: Tensor
    best_index: Tensor
    best_norm: Tensor
    failures: Tensor
    stalled: Tensor
    keeps_differences: Tensor


class Differences(NamedTuple):
    """Differences of iterates, from which Anderson's method computes the next iterate.

    Attributes:
        df, dr: ``[b,m,d]``, differences of the values ``f(z)`` and of the residuals ``f(z) - z``.
        carried: differences from previous inversion steps: ``carried.dy`` contains differences of the values ``f(z)``,
            and ``carried.dz`` contains differences of latents, both divided by the norm of the difference of latents.
        drift: expected error of the derivative that ``carried`` represents; the Tikhonov weight of ``carried`` is
            ``drift^2``.
    """

    df: Tensor
    dr: Tensor
    carried: Secants | None = None
    drift: float = 0.0


def anderson_mix(f: Tensor, r: Tensor, differences: Differences, regularization: float) -> Tensor:
    """Return Anderson's iterate ``f - df gamma``, ``[b,d]``.

    ``gamma`` is the solution of the regularized least-squares problem ``dr gamma = r``.

    Args:
        f: the value ``f(z)`` at the current iterate ``z``, ``[b,d]``.
        r: the residual ``f(z) - z``, ``[b,d]``.
        differences: the differences ``df`` of the values ``f(z)`` and ``dr`` of the residuals ``f(z) - z``, from which
            the next iterate is computed.
        regularization: weight of the Tikhonov regularization for the differences of the current inversion step. The
            weight for the differences of previous inversion steps is ``differences.drift ** 2``.
    """
    df, dr, carried, drift = differences
    norm = dr.norm(dim=2, keepdim=True)
    norm = torch.where(norm > 0, norm, 1.0)  # avoids 0 / 0 for two equal iterates
    dr = dr / norm  # with norm 1, the regularization has the same effect on short and on long differences
    df = df / norm
    num_current = dr.shape[1]
    if carried is not None:
        dr = torch.cat([dr, carried.dy - carried.dz], 1)
        df = torch.cat([df, carried.dy], 1)
    products = _to_float64(torch.cat([dr @ dr.mT, dr @ r[:, :, None]], 2))
    gram, projection = products.split([dr.shape[1], 1], 2)
    ridge = torch.full(dr.shape[:2], regularization, dtype=gram.dtype, device=gram.device)
    ridge[:, num_current:] = drift**2
    ridge = ridge + (gram.diagonal(dim1=1, dim2=2) == 0)
    # torch.linalg.solve would raise an error for the whole batch if the matrix of one sample is singular. solve_ex
    # returns non-finite values for a singular matrix instead, and the next iterate of the sample is f.
    gamma = torch.linalg.solve_ex(gram + torch.diag_embed(ridge), projection)[0].to(df)  # [b,m,1]
    return f - (gamma.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) * df).sum(1)


def _append(
    state: SafeguardState, f: Tensor, r: Tensor, improved: Tensor, *, memory: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Append the value ``f [b,d]`` and the residual ``r [b,d]`` of a new iterate to the iterates in ``state``.

    The function returns the new ``fs``, ``rs`` and ``best_index`` of :class:`SafeguardState`. If there are more than
    ``memory`` differences, the oldest iterate is removed, unless it is the best iterate (with the smallest residual
    norm); then the second-oldest iterate is removed. An iterate that is not finite is replaced by the best iterate.
    """
    finite = r.isfinite().all(1)
    f = torch.where(finite[:, None], f, _gather(state.fs, state.best_index)[:, 0])
    r = torch.where(finite[:, None], r, _gather(state.rs, state.best_index)[:, 0])
    fs = torch.cat([state.fs, f[:, None]], 1)
    rs = torch.cat([state.rs, r[:, None]], 1)
    length = fs.shape[1]
    best_index = torch.where(improved, length - 1, state.best_index)
    if length <= min(memory, f.shape[1]) + 1:  # at most d vectors [d] are independent
        return fs, rs, best_index
    removed = torch.where(finite, (best_index == 0).long(), length - 1)
    remaining = torch.arange(length - 1, device=best_index.device).expand(len(best_index), -1)
    remaining = remaining + (remaining >= removed[:, None])
    remaining = remaining[:, :, None].expand(-1, -1, f.shape[1])
    return fs.gather(1, remaining), rs.gather(1, remaining), best_index - (removed < best_index).long()


def _to_float64(matrix: Tensor) -> Tensor:
    """Return ``matrix`` in float64. A matrix on MPS is moved to the CPU, because MPS does not support float64."""
    return matrix.cpu().double() if matrix.device.type == "mps" else matrix.double()


def _gather(history: Tensor, index: Tensor) -> Tensor:
    """Return the entries ``[b,1,d]`` of ``history [b,m,d]`` at ``index [b]``."""
    return history.gather(1, index[:, None, None].expand(-1, 1, history.shape[2]))
