"""Newton's method for the vector equation ``z - f(z) = 0``, without computing the Jacobian matrix."""

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
    """Newton-GMRES: ``z <- z + s``, where ``s`` solves ``(I - J) s = f(z) - z`` approximately (Knoll & Keyes 2004).

    ``J = df/dz`` is the Jacobian matrix. The RNRI paper (arXiv 2312.12540, section 4) calls Newton's method on the
    vector equation infeasible, because ``J`` has d x d elements for latents of d elements. However, GMRES only needs
    products of ``J`` with vectors, and forward-mode differentiation computes each product in about the time of two
    network evaluations. A product of ``J`` with a vector counts as one forward and one backward evaluation.
    ``iterations`` is the maximum number of forward evaluations, including the forward evaluations for products with
    ``J``.

    If a Newton step increased the residual of a sample, or led to an ``f(z)`` that is not finite, the solver next tries
    half of this Newton step from the iterate with the smallest residual.

    Attributes:
        krylov_dim: dimension of the Krylov space, which is the number of products with ``J`` per Newton step, 1 or
            more.
    """

    krylov_dim: PositiveInt = 3

    has_safeguard: ClassVar[bool] = True

    @property
    def min_nfe(self) -> int:
        """Number of network evaluations of one Newton step.

        One evaluation computes ``f(z)`` before the step, ``krylov_dim`` evaluations compute products with the Jacobian
        matrix, and one evaluation computes ``f(z)`` after the step.
        """
        return self.krylov_dim + 2

    @property
    def backward_passes(self) -> int:
        return self.krylov_dim * ((self.iterations - 1) // (self.krylov_dim + 1))

    def has_budget(self, nfe: int, max_nfe: int) -> bool:
        return nfe + self.krylov_dim + 1 <= max_nfe

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        residual = mean_absolute(iterate.f - iterate.z)
        if not iterate.state:
            s = self._newton_step(iterate.problem, iterate.z, iterate.f)
            return iterate.z + s, (iterate.z, s, residual)
        best_z, last_step, best_residual = iterate.state
        accepted = (residual < best_residual).nonzero().flatten()
        z = best_z.clone()
        s = last_step / 2
        if len(accepted):
            problem = iterate.problem.select(accepted)
            z[accepted] = iterate.z[accepted]
            s[accepted] = self._newton_step(problem, iterate.z[accepted], iterate.f[accepted])
        return z + s, (z, s, torch.fmin(residual, best_residual))  # fmin ignores NaN, the residual of a non-finite f

    def _newton_step(self, problem: ImplicitStep, z: Tensor, f: Tensor) -> Tensor:
        """Return the Newton step ``s [b,C,h,w]`` from ``z`` with the value ``f = f(z)``, both ``[b,C,h,w]``.

        ``krylov_dim`` iterations of GMRES approximately solve ``(I - J) s = f - z`` with ``J = df/dz`` for each sample.
        """
        r = (f - z).flatten(1)  # [b,d]
        norm = r.norm(dim=1)
        basis = [_divide(r, norm)]
        hessenberg = r.new_zeros(len(r), self.krylov_dim + 1, self.krylov_dim)
        for j in range(self.krylov_dim):
            v = basis[-1] - problem.jvp(z, basis[-1].view_as(z)).flatten(1)
            for i, u in enumerate(basis):  # modified Gram-Schmidt
                hessenberg[:, i, j] = (u * v).sum(1)
                v = v - hessenberg[:, i, j, None] * u
            hessenberg[:, j + 1, j] = v.norm(dim=1)
            basis.append(_divide(v, hessenberg[:, j + 1, j]))
        target = torch.zeros_like(hessenberg[:, :, :1])
        target[:, 0, 0] = norm
        # The pseudo-inverse also handles a Krylov space whose dimension is less than krylov_dim.
        y = torch.linalg.pinv(hessenberg) @ target  # [b,k,1]
        return torch.einsum("bkd,bk->bd", torch.stack(basis[:-1], 1), y.squeeze(2)).view_as(z)


def _divide(v: Tensor, norm: Tensor) -> Tensor:
    """Return ``v [b,d]`` divided by ``norm [b]``. The result is 0 for samples whose norm is 0."""
    return torch.where(norm[:, None] > 0, v / norm[:, None], torch.zeros_like(v))
