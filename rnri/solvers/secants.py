"""Secants: directional derivatives of the network that an inversion obtains from its evaluations at no extra cost.

Two evaluations ``y(z)`` and ``y(z')`` of one step give the derivative of ``y`` along ``z - z'``. The derivative changes
little from one step to the next, so that the next step's solver can use it before its second evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnri.models.predictor import to_device


@dataclass(frozen=True)
class Secants:
    """The last ``m`` differences of latents and of predictions per sample, the newest last; 0 where there is none.

    Attributes:
        dz: ``[B,m,d]``, differences of latents, of norm 1.
        dy: ``[B,m,d]``, the derivative of the prediction along ``dz``.
    """

    dz: Tensor
    dy: Tensor

    @classmethod
    def zeros(cls, z: Tensor, count: int) -> Secants:
        """Return ``count`` empty differences for each sample of ``z [B,C,h,w]``."""
        zero = z.new_zeros(len(z), count, z[0].numel())
        return cls(zero, zero)

    def select(self, rows: Tensor) -> Secants:
        """Return the differences of the samples ``rows``."""
        rows = to_device(rows, self.dz.device)
        return Secants(self.dz[rows], self.dy[rows])


@dataclass(frozen=True)
class SecantRecorder:
    """Builds :class:`Secants` from consecutive evaluations of one step.

    Attributes:
        previous: differences of the steps before, of the samples ``rows``.
        secants: differences including this step's, of the full batch; updated in place.
        last_z, last_y: the last evaluated latent and its prediction, ``[B,d]``, of the full batch; NaN at first.
        rows: int64 ``[b]``, the samples of the full batch that are recorded; ``select`` shares the tables.
    """

    previous: Secants
    secants: Secants
    last_z: Tensor
    last_y: Tensor
    rows: Tensor

    @classmethod
    def start(cls, previous: Secants) -> SecantRecorder:
        """Return a recorder for a new step that continues from the differences ``previous``."""
        last_z = previous.dz.new_full((len(previous.dz), previous.dz.shape[2]), torch.nan)
        secants = Secants(previous.dz.clone(), previous.dy.clone())
        return cls(previous, secants, last_z, last_z.clone(), torch.arange(len(last_z)))

    def select(self, rows: Tensor) -> SecantRecorder:
        """Return a recorder of the samples ``rows`` (indices into ``self.rows``) that updates the same tables."""
        return replace(self, previous=self.previous.select(rows), rows=self.rows[rows.cpu()])

    def record(self, z: Tensor, y: Tensor) -> None:
        """Record the evaluation ``y = y(z)``, both ``[b,C,h,w]``; zero or non-finite differences are skipped."""
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
