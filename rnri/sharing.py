"""How many of a walk's network evaluations each of its steps should have.

Near the root the fixed point's error shrinks by the derivative of ``f`` an evaluation. For Gaussian latents of
variance ``v`` the derivative of the optimal noise prediction is ``sqrt(1 - a_t) / (a_t v + 1 - a_t)``, and that of
``f`` therefore

    rho = B sqrt(1 - a_t) / (a_t v + 1 - a_t),

so a step needs evaluations in proportion to ``1 / log(1 / rho)``. It is the fine detail, of small ``v``, that
converges last; as ``v -> 0``, rho tends to ``1 - psi_s / psi_t``. On Stable Diffusion's schedule one step near the
clean end is several times as hard as any other, whatever their number, and the very last one is easy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rnri.schedule import Schedule

DETAIL_VARIANCE = 0.02  # of latents of unit variance
EASIEST, HARDEST = 0.01, 0.97  # bounds of rho, for first and last steps that change (nearly) nothing or everything


def needs(schedule: Schedule) -> Tensor:
    """Evaluations that the steps need, up to a common factor: float64 ``[N]``, in the order of the walk."""
    rhos = []
    for i in reversed(range(len(schedule))):
        a_t, (_, b) = float(schedule.alpha_bar[i]), schedule.coefficients(i)
        rhos.append(b * math.sqrt(1 - a_t) / (a_t * DETAIL_VARIANCE + 1 - a_t))
    return -1 / torch.tensor(rhos, dtype=torch.float64).clamp(EASIEST, HARDEST).log()


def limits(left: Tensor, expected: Tensor) -> Tensor:
    """Evaluations that samples with ``left [B]`` in all may spend at the first of the steps with needs ``expected``.

    Every later step keeps at least one; the last step has all that is left.
    """
    spare = (left - len(expected)).clamp(min=0)
    return 1 + (spare * (expected[0] / expected.sum())).round().long()
