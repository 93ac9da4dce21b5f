"""The midpoint rule, a second-order sampler of flow matching, as a predictor that every first-order walk can take."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule


@dataclass(frozen=True)
class MidpointPredictor(NoisePredictor):
    """The velocity with which Euler's step becomes the explicit midpoint rule's; two network evaluations a call.

    Step ``i`` from ``sigma_t`` to ``sigma_s``, with ``h = sigma_s - sigma_t``::

        y(z) = v(z + h/2 v(z, sigma_t), sigma_t + h/2);    z_s = z + h y(z)

    So ``sample(seed, MidpointPredictor(...), schedule)`` is the midpoint sampler, with its gradients, and
    ``ImplicitStep`` under it is the equation of the midpoint step's exact inverse. It counts its evaluations as
    the predictor that it was made of, with which it shares the counts.

    Attributes:
        schedule: flow matching's, whose timesteps alone are the labels that it may be called with.
    """

    schedule: Schedule = field(kw_only=True)

    @classmethod
    def from_predictor(cls, predictor: NoisePredictor, schedule: Schedule) -> MidpointPredictor:
        """The midpoint rule over ``predictor``; ValueError where ``schedule`` is not flow matching's."""
        require_flow_matching(schedule, "the midpoint rule")
        return cls(predictor.denoiser, predictor.nfe, schedule=schedule)

    def __call__(self, z: Tensor, t: float) -> Tensor:
        i = self.schedule.timesteps.tolist().index(t)
        _, sigma, _, sigma_next = self.schedule.alpha_sigma(i)
        half = (sigma_next - sigma) / 2
        middle = z + half * super().__call__(z, t)
        return super().__call__(middle, timestep_at_sigma(self.schedule, i, sigma + half))


def timestep_at_sigma(schedule: Schedule, i: int, sigma: float) -> float:
    """The network's label at the level ``sigma``, within or at an end of step ``i`` of flow matching's schedule.

    Flow matching's labels are proportional to its sigmas, whatever its shift, and may be any real number.
    """
    return schedule.timestep(i) * sigma / float(schedule.sigma[i])


def require_flow_matching(schedule: Schedule, method: str) -> None:
    """ValueError unless ``schedule`` is flow matching's: what needs the network between timesteps asks for that.

    A network of whole timesteps could be asked at the nearest one only, which is not the middle of a step: the rule
    would be of first order there.
    """
    if schedule.predicts != "flow":
        raise ValueError(
            f"{method} needs a flow-matching model, whose network takes any real timestep; this one predicts noise at "
            "whole timesteps: choose another method, such as accelerated."
        )
