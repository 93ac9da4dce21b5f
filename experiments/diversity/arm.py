"""Arms of the experiment on seed diversity: pink initial seeds, and optimization of one-step predictions."""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch import Tensor

from experiments.planning.cost import BACKWARD_COST, Cost, batch_multiplier
from experiments.rare_concepts.arm import Arm
from rnri.validation import ConfigError, dataclass


@dataclass(frozen=True)
class DiversityArm(Arm):
    """An arm that generates a group of images of one prompt from random seeds.

    Args:
        noise_exponent: exponent of the power spectrum ``1 / f^exponent`` of the initial seeds
            (:func:`seedselect.noise.pink_noise`); 0 means white noise.
        one_step: whether the optimization uses one-step predictions of the clean latent, as in Contrastive Noise
            Optimization, instead of all sampling steps. The images are sampled from the optimized seeds with all steps.
        stop_gradient: whether the gradient of a one-step prediction treats the prediction of the network as a constant,
            so that an update needs no backward pass through the network.
    """

    noise_exponent: NonNegativeFloat = 0.0
    one_step: bool = False
    stop_gradient: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inverter is not None:
            raise ConfigError("inverter", "must be null, because the initial seeds of the experiment are random.")
        if self.one_step and self.select is None:
            raise ConfigError("one_step", "must be false without select, because there is no optimization.")

    @property
    def _backward_cost(self) -> int:
        """Network evaluations of one update of one-step predictions, in addition to the prediction."""
        return 0 if self.stop_gradient else BACKWARD_COST

    def nfe(self, steps: int, forwards: Tensor, backwards: Tensor) -> Tensor:
        """Return the number of network evaluations per image, see :meth:`Arm.nfe`."""
        if not self.one_step:
            return super().nfe(steps, forwards, backwards)
        return batch_multiplier(self.guidance_of_sampling) * (forwards + self._backward_cost * backwards + steps)

    def sampling_cost(self, steps: int, samples: int, *, gradient_checkpointing: bool = False) -> Cost:
        """Return the cost of optimizing and sampling the seeds of one concept, if no optimization stops early."""
        if not self.one_step or self.select is None:
            return super().sampling_cost(steps, samples, gradient_checkpointing=gradient_checkpointing)
        forwards, backwards = self.select.call_counts
        rows = batch_multiplier(self.guidance_of_sampling)
        backward = 0 if self.stop_gradient else rows * backwards
        return Cost(rows * (forwards + steps), 1, backward, 0).times(samples)
