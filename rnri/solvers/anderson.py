"""Anderson acceleration of the implicit inversion equation, plain and safeguarded, by sample."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from rnri.solvers.implicit import ImplicitStep
from rnri.solvers.iterative import Iterate, IterativeSolver, State
from rnri.solvers.secants import Secants
from rnri.validation import OpenUnitInterval, dataclass

DRIFT = 6.0  # of the network's derivative from one step of the walk to the next, a unit of B; measured
LARGE, RECENT = 0.9, 2  # B of a step to noise so large that only that many last differences serve it; measured
RETRIES = 3  # failures without a new best before the safeguard changes its way; measured on tests.problems.NONLINEAR


@dataclass(frozen=True)
class Anderson(IterativeSolver):
    """Anderson acceleration of the fixed point (AIDI-A; Walker & Ni 2011, type II), by sample.

    The next iterate is ``f_k - dF gamma`` with ``gamma`` the least-squares solution of ``dR gamma = r_k``
    over the last ``memory`` differences of values and residuals.

    Attributes:
        memory: differences used at most, 1 or more.
        regularization: Tikhonov weight relative to the squared norm of each difference; keeps the small problem
            solvable when differences are parallel or at the network's rounding error.
    """

    memory: PositiveInt = 3
    regularization: NonNegativeFloat = 1e-10

    step_is_finite: ClassVar[bool] = True

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        f, r = at.f.flatten(1), (at.f - at.z).flatten(1)  # [b,d]
        if not at.state:
            return at.f, (f[:, None], r[:, None])
        fs = torch.cat([at.state[0], f[:, None]], 1)[:, -self.memory - 1 :]  # [b,m+1,d]
        rs = torch.cat([at.state[1], r[:, None]], 1)[:, -self.memory - 1 :]
        return self._mixed(f, r, fs.diff(dim=1), rs.diff(dim=1)).view_as(at.f), (fs, rs)

    def _mixed(
        self, f: Tensor, r: Tensor, df: Tensor, dr: Tensor, carried: Secants | None = None, doubt: float = 0.0
    ) -> Tensor:
        """``f - df gamma``, ``[b,d]``, from ``f`` and ``r [b,d]`` and differences ``[b,m,d]``.

        ``carried`` are differences of ``f`` (as ``dy``) from the steps before, of norm 1 in ``z``; ``doubt`` is what
        their derivative may be wrong by, and makes the ridge that limits what they are trusted with.
        """
        norm = dr.norm(dim=2, keepdim=True)
        norm = torch.where(norm > 0, norm, 1.0)  # equal iterates: a difference of 0 has the weight 0
        dr, df = dr / norm, df / norm  # else short differences would drown in what the ridge adds to long ones
        own = dr.shape[1]
        if carried is not None:
            dr, df = torch.cat([dr, carried.dy - carried.dz], 1), torch.cat([df, carried.dy], 1)
        gram, projection = _wide(torch.cat([dr @ dr.mT, dr @ r[:, :, None]], 2)).split([dr.shape[1], 1], 2)
        ridge = torch.full(dr.shape[:2], self.regularization, dtype=torch.float64, device=gram.device)
        ridge[:, own:] = doubt**2
        ridge = ridge + (gram.diagonal(dim1=1, dim2=2) == 0)
        # solve_ex leaves a singular sample non-finite instead of failing the batch; such a one takes f itself.
        gamma = torch.linalg.solve_ex(gram + torch.diag_embed(ridge), projection)[0].to(df)  # [b,m,1]
        return f - (gamma.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) * df).sum(1)


@dataclass(frozen=True)
class SafeguardedAnderson(Anderson):
    """Anderson acceleration that goes back where it gets worse; the solver of the default inverter.

    A sample fails where the norm of its residual exceeds ``growth`` times its best so far, where ``f`` is not finite,
    or where ``patience`` evaluations in succession brought no new best. The next iterate is then
    ``z + damping^j (a - z)``, with ``z`` the best iterate and ``j`` the failures since it was found, and ``a`` one of

    - ``f(z)``, and the differences are forgotten: damping makes a map contractive whose derivative has eigenvalues
      below -1, as strong guidance gives it;
    - what Anderson's method makes of ``z``, with what failed among the differences: as the steps shrink, the small
      least-squares problem becomes GMRES on the derivative at ``z``, which also serves eigenvalues above 1.

    Three failures without a new best change from one to the other. The steps shrink until there is a new best, which
    rules out cycles. Damped steps as a safeguard are in Zhang, O'Donoghue & Boyd 2020 (arXiv 1808.03971).

    A residual that stalls does not say that there is no root: a few differences may not span Newton's step.

    On a walk the differences of the steps before fill what the step's own leave of ``memory`` (``carried`` at most),
    so that its first evaluation is already followed by more than ``f(z)``. That serves images whose map has
    eigenvalues near -1, where the fixed point alternates and the sampler magnifies what is left of the residual.
    In a walk of one step from noise older differences than the last two mislead, and are left out.

    No evaluation is wasted: where the last iterate evaluated is the best, the next one is returned, unevaluated,
    instead of ``f`` of this one.

    Attributes:
        growth: 1 or more; 1 accepts no increase.
        damping: in (0, 1).
        patience: evaluations, 1 or more.
        carried: differences of the steps before, 0 or more; 0 solves each step for itself.
    """

    memory: PositiveInt = 4
    growth: Annotated[float, Ge(1)] = 2.0
    damping: OpenUnitInterval = 0.5
    patience: PositiveInt = 8
    carried: NonNegativeInt = 2

    returns_step: ClassVar[bool] = True
    has_safeguard: ClassVar[bool] = True

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        f, r = at.f.flatten(1), (at.f - at.z).flatten(1)  # [b,d]
        norm = r.norm(dim=1)  # [b]
        if not at.state:
            zero = torch.zeros_like(norm)
            fs, rs = f[:, None], r[:, None]
            z = self._mixed(f, r, fs[:, :0], rs[:, :0], *self._carried(at.problem, 0))
            return z.view_as(at.f), (fs, rs, zero.long(), norm, zero, zero, zero.bool())
        fs, rs, place, best, failures, waited, keeps = at.state
        better, worse = norm < best, ~(norm <= self.growth * best)  # NaN is worse
        waited = torch.where(better, 0.0, waited + 1)
        failed = worse | (waited >= self.patience)
        failures = torch.where(better, 0.0, failures + failed)
        keeps = keeps ^ (failed & (failures > 1) & (failures % RETRIES == 1))
        fs, rs, place = self._with_newest(fs, rs, place, f, r, better, self._memory(at.problem))
        best_f, best_r = _at(fs, place), _at(rs, place)  # [b,1,d]
        forgets = (failed & ~keeps)[:, None, None]
        fs, rs = torch.where(forgets, best_f, fs), torch.where(forgets, best_r, rs)
        carried, doubt = self._carried(at.problem, fs.shape[1] - 1, forgets)
        mixed = self._mixed(best_f[:, 0], best_r[:, 0], fs - best_f, rs - best_r, carried, doubt)
        best_z, share = (best_f - best_r)[:, 0], (self.damping**failures)[:, None]
        z = torch.where(failed[:, None], best_z + share * (mixed - best_z), mixed)
        best, waited = torch.where(better, norm, best), torch.where(failed, 0.0, waited)
        return z.view_as(at.f), (fs, rs, place, best, failures, waited, keeps)

    def _carried(self, problem: ImplicitStep, own: int, forgets: Tensor | None = None) -> tuple[Secants | None, float]:
        """Differences of ``f`` from the steps before, beside ``own`` of this one, and the doubt in their derivative.

        The derivative of ``y`` drifts in proportion to the length of the step, of which ``B`` is a measure, and counts
        in that of ``f`` another ``B`` times. Samples that forget have differences of 0.
        """
        room = min(self.carried, self._memory(problem) - own)
        if problem.secants is None or room <= 0:
            return None, 0.0
        dz, dy = problem.secants.dz[:, -room:], problem.b * problem.secants.dy[:, -room:]
        dy = problem.relaxed(dz, dy)
        if forgets is not None:
            dz, dy = torch.where(forgets, 0.0, dz), torch.where(forgets, 0.0, dy)
        return Secants(dz, dy), DRIFT * problem.relaxation * problem.b**2

    def _memory(self, problem: ImplicitStep) -> int:
        whole = problem.secants is not None and problem.predicts == "epsilon" and problem.b > LARGE
        return min(self.memory, RECENT) if whole else self.memory

    def _with_newest(
        self, fs: Tensor, rs: Tensor, place: Tensor, f: Tensor, r: Tensor, better: Tensor, memory: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The history ``[b,m+1,d]`` with the newest iterate, without the oldest that is not the best, and the best's
        place in it. An iterate that is not finite counts as the best once more: a difference of 0."""
        finite = r.isfinite().all(1)
        f = torch.where(finite[:, None], f, _at(fs, place)[:, 0])
        r = torch.where(finite[:, None], r, _at(rs, place)[:, 0])
        fs, rs = torch.cat([fs, f[:, None]], 1), torch.cat([rs, r[:, None]], 1)
        length = fs.shape[1]
        place = torch.where(better, length - 1, place)
        if length <= min(memory, f.shape[1]) + 1:  # more differences than elements are redundant
            return fs, rs, place
        dropped = torch.where(finite, (place == 0).long(), length - 1)
        kept = torch.arange(length - 1, device=place.device).expand(len(place), -1)
        kept = kept + (kept >= dropped[:, None])
        kept = kept[:, :, None].expand(-1, -1, f.shape[1])
        return fs.gather(1, kept), rs.gather(1, kept), place - (dropped < place).long()


def _wide(matrix: Tensor) -> Tensor:
    """``matrix`` in float64, where it lies if the device has it."""
    return matrix.cpu().double() if matrix.device.type == "mps" else matrix.double()


def _at(history: Tensor, place: Tensor) -> Tensor:
    """The entries ``[b,1,d]`` of ``history [b,m,d]`` at ``place [b]``."""
    return history.gather(1, place[:, None, None].expand(-1, 1, history.shape[2]))
