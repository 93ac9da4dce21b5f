"""How many of a walk's network evaluations each of its steps should have.

Near the root the fixed point's error shrinks by the derivative of ``f`` an evaluation. For Gaussian latents of
variance ``v`` the derivative of the optimal noise prediction is ``sigma / (alpha^2 v + sigma^2)``, that of the optimal
velocity ``(sigma - alpha v) / (alpha^2 v + sigma^2)``, and that of ``f`` therefore, for noise,

    rho = B sigma / (alpha^2 v + sigma^2),

so a step needs evaluations in proportion to ``1 / log(1 / rho)``. It is the fine detail, of small ``v``, that
converges last; as ``v -> 0``, rho tends to ``1 - psi_s / psi_t``. On Stable Diffusion's schedule one step near the
clean end is several times as hard as any other, whatever their number, and the very last one is easy. Flow matching's
steps are as hard as each other where there are many: even shares measure up to forty times better there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rnri.models.schedule import Schedule

DETAIL_VARIANCE = 0.02  # of latents of unit variance
COARSE = 9  # steps; with fewer, noise extrapolated over a step is no substitute for an evaluation; measured
COARSE_VARIANCE = 0.1  # there, where the sampler magnifies what noisier steps leave more than finest detail matters
FEW = 4  # steps; with fewer, coarser detail yet; measured
EASIEST, HARDEST = 0.01, 0.97  # bounds of rho, for first and last steps that change (nearly) nothing or everything


def difficulty(schedule: Schedule) -> Tensor:
    """Evaluations that the steps need, up to a common factor: float64 ``[N]``, in the order of the walk."""
    coarse = len(schedule) < COARSE
    if schedule.predicts == "flow" and not coarse:
        return torch.ones(len(schedule), dtype=torch.float64)
    variance = COARSE_VARIANCE * max(1, FEW / len(schedule)) if coarse else DETAIL_VARIANCE
    rhos = [abs(schedule.derivative(i, variance)) for i in reversed(range(len(schedule)))]
    return -1 / torch.tensor(rhos, dtype=torch.float64).clamp(EASIEST, HARDEST).log()


@dataclass
class NfeBudget:
    """The evaluations of a walk, sample by sample: what each step may spend, and what comes back from it.

    Steps share what is left in proportion to their needs, on a coarse schedule after one evaluation for each. Shares
    are real numbers and limits whole ones: what rounding gives to one step it takes from the next, so that no more is
    spent in all. A sample that stops below its limit returns the difference to all later steps.

    Attributes:
        expected: float64 ``[N]``, the steps' ``difficulty`` in the order of the walk.
        each: what every step has before the rest is shared: 1 on a schedule of fewer than ``COARSE`` steps, else 0.
        left: float64 ``[B]``, not assigned to any step yet.
        due: float64 ``[B]``, assigned to the steps so far and not spent.
    """

    expected: Tensor
    each: int
    left: Tensor
    due: Tensor

    @classmethod
    def of(cls, schedule: Schedule, nfe: int, batch: int, extra_evaluations: int = 0) -> NfeBudget:
        """``nfe`` a step on average and ``extra_evaluations`` in all, for ``batch`` samples."""
        left = torch.full((batch,), float(nfe * len(schedule) + extra_evaluations), dtype=torch.float64)
        return cls(difficulty(schedule), int(len(schedule) < COARSE), left, torch.zeros_like(left))

    def limits(self, k: int, may_skip: Callable[[], Tensor]) -> Tensor:
        """Evaluations that each sample may spend at step ``k`` of the walk: int64 ``[B]``.

        They are 1 or more as long as there are evaluations left, but for samples that ``may_skip`` (bool ``[B]``) a
        step whose share rounds to nothing; it is asked only where one does.
        """
        expected, remaining = self.expected[k:], (self.left + self.due + 0.5).floor().long()
        share = self.each + (self.left - self.each * len(expected)) * (expected[0] / expected.sum())
        self.left, self.due = self.left - share, self.due + share
        limits = (self.due + 0.5).floor().long()
        if (limits < 1).any():
            least = torch.ones_like(limits) if self.each else (~may_skip()).long()
            limits = limits.maximum(least)
        return limits.minimum(remaining)

    def consume(self, limits: Tensor, spent: Tensor) -> None:
        """Takes note of the evaluations ``spent [B]`` under ``limits``."""
        self.due = self.due - spent
        returned = torch.where(spent < limits, self.due, 0.0)
        self.left, self.due = self.left + returned, self.due - returned
