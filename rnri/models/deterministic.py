"""A diffusers scheduler whose steps are the steps that were inverted, so that a pipeline reproduces inverted images."""

from __future__ import annotations

import copy
from typing import cast

import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from rnri.models.diffusers_schedulers import alpha_bar_table, base_scheduler, is_flow
from rnri.models.families import family_of
from rnri.models.sampling import to_state_dtype
from rnri.models.schedule import Schedule
from rnri.models.unet import to_noise


class DeterministicScheduler(SchedulerMixin, ConfigMixin):
    """A diffusers scheduler whose steps equal the steps of ``Schedule.from_scheduler(source, ...)``.

    A pipeline with this scheduler reproduces inverted images, because inversion methods invert exactly the steps of
    this scheduler. This scheduler has no step counter, does not scale latents or model inputs, and computes each step
    in float64. The config of this scheduler equals the config of ``source``.

    Args:
        source: a diffusion scheduler that ``Schedule.from_scheduler`` supports, except flow-matching schedulers;
            ``source`` is copied.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, source: SchedulerMixin) -> None:
        self.source = copy.deepcopy(source)
        self.register_to_config(**{key: value for key, value in source.config.items() if not key.startswith("_")})
        self.table = alpha_bar_table(self.source)
        self.schedule: Schedule | None = None
        self.timesteps = torch.empty(0, dtype=torch.int64)

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        original_inference_steps: int | None = None,
    ) -> None:
        """Set the number of sampling steps and compute the timesteps.

        LCM's pipeline also passes ``original_inference_steps``, which must equal the value in the scheduler's config.
        """
        config_value = self.config.get("original_inference_steps")
        if original_inference_steps not in (None, config_value):
            raise ValueError(
                f"original_inference_steps={original_inference_steps}: must be {config_value}, the value in the "
                "scheduler's config."
            )
        self.schedule = Schedule.from_scheduler(self.source, num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = self.schedule.timesteps.to(device)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        return sample

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """Return the latent after the step at ``timestep``, in the dtype of ``sample [B,C,h,w]``.

        With ``return_dict=False``, ``step`` returns a tuple of the latent after the step and the estimate of the clean
        latent.
        """
        schedule = cast(Schedule, self.schedule)  # pipelines call set_timesteps first
        i = int((schedule.timesteps == int(timestep)).nonzero())
        z = to_state_dtype(sample)
        prediction_type = self.config.get("prediction_type", "epsilon")
        noise = to_noise(to_state_dtype(model_output), z, float(self.table[int(timestep)]), prediction_type)
        a, b = schedule.coefficients(i)
        clean = schedule.clean_and_noise(i, z, noise)[0].to(sample.dtype)
        prev_sample = ((z - b * noise) / a).to(sample.dtype)
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample, clean)


def scheduler_for(pipe: DiffusionPipeline) -> SchedulerMixin:
    """Return the deterministic scheduler with which ``pipe`` reproduces inverted images.

    ``scheduler_for`` does not change ``pipe``; to use the scheduler, set ``pipe.scheduler = rnri.scheduler_for(pipe)``.
    For flow matching the function returns a copy of the pipeline's scheduler, which is already deterministic. For
    diffusion the function returns a ``DeterministicScheduler``, whose steps are first-order and add no noise.

    Raises:
        ValueError: the pipeline or its scheduler is not supported.
    """
    family_of(pipe).check()
    if is_flow(pipe.scheduler):
        return copy.deepcopy(pipe.scheduler)
    return DeterministicScheduler(base_scheduler(pipe.scheduler))
