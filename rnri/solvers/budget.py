"""Allocation of an inversion's network evaluations (NFE) to its steps.

Near the root, each evaluation of the fixed-point iteration multiplies the error by the derivative of ``f``. For
Gaussian latents of variance ``v`` the derivative of the optimal noise prediction is ``sigma / (alpha^2 v + sigma^2)``,
and that of the optimal velocity ``(sigma - alpha v) / (alpha^2 v + sigma^2)``. For noise, the derivative of ``f`` is

    rho = B sigma / (alpha^2 v + sigma^2),

so that a step needs evaluations in proportion to ``1 / log(1 / rho)``. Fine detail, of small ``v``, converges last; for
``v -> 0``, rho tends to ``1 - psi_s / psi_t``. On Stable Diffusion's schedule one step near the clean end is several
times as hard as any other, for any number of steps, and the cleanest step is easy. With flow matching and many steps
all steps are equally hard: a uniform allocation measured up to forty times better there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rnri.models.schedule import Schedule

DETAIL_VARIANCE = 0.02
"""``v`` of fine detail, for latents of unit variance."""
FEW_STEPS_THRESHOLD = 9
"""With fewer steps every step has an evaluation: extrapolated noise does not replace it; measured."""
FEW_STEPS_VARIANCE = 0.1
"""``v`` with few steps, where errors of the noisier steps, which the sampler amplifies, matter more than detail."""
VERY_FEW_STEPS_THRESHOLD = 4
"""With fewer steps ``v`` is increased further; measured."""
MIN_RHO = 0.01
MAX_RHO = 0.97
"""Bounds of rho, for steps that change almost nothing or almost everything."""


def difficulty(schedule: Schedule) -> Tensor:
    """Return the relative number of evaluations that each step needs, float64 ``[N]``, the cleanest step first."""
    num_steps = len(schedule)
    few_steps = num_steps < FEW_STEPS_THRESHOLD
    if schedule.predicts == "flow" and not few_steps:
        return torch.ones(num_steps, dtype=torch.float64)
    variance = FEW_STEPS_VARIANCE * max(1, VERY_FEW_STEPS_THRESHOLD / num_steps) if few_steps else DETAIL_VARIANCE
    rhos = [abs(schedule.derivative(i, variance)) for i in reversed(range(num_steps))]
    return -1 / torch.tensor(rhos, dtype=torch.float64).clamp(MIN_RHO, MAX_RHO).log()


@dataclass
class NfeBudget:
    """The network evaluations of an inversion per sample, allocated step by step.

    A step gets a share of the remaining evaluations in proportion to its difficulty, with few steps after one
    evaluation for each. Shares are real numbers and allocations integers: a step's rounding error is passed to the
    next, so that the total is kept. Evaluations that a sample does not use return to all later steps.

    Attributes:
        difficulty: float64 ``[N]``, of :func:`difficulty`.
        min_per_step: evaluations that every step has: 1 with few steps, else 0.
        unassigned: float64 ``[B]``, evaluations not yet assigned to a step.
        unspent: float64 ``[B]``, evaluations assigned to the steps so far and not used.
    """

    difficulty: Tensor
    min_per_step: int
    unassigned: Tensor
    unspent: Tensor

    @classmethod
    def from_schedule(
        cls, schedule: Schedule, nfe_per_step: int, batch_size: int, extra_evaluations: int = 0
    ) -> NfeBudget:
        """Return a budget of ``nfe_per_step`` on average plus ``extra_evaluations`` in total for each sample."""
        total = float(nfe_per_step * len(schedule) + extra_evaluations)
        unassigned = torch.full((batch_size,), total, dtype=torch.float64)
        min_per_step = int(len(schedule) < FEW_STEPS_THRESHOLD)
        return cls(difficulty(schedule), min_per_step, unassigned, torch.zeros_like(unassigned))

    def allocate(self, k: int, may_skip: Callable[[], Tensor]) -> Tensor:
        """Return the maximum number of evaluations of each sample at inversion step ``k``, int64 ``[B]``.

        It is at least 1 while evaluations remain, except for samples that ``may_skip`` (bool ``[B]``) a step whose
        share rounds to 0; ``may_skip`` is called for such steps only.
        """
        difficulty = self.difficulty[k:]
        remaining = (self.unassigned + self.unspent + 0.5).floor().long()
        fraction = difficulty[0] / difficulty.sum()
        share = self.min_per_step + (self.unassigned - self.min_per_step * len(difficulty)) * fraction
        self.unassigned = self.unassigned - share
        self.unspent = self.unspent + share
        max_nfe = (self.unspent + 0.5).floor().long()
        if (max_nfe < 1).any():
            min_nfe = torch.ones_like(max_nfe) if self.min_per_step else (~may_skip()).long()
            max_nfe = max_nfe.maximum(min_nfe)
        return max_nfe.minimum(remaining)

    def consume(self, max_nfe: Tensor, nfe: Tensor) -> None:
        """Subtract the evaluations ``nfe [B]`` that a step used of its allocation ``max_nfe [B]``."""
        self.unspent = self.unspent - nfe
        returned = torch.where(nfe < max_nfe, self.unspent, 0.0)
        self.unassigned = self.unassigned + returned
        self.unspent = self.unspent - returned
