"""Edits that do not need the seed of an image: FlowEdit and TurboEdit's pseudo-guidance."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from rnri.methods.edit_friendly_ddpm import posterior
from rnri.methods.noise_maps import diffused, draw_noise
from rnri.models.joint import JointPredictor
from rnri.models.midpoint import require_flow_matching
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import ddim_step, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.validation import ConfigError, GuidanceScale, HalfOpenUnitInterval, RandomSeed, dataclass


@runtime_checkable
class Editor(Protocol):
    """A method that edits an image without its seed, by predictions for the source prompt and for the edited prompt."""

    def guidances(self, guidance: float) -> tuple[float, float]:
        """Return the guidance scales for the source prompt and for the edited prompt.

        ``guidance`` is the user's guidance scale, which a method may replace by its own scales.
        """
        ...

    def edit(self, z0: Tensor, source: NoisePredictor, target: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the edited latents ``[B,C,h,w]`` of the clean latents ``z0 [B,C,h,w]``.

        ``source`` predicts noise or velocity for the source prompts, and ``target`` for the edited prompts.
        """
        ...


@dataclass(frozen=True)
class FlowEdit:
    """FlowEdit (Kulikov et al. 2024, arXiv 2412.08629), Algorithm 1: an ODE that leads from the image to its edit.

    The edit ``z`` starts at the image's latent, ``z = z_0``. Every step, from noise level ``sigma`` to ``sigma_next``,
    draws new noise ``n`` and uses the flow-matching velocities ``v_source`` for the source prompt and ``v_target`` for
    the edited prompt (target)::

        z_src = (1 - sigma) z_0 + sigma n;    z_tar = z + z_src - z_0
        z <- z + (sigma_next - sigma) (v_target(z_tar) - v_source(z_src))

    The network predicts ``v_source`` and ``v_target`` in one batch. The last ``n_min`` steps sample with the edited
    prompt alone: every step is ``z_tar <- z_tar + (sigma_next - sigma) v_target(z_tar)``. The first of the ``n_min``
    steps starts at the ``z_tar`` of the formula above, with new noise.

    Attributes:
        share: fraction of the schedule's steps that the edit uses, which are the steps with the least noise. The paper
            uses the last 33 of 50 steps for Stable Diffusion 3 and the last 24 of 28 steps (0.857) for FLUX.
        average: number of noise samples per step over which the difference of the two velocities is averaged.
        source_guidance, target_guidance: guidance scales of the source prompt and of the edited prompt, which replace
            the user's guidance scale. The paper uses the scales 3.5 and 13.5 for Stable Diffusion 3, and 1.5 and 5.5
            for FLUX.
        seed: random seed of the noise; every image gets the same noise.
        n_min: number of last steps that sample with the edited prompt alone. ``n_min`` must be less than the number of
            steps that ``share`` selects. The paper uses ``n_min`` 0, and a larger ``n_min`` for edits that change the
            style.
    """

    share: HalfOpenUnitInterval = 0.66
    average: PositiveInt = 1
    source_guidance: GuidanceScale = 3.5
    target_guidance: GuidanceScale = 13.5
    seed: RandomSeed = 0
    n_min: NonNegativeInt = 0

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError unless ``schedule`` uses flow matching and ``share`` selects more than ``n_min`` steps."""
        require_flow_matching(schedule, "FlowEdit")
        steps = len(self._steps(schedule))
        if self.n_min >= steps:
            raise ConfigError(
                "n_min",
                f"must be less than {steps}, the number of steps that share={self.share} selects, got {self.n_min}.",
            )

    def guidances(self, guidance: float) -> tuple[float, float]:
        return self.source_guidance, self.target_guidance

    def _steps(self, schedule: Schedule) -> Schedule:
        return schedule.tail(max(1, round(self.share * len(schedule))))

    @torch.no_grad()
    def edit(self, z0: Tensor, source: NoisePredictor, target: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the edited latents ``[B,C,h,w]`` of the clean latents ``z0 [B,C,h,w]``.

        Raises:
            ValueError: ``schedule`` is not a flow-matching schedule, or has too few steps for ``n_min``.
        """
        self.check_schedule(schedule)
        z = z0 = to_state_dtype(z0)
        steps = self._steps(schedule)
        velocities = JointPredictor(source, target)
        edit_steps = len(steps) - self.n_min
        noise_samples = draw_noise(z0, edit_steps * self.average + (self.n_min > 0), self.seed)
        noises_of_steps = noise_samples[: edit_steps * self.average].unflatten(0, (edit_steps, self.average))
        with source.eval_mode():
            for i, noises in enumerate(noises_of_steps):
                _, sigma, _, sigma_next = steps.alpha_sigma(i)
                t = steps.timestep(i)
                difference = torch.zeros_like(z)
                for noise in noises:
                    z_source = (1 - sigma) * z0 + sigma * noise
                    v_source, v_target = velocities(z_source, z + z_source - z0, t=t)
                    difference += (v_target - v_source) / self.average
                z = z + (sigma_next - sigma) * difference
            if self.n_min:
                sigma = steps.alpha_sigma(edit_steps)[1]
                z = z + (1 - sigma) * z0 + sigma * noise_samples[-1] - z0
            for i in range(edit_steps, len(steps)):
                z = ddim_step(z, target, steps, i)
        return z


