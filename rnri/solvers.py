"""Solvers of the implicit inversion equation ``z = f(z)``.

Each solver states only its step. The loop, the best iterate, the tolerance and the fate of a sample that
converges or diverges exist once, in ``IterativeSolver``, and are by sample: nothing that one image does
changes another's result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rnri.implicit import ImplicitStep, Solution, mean_absolute

State = tuple[Tensor, ...]
"""What a solver remembers between iterations: tensors whose first dimension is the batch."""


@dataclass(frozen=True)
class Iterate:
    """An evaluated iterate of the ``b`` samples still being solved, as a solver's step sees it."""

    problem: ImplicitStep
    z: Tensor  # [b,C,h,w]
    f: Tensor  # [b,C,h,w], f(z); attached to z if the solver differentiates
    state: State


@dataclass(frozen=True)
class IterativeSolver(ABC):
    """One network evaluation an iteration; ``step`` makes the next iterate of it.

    A sample leaves the batch when its residual is within ``tolerance`` or its values are no longer finite; it
    costs nothing from then on. A sample that was never finite comes back as ``z_init`` with residual ``inf``.

    Attributes:
        iterations: network evaluations at most, 1 or more.
        tolerance: on the mean ``|z - f(z)|`` of a sample. Then the evaluated ``z`` itself is returned. 0
            never stops early, short of an exact root. The default is the paper's criterion (appendix G).
        keep_best: return ``f(z_k)`` of the evaluated iterate with the smallest residual; False returns the
            last iterate that ``step`` made, unevaluated, with the residual of the one before it.
    """

    iterations: int = 5
    tolerance: float = 1e-4
    keep_best: bool = True

    differentiates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: a solver needs at least 1.")
        if self.tolerance < 0:
            raise ValueError(f"tolerance={self.tolerance} must not be negative; 0 never stops early.")

    @abstractmethod
    def step(self, at: Iterate) -> tuple[Tensor, State]:
        """The next iterate ``[b,C,h,w]`` and what to remember, from the evaluated one."""

    def __call__(self, problem: ImplicitStep, z_init: Tensor) -> Solution:
        """Solves ``problem`` from ``z_init [B,C,h,w]``; the batch need not converge together."""
        problem = problem.recounted()
        record = _Record(z_init, self.keep_best)
        z, state, counts = z_init, (), problem.counts
        for k in range(self.iterations):
            final = k + 1 == self.iterations
            steps_on = not final or not self.keep_best
            z, f = self._evaluate(problem, z, self.differentiates and steps_on)
            residual = record.offer(problem.rows, z.detach(), f.detach())
            going = residual.isfinite() & (residual > self.tolerance)
            if not steps_on or not going.any():
                break
            z, state = self.step(Iterate(problem, z, f, state))
            going &= z.flatten(1).isfinite().all(1).cpu()
            if final:
                record.end(problem.rows[going], z[going.to(z.device)])
            elif not going.any():
                break
            elif not going.all():
                problem, z, state = _select(problem, z, state, going)
        return record.solution(self.tolerance, counts.forward, counts.backward)

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


def _select(problem: ImplicitStep, z: Tensor, state: State, going: Tensor) -> tuple[ImplicitStep, Tensor, State]:
    rows = going.nonzero().flatten()
    on_device = rows.to(z.device)
    return problem.select(rows), z[on_device], tuple(part[on_device] for part in state)


class _Record:
    """The best (or latest) finite evaluated iterate of every sample, and what to return for it."""

    def __init__(self, z_init: Tensor, keep_best: bool) -> None:
        self.keep_best = keep_best
        self.z, self.f, self.result = z_init.clone(), z_init.clone(), z_init.clone()
        self.residual = torch.full((len(z_init),), torch.inf, dtype=torch.float64)

    def offer(self, rows: Tensor, z: Tensor, f: Tensor) -> Tensor:
        """Takes note of ``f(z)`` for the samples ``rows``; returns their residuals, ``[b]`` on the CPU."""
        residual = mean_absolute(z - f).double().cpu()
        accepted = residual < self.residual[rows] if self.keep_best else residual.isfinite()
        where, which = rows[accepted], accepted.to(z.device)
        self.residual[where] = residual[accepted]
        at = where.to(z.device)
        self.z[at], self.f[at], self.result[at] = z[which], f[which], f[which]
        return residual

    def end(self, rows: Tensor, z: Tensor) -> None:
        self.result[rows.to(z.device)] = z

    def solution(self, tolerance: float, evaluations: Tensor, backward: Tensor) -> Solution:
        converged = self.residual <= tolerance
        z = torch.where(converged.to(self.z.device).view(-1, 1, 1, 1), self.z, self.result)
        return Solution(z, self.residual, evaluations, backward, converged, self.f)


@dataclass(frozen=True)
class FixedPoint(IterativeSolver):
    """``z <- f(z)`` (AIDI, Pan et al. 2023). DDIM inversion is ``FixedPoint(iterations=1, tolerance=0)``."""

    def step(self, at: Iterate) -> tuple[Tensor, State]:
        return at.f, ()


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

    memory: int = 3
    regularisation: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1:
            raise ValueError(f"memory={self.memory}: Anderson needs at least 1; FixedPoint has none.")

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
