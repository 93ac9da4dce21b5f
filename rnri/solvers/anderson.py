"""Anderson acceleration of the implicit inversion equation, plain and safeguarded, by sample."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from checked import Count, NotNegative, OpenFraction, dataclass
from rnri.solvers.implicit import mean_absolute
from rnri.solvers.iterative import Iterate, IterativeSolver, State


@dataclass(frozen=True)
class Anderson(IterativeSolver):
    """Anderson acceleration of the fixed point (AIDI-A; Walker & Ni 2011, type II), by sample.

    The next iterate is ``f_k - dF gamma`` with ``gamma`` the least-squares solution of ``dR gamma = r_k``
    over the last ``memory`` differences of values and residuals, solved in the dtype of the state.

    Attributes:
        memory: differences used at most, 1 or more.
        regularisation: Tikhonov weight relative to the mean squared norm of the differences; keeps the small
            problem solvable when differences are parallel or at the network's rounding error.
    """

    memory: Count = 3
    regularisation: NotNegative = 1e-10

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        f, r = at.f.flatten(1), (at.f - at.z).flatten(1)  # [b,d]
        if not at.state:
            return at.f, (f[:, None], r[:, None])
        fs = torch.cat([at.state[0], f[:, None]], 1)[:, -self.memory - 1 :]  # [b,m+1,d]
        rs = torch.cat([at.state[1], r[:, None]], 1)[:, -self.memory - 1 :]
        gamma = self._weights(rs.diff(dim=1), r)  # [b,m]
        mixed = f - torch.einsum("bm,bmd->bd", gamma, fs.diff(dim=1))
        return mixed.view_as(at.f), (fs, rs)

    def _weights(self, differences: Tensor, r: Tensor) -> Tensor:
        gram = differences @ differences.mT  # [b,m,m]
        scale = gram.diagonal(dim1=1, dim2=2).mean(1)  # [b]
        ridge = self.regularisation * scale + torch.finfo(scale.dtype).tiny  # equal iterates: 0 / tiny = 0
        gram = gram + torch.diag_embed(ridge[:, None].expand(-1, gram.shape[1]))
        # solve_ex leaves a singular sample non-finite instead of failing the batch; the loop sees to it.
        return torch.linalg.solve_ex(gram, (differences @ r[:, :, None]))[0].squeeze(2)


@dataclass(frozen=True)
class SafeguardedAnderson(Anderson):
    """Anderson acceleration that goes back where it gets worse; the solver of the default inverter.

    Where a sample's residual exceeds ``growth`` times its best so far, the map is not contractive or the
    small least-squares problem has led astray: the next iterate is then ``z + damping^j (f(z) - z)`` from the
    best iterate ``z`` (``j`` counts the times this happened in succession), and the differences are forgotten.
    Damping makes a map contractive whose derivative has eigenvalues below -1, as strong guidance gives it;
    safeguards of this kind are in Zhang, O'Donoghue & Boyd 2020 (arXiv 1808.03971).

    No evaluation is wasted: where the last iterate evaluated is the best, the next one is returned, unevaluated,
    instead of ``f`` of this one.

    Attributes:
        growth: 1 or more; 1 accepts no increase.
        damping: in (0, 1).
    """

    memory: Count = 4
    growth: Annotated[float, Ge(1)] = 2.0
    damping: OpenFraction = 0.5

    ends_in_step: ClassVar[bool] = True

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        residual = mean_absolute(at.f - at.z)  # [b]
        if not at.state:
            z, history = super().step(at)
            return z, (*history, at.z, at.f, residual, torch.ones_like(residual))
        fs, rs, best_z, best_f, best, shrink = at.state
        worse = residual > self.growth * best
        z, (fs, rs) = super().step(Iterate(at.problem, at.z, at.f, (fs, rs)))
        better, back = _column(residual < best), _column(worse)
        best_z, best_f = torch.where(better, at.z, best_z), torch.where(better, at.f, best_f)
        shrink = torch.where(worse, self.damping * shrink, 1.0)
        z = torch.where(back, best_z + _column(shrink) * (best_f - best_z), z)
        # A history of the best iterate alone: its differences are zero, and so are their weights.
        fs = torch.where(back[..., 0], best_f.flatten(1)[:, None], fs)
        rs = torch.where(back[..., 0], (best_f - best_z).flatten(1)[:, None], rs)
        return z, (fs, rs, best_z, best_f, torch.minimum(residual, best), shrink)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