@dataclass(frozen=True)
class PseudoGuidance:
    """Pseudo-guidance of TurboEdit (Deutch et al. 2024, arXiv 2408.00735): scales the prompt's effect on every step.

    ``x_t`` are independent noisy samples of the image, one per noise level ``t``, as in edit-friendly DDPM inversion. A
    DDPM step from a latent ``z`` draws the next latent from a Gaussian distribution. ``mu(z, source)`` is the mean of
    this distribution if the network predicts noise for the source prompt, and ``mu(z, target)`` is the mean for the
    edited prompt (target). ``w`` is the scale of the prompt's effect. The edit ``z`` starts at the noisiest sample. The
    step from noise level ``t`` to the lower noise level ``s`` adds the noise map ``n`` of the image::

        z <- mu(z, source) + w (mu(z, target) - mu(z, source)) + n,    n = x_s - mu(x_t, source)

    The network computes the three predictions of a step in one batch. With ``w = 1``, the edit equals edit-friendly
    DDPM editing with all noise maps. If both prompts are equal and ``max_last_norm`` is None, the edited latents equal
    the image's latents for every ``w``. The authors use ``noise_shift=1`` and ``max_last_norm=15.5`` for SDXL turbo
    with 4 steps at 512 px.

    Attributes:
        scale: the factor ``w`` of the prompt's effect; the paper uses 1.5.
        seed: random seed of the noise.
        noise_shift: number of steps by which the noise level of the samples ``x_t`` is shifted. The sample of a step
            has the noise level of the step that is ``noise_shift`` steps later, but the network receives the timestep
            of the current step. The last ``noise_shift`` samples are the clean latent.
        max_last_norm: maximum Euclidean norm of the noise map ``n`` of the last step, per image; the norm of a larger
            noise map is clipped. None means that the norm is not clipped.
    """

    scale: NonNegativeFloat = 1.5
    seed: RandomSeed = 0
    noise_shift: NonNegativeInt = 0
    max_last_norm: PositiveFloat | None = None

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError unless ``schedule`` has more than ``noise_shift`` steps."""
        if self.noise_shift >= len(schedule):
            raise ConfigError(
                "noise_shift", f"must be less than {len(schedule)}, the number of steps, got {self.noise_shift}."
            )

    def guidances(self, guidance: float) -> tuple[float, float]:
        return guidance, guidance

    @torch.no_grad()
    def edit(self, z0: Tensor, source: NoisePredictor, target: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the edited latents ``[B,C,h,w]`` of the clean latents ``z0 [B,C,h,w]``.

        Raises:
            ValueError: ``schedule`` has too few steps for ``noise_shift``.
        """
        self.check_schedule(schedule)
        z0 = to_state_dtype(z0)
        steps = len(schedule)
        noisy = diffused(z0, schedule.tail(steps - self.noise_shift), self.seed) + [z0] * self.noise_shift
        predictions = JointPredictor(source, source, target)
        z = noisy[0]
        with source.eval_mode():
            for i, (x, x_next) in enumerate(pairwise([*noisy, z0])):
                of_image, of_source, of_target = predictions(x, z, z, t=schedule.timestep(i))
                mean_of_image = posterior(x, of_image, schedule, i)[0]
                mean_source = posterior(z, of_source, schedule, i)[0]
                mean_target = posterior(z, of_target, schedule, i)[0]
                clip = self._clip_factor(x_next - mean_of_image) if i == steps - 1 else 1.0
                z = clip * x_next + self.scale * (mean_target - mean_source) + (mean_source - clip * mean_of_image)
        return z

    def _clip_factor(self, noise_map: Tensor) -> Tensor | float:
        """Return the factor ``[B,1,1,1]`` that scales ``noise_map [B,C,h,w]`` to a norm of at most ``max_last_norm``.

        The factor is at most 1. If ``max_last_norm`` is None, the factor is the number 1.0.
        """
        if self.max_last_norm is None:
            return 1.0
        norm = noise_map.double().flatten(1).norm(dim=1)
        return (self.max_last_norm / norm).clamp(max=1).to(noise_map)[:, None, None, None]
