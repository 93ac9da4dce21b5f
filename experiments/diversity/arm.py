"""The arms (compared pipelines) of the experiment on seed diversity, which generate several images of one prompt."""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch import Tensor

from experiments.planning.cost import BACKWARD_COST, Cost, batch_multiplier
from experiments.rare_concepts.arm import Arm
from rnri.validation import ConfigError, dataclass


@dataclass(frozen=True)
class DiversityArm(Arm):
    """An arm (one of the compared pipelines) that generates several images of one prompt from random seeds.

    Args:
        noise_exponent: exponent in the power spectrum ``1 / f^noise_exponent`` of the initial seeds, where ``f`` is the
            spatial frequency (:func:`seedselect.noise.pink_noise`). The value 0 means white noise.
        one_step: whether the loss of a seed is computed from a one-step prediction of the clean latent, as in
            Contrastive Noise Optimization. If false, the loss is computed from the result of all sampling steps. The
            final images are always sampled with all steps.
        stop_gradient: whether the gradient of a one-step prediction treats the network's output as a constant, so that
            no backward pass through the network is needed.
    """

    noise_exponent: NonNegativeFloat = 0.0
    one_step: bool = False
    stop_gradient: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inverter is not None:
            raise ConfigError("inverter", "must be null, because the initial seeds of the experiment are random.")
        if self.one_step and self.select is None:
            raise ConfigError(
                "one_step", "must be false without select, because no seed is optimized if select is null."
            )
        if self.one_step and self.select.previews:
            raise ConfigError("select.preview", "must be null with one_step, because one step has no preview.")

    @property
    def _backward_cost(self) -> int:
        """Cost in network evaluations of the gradient of a one-step prediction, without the prediction itself."""
        return 0 if self.stop_gradient else BACKWARD_COST

    def nfe(self, steps: int, forwards: Tensor, backwards: Tensor) -> Tensor:
        """Return the number of network evaluations per image, including the final sampling.

        A backward pass counts as two evaluations. If ``one_step`` and ``stop_gradient`` are true, a backward pass needs
        no evaluation. ``forwards`` and ``backwards`` are the numbers of forward and backward passes of the seed
        optimization of each image.
        """
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
