"""A diffusers scheduler that takes our steps, so that a plain pipeline call follows a seed of ours."""

from __future__ import annotations

import copy

import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from rnri.models.diffusers_schedulers import alpha_bar_table, base_scheduler
from rnri.models.families import family_of
from rnri.models.flow import is_flow
from rnri.models.sampling import to_state_dtype
from rnri.models.schedule import Schedule
from rnri.models.unet import to_noise


class DeterministicScheduler(SchedulerMixin, ConfigMixin):
    """``Schedule.from_scheduler`` of another scheduler, as a scheduler: the very steps that are inverted.

    It keeps no hidden index, scales neither latents nor model inputs, and works in float64 inside a step. Its config
    is the other's.

    Args:
        source: any scheduler that ``Schedule.from_scheduler`` follows, but flow matching's; copied.
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
        """Fixes the steps; ``original_inference_steps``, which LCM's pipeline passes, must be the config's own."""
        own = self.config.get("original_inference_steps")
        if original_inference_steps not in (None, own):
            raise ValueError(f"original_inference_steps={original_inference_steps}: the scheduler's config says {own}.")
        self.schedule = Schedule.from_scheduler(self.source, num_inference_steps)
        self.num_inference_steps, self.timesteps = num_inference_steps, self.schedule.timesteps.to(device)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        return sample

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """The step from ``sample [B,C,h,w]`` at ``timestep``, in its dtype; the tuple's second part is ``x0``."""
        i = int((self.schedule.timesteps == int(timestep)).nonzero())
        z, output = to_state_dtype(sample), to_state_dtype(model_output)
        kind = self.config.get("prediction_type", "epsilon")
        noise = to_noise(output, z, float(self.table[int(timestep)]), kind)
        a, b = self.schedule.coefficients(i)
        clean = self.schedule.clean_and_noise(i, z, noise)[0].to(sample.dtype)
        following = ((z - b * noise) / a).to(sample.dtype)
        return SchedulerOutput(prev_sample=following) if return_dict else (following, clean)


def scheduler_for(pipe: DiffusionPipeline) -> SchedulerMixin:
    """The deterministic scheduler to set on ``pipe``, so that it samples as its seeds were inverted.

    ``pipe.scheduler = rnri.scheduler_for(pipe)``; nothing of ``pipe`` changes before. Flow matching's is a copy of the
    pipeline's own, which is deterministic already; others are followed by ``DeterministicScheduler``, whatever noise
    or higher order they add themselves.

    Raises:
        ValueError: one sentence for a pipeline of no known family, or a scheduler that cannot be followed.
    """
    family_of(pipe).check()
    if is_flow(pipe.scheduler):
        return copy.deepcopy(pipe.scheduler)
    return DeterministicScheduler(base_scheduler(pipe.scheduler))
