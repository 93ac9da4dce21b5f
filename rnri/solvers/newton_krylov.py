"""Newton's method on the vector equation ``z - f(z) = 0``, without ever forming its Jacobian."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from rnri.solvers.implicit import ImplicitStep, mean_absolute
from rnri.solvers.iterative import Iterate, IterativeSolver, State
from rnri.validation import dataclass


@dataclass(frozen=True)
class NewtonKrylov(IterativeSolver):
    """Newton-GMRES: ``z <- z + s`` with ``(I - J) s ~ f(z) - z``, ``J = df/dz`` (Knoll & Keyes 2004).

    RNRI (arXiv 2312.12540, section 4) calls the vector equation infeasible because J is d x d. Only products
    of J with vectors are needed, and forward-mode differentiation gives each for about the price of two
    evaluations. They count as one forward and one backward evaluation, and ``iterations`` bounds the forward
    ones, those inside products included.

    Where a step made a sample's residual larger, or led to where ``f`` is not finite, half of that step is tried next,
    from the best iterate.

    Attributes:
        krylov: dimensions of the Krylov space, i.e. products a Newton step, 1 or more.
    """

    krylov_dim: PositiveInt = 3

    has_safeguard: ClassVar[bool] = True

    def has_budget(self, spent: Tensor, limits: Tensor) -> Tensor:
        return spent + self.krylov_dim + 1 <= limits

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        residual = mean_absolute(at.f - at.z)
        if not at.state:
            s = self._newton_step(at.problem, at.z, at.f)
            return at.z + s, (at.z, s, residual)
        best_z, last, best = at.state
        accepted = (residual < best).nonzero().flatten()
        z, s = best_z.clone(), last / 2
        if len(accepted):
            problem = at.problem.select(accepted)
            z[accepted] = at.z[accepted]
            s[accepted] = self._newton_step(problem, at.z[accepted], at.f[accepted])
        return z + s, (z, s, torch.fmin(residual, best))  # NaN where f was not finite

    def _newton_step(self, problem: ImplicitStep, z: Tensor, f: Tensor) -> Tensor:
        """GMRES from zero, ``krylov_dim`` steps of Arnoldi's method for each sample of the batch."""
        r = (f - z).flatten(1)  # [b,d]
        norm = r.norm(dim=1)
        basis = [_normalized(r, norm)]
        hessenberg = r.new_zeros(len(r), self.krylov_dim + 1, self.krylov_dim)
        for j in range(self.krylov_dim):
            v = basis[-1] - problem.jvp(z, basis[-1].view_as(z)).flatten(1)
            for i, u in enumerate(basis):  # modified Gram-Schmidt
                hessenberg[:, i, j] = (u * v).sum(1)
                v = v - hessenberg[:, i, j, None] * u
            hessenberg[:, j + 1, j] = v.norm(dim=1)
            basis.append(_normalized(v, hessenberg[:, j + 1, j]))
        target = torch.zeros_like(hessenberg[:, :, :1])
        target[:, 0, 0] = norm
        # The pseudo-inverse also serves a space that Arnoldi's method has exhausted.
        y = torch.linalg.pinv(hessenberg) @ target  # [b,k,1]
        return torch.einsum("bkd,bk->bd", torch.stack(basis[:-1], 1), y.squeeze(2)).view_as(z)


def _normalized(v: Tensor, norm: Tensor) -> Tensor:
    return torch.where(norm[:, None] > 0, v / norm[:, None], torch.zeros_like(v))
