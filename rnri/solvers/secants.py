"""Secants: approximate directional derivatives of the network, which need no additional network evaluations.

Two evaluations ``y(z)`` and ``y(z')`` of the network in the same inversion step approximate the derivative of ``y``
along ``z - z'`` by ``y(z) - y(z')``, which is called a secant. The derivative of ``y`` changes little from one
inversion step to the next. The solver can therefore use the secants of previous inversion steps already after the first
evaluation of an inversion step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnri.models.predictor import to_device


@dataclass(frozen=True)
class Secants:
    """The last ``m`` secants of each sample, the newest last.

    A secant is the difference of two latents at which the network was evaluated, together with the difference of the
    two predictions. Before ``m`` secants are recorded, the first entries are zero.

    Attributes:
        dz: ``[B,m,d]``, differences of latents, divided by their norm.
        dy: ``[B,m,d]``, differences of predictions, divided by the norm of the difference of latents.
    """

    dz: Tensor
    dy: Tensor

    @classmethod
    def zeros(cls, z: Tensor, count: int) -> Secants:
        """Return secants without recorded differences: ``count`` zeros for each sample of ``z [B,C,h,w]``."""
        zero = z.new_zeros(len(z), count, z[0].numel())
        return cls(zero, zero)

    def select(self, rows: Tensor) -> Secants:
        """Return the secants of the samples ``rows`` (int64 ``[b]``, indices into this batch)."""
        rows = to_device(rows, self.dz.device)
        return Secants(self.dz[rows], self.dy[rows])


@dataclass(frozen=True)
class SecantRecorder:
    """Computes secants (:class:`Secants`) from consecutive network evaluations in one inversion step.

    Attributes:
        previous: secants of the previous inversion steps, for the samples ``rows``.
        secants: secants of the previous and the current inversion step, for the full batch; updated in place.
        last_z, last_y: ``[B,d]``, the last evaluated latents and their predictions, for the full batch; NaN before the
            first evaluation.
        rows: int64 ``[b]``, indices in the full batch of the samples that are recorded. Recorders returned by
            ``select`` update the tensors of this recorder.
    """

    previous: Secants
    secants: Secants
    last_z: Tensor
    last_y: Tensor
    rows: Tensor

    @classmethod
    def start(cls, previous: Secants) -> SecantRecorder:
        """Return a recorder for a new inversion step, starting with the secants ``previous``."""
        last_z = previous.dz.new_full((len(previous.dz), previous.dz.shape[2]), torch.nan)
        secants = Secants(previous.dz.clone(), previous.dy.clone())
        return cls(previous, secants, last_z, last_z.clone(), torch.arange(len(last_z)))

    def select(self, rows: Tensor) -> SecantRecorder:
        """Return a recorder of the samples ``rows`` (indices into ``self.rows``), which updates the same tensors."""
        return replace(self, previous=self.previous.select(rows), rows=self.rows[rows.cpu()])

    def record(self, z: Tensor, y: Tensor) -> None:
        """Record the network's prediction ``y`` for the latents ``z``, both ``[b,C,h,w]``.

        The differences from the previous latents and predictions are appended to ``secants``, unless the difference of
        the latents is zero or a difference is not finite.
        """
        z = z.flatten(1)
        y = y.flatten(1)
        rows = slice(None) if len(self.rows) == len(self.last_z) else to_device(self.rows, z.device)
        dz = z - self.last_z[rows]
        dy = y - self.last_y[rows]
        norm = dz.norm(dim=1, keepdim=True)
        valid = (norm[:, 0] > 0) & norm[:, 0].isfinite() & dy.isfinite().all(1)
        for table, new in ((self.secants.dz, dz), (self.secants.dy, dy)):
            shifted = torch.cat([table[rows][:, 1:], (new / norm)[:, None]], 1)
            table[rows] = torch.where(valid[:, None, None], shifted, table[rows])
        self.last_z[rows] = z
        self.last_y[rows] = y
