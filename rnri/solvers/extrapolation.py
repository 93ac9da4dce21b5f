"""Extrapolation of the noise prediction from previous inversion steps, for the initial guess of the next one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnri.models.predictor import to_device
from rnri.solvers.implicit import ImplicitStep, Solution

DEFAULT_BETA = 0.5
"""``beta`` of the fitted extrapolation before there are three predictions to fit it to."""
MAX_BETA = 1.5


@dataclass(frozen=True)
class PredictionHistory:
    """The predictions of the last three inversion steps, each ``[B,C,h,w]``, the oldest first.

    The next prediction is extrapolated as ``eps_{k-1} + beta (eps_{k-1} - eps_{k-2})``.
    """

    predictions: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.predictions)

    def append(self, problem: ImplicitStep, solution: Solution) -> PredictionHistory:
        """Return the history with the prediction at the ``solution`` of ``problem``; unchanged if ``B = 0``.

        A sample without a finite evaluation keeps its last prediction.
        """
        if problem.b == 0:
            return self
        prediction = problem.prediction(solution.value)
        diverged = solution.residual.isinf()
        if self.predictions and diverged.any():
            mask = to_device(diverged, prediction.device).view(-1, 1, 1, 1)
            prediction = torch.where(mask, self.predictions[-1], prediction)
        return PredictionHistory((*self.predictions[-2:], prediction))

    def extrapolate(self, fitted: bool) -> Tensor:
        """Return the extrapolated prediction of the next step, ``[B,C,h,w]``; the history must not be empty."""
        last = self.predictions[-1]
        if len(self) == 1:
            return last
        return last + self.beta(fitted).view(-1, 1, 1, 1) * (last - self.predictions[-2])

    def beta(self, fitted: bool) -> Tensor:
        """Return the factor ``beta [B]`` of the last change; it needs at least two predictions.

        It is 1, or if ``fitted`` the factor that would have been best one step before, in [0, 1.5].
        """
        last = self.predictions[-1]
        if not fitted:
            return last.new_ones(len(last))
        if len(self) == 2:
            return last.new_full((len(last),), DEFAULT_BETA)
        change = (last - self.predictions[-2]).flatten(1)
        previous_change = (self.predictions[-2] - self.predictions[-3]).flatten(1)
        tiny = torch.finfo(previous_change.dtype).tiny
        beta = (change * previous_change).sum(1) / previous_change.square().sum(1).clamp(min=tiny)
        return beta.clamp(0, MAX_BETA)
