"""What a walk knows of the network's derivative from the evaluations that it has made anyway.

Two evaluations ``y(z)`` and ``y(z')`` at one step tell the derivative of ``y`` along ``z - z'``. From step to step it
changes little, so that the next step's solver may use it before its second evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnri.models.predictor import to_device


@dataclass(frozen=True)
class Secants:
    """The last differences of latents and of predictions, by sample, the newest last; 0 where there was none.

    Attributes:
        dz: ``[B,m,d]``, of norm 1.
        dy: ``[B,m,d]``, the derivative of the prediction along ``dz``.
    """

    dz: Tensor
    dy: Tensor

    @classmethod
    def none(cls, z: Tensor, count: int) -> Secants:
        """Room for ``count`` differences a sample of ``z [B,C,h,w]``."""
        zero = z.new_zeros(len(z), count, z[0].numel())
        return cls(zero, zero)

    def select(self, rows: Tensor) -> Secants:
        """Those of the samples ``rows``."""
        rows = to_device(rows, self.dz.device)
        return Secants(self.dz[rows], self.dy[rows])


class SecantRecorder:
    """Takes note of a step's evaluations, and makes :class:`Secants` of those that follow on each other.

    Attributes:
        secants: those given, of the steps before, and this step's.
    """

    def __init__(self, before: Secants) -> None:
        self.secants = Secants(before.dz.clone(), before.dy.clone())
        self._z, self._y = (before.dz.new_full((len(before.dz), before.dz.shape[2]), torch.nan) for _ in range(2))

    def note(self, places: Tensor, z: Tensor, y: Tensor) -> None:
        """``y(z)``, both ``[b,C,h,w]``, of the samples ``places`` (int64 ``[b]``); what is not finite tells nothing."""
        z, y = z.flatten(1), y.flatten(1)
        at = slice(None) if len(places) == len(self._z) else to_device(places, z.device)
        dz, dy = z - self._z[at], y - self._y[at]
        norm = dz.norm(dim=1, keepdim=True)
        told = (norm[:, 0] > 0) & norm[:, 0].isfinite() & dy.isfinite().all(1)
        for known, new in ((self.secants.dz, dz), (self.secants.dy, dy)):
            shifted = torch.cat([known[at][:, 1:], (new / norm)[:, None]], 1)
            known[at] = torch.where(told[:, None, None], shifted, known[at])
        self._z[at], self._y[at] = z, y
