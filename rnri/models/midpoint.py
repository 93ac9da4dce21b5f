"""The explicit midpoint rule, a second-order sampler of flow matching, as a predictor for first-order samplers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule


@dataclass(frozen=True)
class MidpointPredictor(NoisePredictor):
    """A velocity that turns an Euler step into a midpoint step; each call costs two network evaluations.

    Step ``i`` from ``sigma_t`` to ``sigma_s``, with ``h = sigma_s - sigma_t``::

        y(z) = v(z + h/2 v(z, sigma_t), sigma_t + h/2);    z_s = z + h y(z)

    Therefore ``sample(seed, MidpointPredictor(...), schedule)`` is the midpoint sampler, including its gradients, and
    ``ImplicitStep`` with this predictor is the equation of the exact inverse of a midpoint step. The evaluation
    counts are shared with the wrapped predictor.

    Attributes:
        schedule: the flow-matching schedule; the predictor may only be called at its timesteps.
    """

    schedule: Schedule = field(kw_only=True)

    @classmethod
    def from_predictor(cls, predictor: NoisePredictor, schedule: Schedule) -> MidpointPredictor:
        """Wrap ``predictor``; raise ValueError unless ``schedule`` is a flow-matching schedule."""
        require_flow_matching(schedule, "the midpoint rule")
        return cls(predictor.denoiser, predictor.nfe, schedule=schedule)

    def __call__(self, z: Tensor, t: float) -> Tensor:
        i = self.schedule.timesteps.tolist().index(t)
        _, sigma, _, sigma_next = self.schedule.alpha_sigma(i)
        half = (sigma_next - sigma) / 2
        midpoint = z + half * super().__call__(z, t)
        return super().__call__(midpoint, timestep_at_sigma(self.schedule, i, sigma + half))


def timestep_at_sigma(schedule: Schedule, i: int, sigma: float) -> float:
    """Return the network's timestep at noise level ``sigma`` within step ``i`` of a flow-matching schedule.

    Timesteps of flow matching are proportional to sigma for any shift and may be any real number.
    """
    return schedule.timestep(i) * sigma / float(schedule.sigma[i])


def require_flow_matching(schedule: Schedule, method: str) -> None:
    """Raise ValueError unless ``schedule`` is a flow-matching schedule, for methods that evaluate between timesteps.

    A network that takes only integer timesteps could be evaluated only near the middle of a step, which would reduce
    the method to first order.
    """
    if schedule.predicts != "flow":
        raise ValueError(
            f"{method} needs a flow-matching model, whose network takes any real timestep; this one predicts noise at "
            "integer timesteps: choose another method, such as accelerated."
        )
