"""Allocation of the network evaluations (NFE) of an inversion to its inversion steps.

Each inversion step solves an equation ``z = f(z)`` by a fixed-point iteration, where ``f(z) = A z_s + B y(z)`` with the
cleaner latent ``z_s``, the coefficients ``A`` and ``B`` of the step, and the network's prediction ``y``. Near the root,
each evaluation multiplies the error by the derivative of ``f``. For Gaussian latents of variance ``v``, signal level
``alpha`` and noise level ``sigma``, the derivative of the optimal noise prediction is
``sigma / (alpha^2 v + sigma^2)``. The derivative of the optimal velocity prediction is
``(sigma - alpha v) / (alpha^2 v + sigma^2)``. With noise prediction, the derivative of ``f`` is

    rho = B sigma / (alpha^2 v + sigma^2),

and the number of evaluations that an inversion step needs is proportional to ``1 / log(1 / rho)``. Fine image detail,
which has a small variance ``v``, converges last. For ``v -> 0``, rho tends to ``1 - psi_s / psi_t``, where ``psi_s``
and ``psi_t`` are the values of ``sigma / alpha`` at the cleaner and at the noisier end of the step. On Stable
Diffusion's schedule, one inversion step near the clean end needs several times as many evaluations as every other step,
for any number of steps. The inversion step with the least noise needs few evaluations. With flow matching and many
steps, all inversion steps need equally many evaluations. In measurements with flow matching, the reconstruction error
of a uniform allocation is up to forty times smaller than the error of an allocation by ``rho``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rnri.models.schedule import Schedule

DETAIL_VARIANCE = 0.02
"""Variance of fine image detail that :func:`difficulty` assumes, for latents of unit variance."""
FEW_STEPS_THRESHOLD = 9
"""Number of steps of a schedule below which every inversion step gets at least one network evaluation.

With fewer steps, extrapolated noise predictions are too inaccurate to replace a network evaluation. The threshold was
found by measurements.
"""
FEW_STEPS_VARIANCE = 0.1
"""Variance of latents that :func:`difficulty` assumes for schedules with fewer than ``FEW_STEPS_THRESHOLD`` steps.

The variance is larger than ``DETAIL_VARIANCE``, because the sampler amplifies the errors of the noisier steps. With few
steps, the errors of the noisier steps matter more than errors in fine detail.
"""
VERY_FEW_STEPS_THRESHOLD = 4
"""Number of steps below which the assumed variance is ``FEW_STEPS_VARIANCE * VERY_FEW_STEPS_THRESHOLD / steps``.

The threshold was found by measurements.
"""
MIN_RHO = 0.01
"""Lower bound of the derivative of ``f`` in the step equation ``z = f(z)``.

The bound applies to inversion steps that hardly change the latent.
"""
MAX_RHO = 0.97
"""Upper bound of the derivative of ``f`` in the step equation ``z = f(z)``.

The bound applies to inversion steps that replace almost the whole latent by noise.
"""


def difficulty(schedule: Schedule) -> Tensor:
    """Return the relative number of network evaluations of each inversion step, float64 ``[N]``, from clean to noisy.

    The relative number of evaluations of an inversion step is ``1 / log(1 / rho)``. Here ``rho`` is the absolute
    derivative of ``f`` in the step equation ``z = f(z)`` for Gaussian data, clamped to [``MIN_RHO``, ``MAX_RHO``]. For
    flow matching with at least ``FEW_STEPS_THRESHOLD`` steps, all numbers are 1.
    """
    num_steps = len(schedule)
    few_steps = num_steps < FEW_STEPS_THRESHOLD
    if schedule.predicts == "flow" and not few_steps:
        return torch.ones(num_steps, dtype=torch.float64)
    variance = FEW_STEPS_VARIANCE * max(1, VERY_FEW_STEPS_THRESHOLD / num_steps) if few_steps else DETAIL_VARIANCE
    rhos = [abs(schedule.derivative(i, variance)) for i in reversed(range(num_steps))]
    return -1 / torch.tensor(rhos, dtype=torch.float64).clamp(MIN_RHO, MAX_RHO).log()


@dataclass
class NfeBudget:
    """Distributes the network evaluations of each sample over the inversion steps, one step after the other.

    Each inversion step gets ``min_per_step`` evaluations. The remaining evaluations are distributed in proportion to
    the difficulty of the inversion steps, and the number of each step is rounded to an integer. The rounding error of
    an inversion step is added to the next inversion step, so that the total number of evaluations does not change.
    Evaluations that a sample does not use in an inversion step become available to all later inversion steps.

    Attributes:
        difficulty: float64 ``[N]``, the relative number of evaluations of each inversion step, see :func:`difficulty`.
        min_per_step: minimum number of evaluations per inversion step: 1 for schedules with fewer than
            ``FEW_STEPS_THRESHOLD`` steps, otherwise 0.
        unassigned: float64 ``[B]``, number of evaluations that are not yet assigned to an inversion step.
        unspent: float64 ``[B]``, number of evaluations that were assigned to the inversion steps so far but not used.
    """

    difficulty: Tensor
    min_per_step: int
    unassigned: Tensor
    unspent: Tensor

    @classmethod
    def from_schedule(
        cls, schedule: Schedule, nfe_per_step: int, batch_size: int, extra_evaluations: int = 0
    ) -> NfeBudget:
        """Return a budget with ``nfe_per_step * N + extra_evaluations`` evaluations for each sample."""
        total = float(nfe_per_step * len(schedule) + extra_evaluations)
        unassigned = torch.full((batch_size,), total, dtype=torch.float64)
        min_per_step = int(len(schedule) < FEW_STEPS_THRESHOLD)
        return cls(difficulty(schedule), min_per_step, unassigned, torch.zeros_like(unassigned))

    def allocate(self, k: int, may_skip: Callable[[], Tensor]) -> Tensor:
        """Return the maximum number of evaluations of each sample at inversion step ``k``, int64 ``[B]``.

        As long as evaluations remain, the maximum is at least 1, except for samples that may skip this inversion step.

        Args:
            k: index of the inversion step; step 0 starts at the clean latent.
            may_skip: returns a mask of the samples whose initial guess is usable as the solution without a network
                evaluation, bool ``[B]``. ``may_skip`` is called only if the allocation of a sample rounds to 0.
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
        """Subtract the ``nfe [B]`` network evaluations that an inversion step has used.

        ``max_nfe [B]`` is the maximum that :meth:`allocate` returned for this inversion step. If a sample used fewer
        evaluations than its maximum, its unused evaluations become available to all later inversion steps.
        """
        self.unspent = self.unspent - nfe
        returned = torch.where(nfe < max_nfe, self.unspent, 0.0)
        self.unassigned = self.unassigned + returned
        self.unspent = self.unspent - returned
