"""Extrapolates the network's predictions of previous inversion steps to compute the next step's initial guess."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rnri.models.predictor import to_device
from rnri.solvers.implicit import ImplicitStep, Solution

DEFAULT_BETA = 0.5
"""Factor ``beta`` of the extrapolation ``eps_{k-1} + beta (eps_{k-1} - eps_{k-2})`` if only two predictions exist.

``eps_j`` is the network's prediction in inversion step ``j``. A least-squares fit of ``beta`` needs three predictions.
"""
MAX_BETA = 1.5
"""Upper bound of the fitted factor ``beta`` of the extrapolation ``eps_{k-1} + beta (eps_{k-1} - eps_{k-2})``.

``eps_j`` is the network's prediction in inversion step ``j``.
"""


@dataclass(frozen=True)
class PredictionHistory:
    """The network's predictions in the last three inversion steps, each ``[B,C,h,w]``, the oldest first.

    The prediction of inversion step ``k`` is extrapolated as ``eps_{k-1} + beta (eps_{k-1} - eps_{k-2})``, where
    ``eps_j`` is the prediction of inversion step ``j``.
    """

    predictions: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.predictions)

    def append(self, problem: ImplicitStep, solution: Solution) -> PredictionHistory:
        """Return this history, extended by the network's prediction at the ``solution`` of an inversion step.

        ``problem`` is the equation ``z = A z_s + B y(z)`` of the inversion step, and ``y`` is the prediction. If ``B``
        is 0, the history is returned unchanged. If the evaluation of a sample is not finite, the prediction of this
        sample in the previous inversion step is used again.
        """
        if problem.b == 0:
            return self
        prediction = problem.prediction(solution.value)
        diverged = solution.residual.isinf()
        is_on_device = diverged.device.type != "cpu"  # diverged.any() would synchronize the CPU with the GPU
        if self.predictions and (is_on_device or diverged.any()):
            mask = to_device(diverged, prediction.device).view(-1, 1, 1, 1)
            prediction = torch.where(mask, self.predictions[-1], prediction)
        return PredictionHistory((*self.predictions[-2:], prediction))

    def extrapolate(self, fitted: bool) -> Tensor:
        """Return the extrapolated prediction of the next inversion step, ``[B,C,h,w]``.

        With one prediction in the history, this prediction is returned. With more predictions, the result is
        ``eps_{k-1} + beta (eps_{k-1} - eps_{k-2})``, where ``eps_{k-1}`` and ``eps_{k-2}`` are the last two
        predictions. The factor ``beta`` is fitted by least squares if ``fitted`` is True, and 1 otherwise. The history
        must contain at least one prediction.
        """
        last = self.predictions[-1]
        if len(self) == 1:
            return last
        return last + self.beta(fitted).view(-1, 1, 1, 1) * (last - self.predictions[-2])

    def beta(self, fitted: bool) -> Tensor:
        """Return the factor ``beta [B]`` of the extrapolation ``eps_{k-1} + beta (eps_{k-1} - eps_{k-2})``.

        ``eps_j`` is the prediction of inversion step ``j``. Without ``fitted``, ``beta`` is 1. With ``fitted``,
        ``beta`` is the least-squares factor for the extrapolation of ``eps_{k-1}`` from the two predictions before
        ``eps_{k-1}``, clamped to [0, 1.5]. With ``fitted`` and only two predictions, ``beta`` is 0.5. The history must
        contain at least two predictions.
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
