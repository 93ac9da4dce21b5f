"""A predictor that turns first-order flow-matching samplers into the second-order explicit midpoint rule."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule


@dataclass(frozen=True)
class MidpointPredictor(NoisePredictor):
    """Predicts the velocity for which an Euler step equals a midpoint step; each call needs two network evaluations.

    Step ``i`` goes from the noise level ``sigma_t`` to ``sigma_s``. With ``h = sigma_s - sigma_t`` and the latent
    ``z``, the prediction ``y`` and the latent ``z_s`` after the step are::

        y(z) = v(z + h/2 v(z, sigma_t), sigma_t + h/2);    z_s = z + h y(z)

    Here ``v(z, sigma)`` is the velocity that the network predicts. ``sample(seed, MidpointPredictor(...), schedule)``
    is the midpoint sampler and is differentiable with respect to ``seed``. Solving ``ImplicitStep`` with a
    ``MidpointPredictor`` inverts a midpoint step exactly. A ``MidpointPredictor`` and the predictor that it wraps share
    their evaluation counts.

    Attributes:
        schedule: the flow-matching schedule; the predictor may be called only at the timesteps of this schedule.
    """

    schedule: Schedule = field(kw_only=True)

    @classmethod
    def from_predictor(cls, predictor: NoisePredictor, schedule: Schedule) -> MidpointPredictor:
        """Return a midpoint predictor that wraps ``predictor``.

        Raises:
            ValueError: ``schedule`` is not a flow-matching schedule.
        """
        require_flow_matching(schedule, "the midpoint rule")
        return cls(predictor.denoiser, predictor.nfe, schedule=schedule)

    def __call__(self, z: Tensor, t: float) -> Tensor:
        i = self.schedule.timesteps.tolist().index(t)
        _, sigma, _, sigma_next = self.schedule.alpha_sigma(i)
        half = (sigma_next - sigma) / 2
        midpoint = z + half * super().__call__(z, t)
        return super().__call__(midpoint, timestep_at_sigma(self.schedule, i, sigma + half))


def timestep_at_sigma(schedule: Schedule, i: int, sigma: float) -> float:
    """Return the network's timestep for the noise level ``sigma`` within step ``i`` of a flow-matching schedule.

    In flow matching, timesteps are real numbers that are proportional to the noise level, for any shift of the
    schedule.
    """
    return schedule.timestep(i) * sigma / float(schedule.sigma[i])


def require_flow_matching(schedule: Schedule, method: str) -> None:
    """Raise ValueError unless ``schedule`` is a flow-matching schedule.

    The midpoint rule and similar methods evaluate the network between two timesteps of the schedule. A network that
    takes only integer timesteps cannot be evaluated exactly at the midpoint of a step, so that the midpoint rule would
    only be first-order.
    """
    if schedule.predicts != "flow":
        raise ValueError(
            f"{method} needs a flow-matching model, whose network takes any real timestep; this model predicts noise "
            "at integer timesteps: choose another method (for inversion such as accelerated, for edits PseudoGuidance)."
        )
