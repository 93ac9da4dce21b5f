"""SelFix: a fixed-point iteration that is pulled towards a straight continuation of the trajectory."""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Lt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from rnri.solvers.iterative import Iterate, IterativeSolver, State
from rnri.validation import OpenUnitInterval, dataclass


@dataclass(frozen=True)
class SelFix(IterativeSolver):
    """SelFix (Kim et al. 2026, arXiv 2606.17584): a fixed-point iteration that selects a root on a straight trajectory.

    ``z_s`` is the latent at the cleaner end of the inversion step, and ``z = f(z)`` with ``f(z) = A z_s + B y(z)`` is
    the step's equation. The iteration starts at ``z_0 = z_s`` and ``m_{-1} = z_s``, and computes::

        m_k = mu m_{k-1} + (1 - mu) f(z_k)
        z_{k+1} = (1 - alpha_k) m_k + alpha_k anchor,    alpha_k = alpha_1 delta / (k + delta)

    The latent ``anchor`` is ``A z_s + B y`` and continues the trajectory in a straight line. In ``anchor``, ``y`` is
    the prediction (in flow matching the velocity) that leads from the previous latent to the current latent ``z_s``. As
    in the authors' code, the first two inversion steps have no anchor (``alpha_k = 0``), and the result is the iterate
    after the last evaluation. The defaults are the authors' settings for reconstruction.

    Attributes:
        momentum: the factor ``mu`` of the moving average ``m_k``, in [0, 1).
        strength: ``alpha_1``, the weight of the anchor in the first iteration, in (0, 1).
        decay: ``delta``; the smaller ``delta``, the sooner the weight of the anchor decreases.
    """

    iterations: PositiveInt = 10
    tolerance: NonNegativeFloat = 0.0
    keep_best: bool = False
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.5
    strength: OpenUnitInterval = 0.5
    decay: PositiveFloat = 0.125

    uses_anchor: ClassVar[bool] = True
    """Whether ``ImplicitInverter`` passes to the solver the latent that continues the trajectory in a straight line.

    The latent is passed as ``ImplicitStep.anchor``.
    """

    @property
    def min_nfe(self) -> int:
        """Minimum number of evaluations; with one evaluation the solver computes a damped step of DDIM inversion."""
        return 1

    def step(self, iterate: Iterate) -> tuple[Tensor, State]:
        mean, count = iterate.state or (iterate.z, iterate.z.new_zeros(len(iterate.z), 1, 1, 1))
        mean = self.momentum * mean + (1 - self.momentum) * iterate.f
        z = mean
        if iterate.problem.anchor is not None:
            weight = self.strength * self.decay / (count + self.decay)
            z = (1 - weight) * mean + weight * iterate.problem.anchor
        return z, (mean, count + 1)
