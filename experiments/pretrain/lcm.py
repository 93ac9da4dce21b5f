"""Distillation of the emoji diffusion model to a latent consistency model (LCM), stored as a LoRA of its U-Net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Len
from diffusers import LCMScheduler, StableDiffusionPipeline
from lightning.pytorch import LightningModule, Trainer
from pydantic import Field, PositiveInt
from torch import Tensor

from experiments.pretrain.distillation import DistillationTask, ReplayBuffer, text_states
from experiments.pretrain.low_rank import LowRank
from experiments.pretrain.training import Unregistered, adamw, final_loss, fit, report, sample_seeds, save_grid
from rnri.models.sampling import sample
from rnri.models.schedule import Schedule
from rnri.validation import GuidanceScale, UnitInterval, dataclass

SAMPLER_STEPS = (
    1,
    2,
    4,
    8,
)  # numbers of sampling steps whose timesteps are drawn more often in the training
GRID_STEPS = 2  # number of sampling steps of the sample images during training
PROBE_STEPS = (1, 2, 4)  # numbers of sampling steps at which the accuracy is measured
DDIM_GUIDANCE = 3.0  # guidance scale of the base model when its accuracy is measured
SIGMA_DATA, TIME_SCALING = 0.5, 10.0  # parameters of the boundary scalings, as in the LCMScheduler of diffusers
PSEUDO_HUBER_C = 1e-3  # error below which the pseudo-Huber loss is about quadratic and above which it is about linear

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function that predicts noise from latents ``[B, 4, h, w]``, timesteps ``[B]`` and text states ``[B, L, D]``."""


class DDIMTeacher:
    """The teacher of the distillation: DDIM steps of the frozen base model with classifier-free guidance.

    Args:
        network: U-Net of the base model, without the LoRA.
        alpha_bar: ``alphas_cumprod`` of the scheduler, one value per timestep, float64 ``[T]``.
        empty: hidden states of the text encoder ("text states") for the empty caption, ``[1, L, D]``.
        stride: number of timesteps per DDIM step.
        strides: number of DDIM steps from a noisy latent to the latent from which the training target is computed.
        guidance: lowest and highest guidance scale, between which the guidance scale of each sample is drawn uniformly.
    """

    def __init__(
        self,
        network: Network,
        alpha_bar: Tensor,
        empty: Tensor,
        *,
        stride: int,
        strides: int,
        guidance: Sequence[float],
    ) -> None:
        self.network = network
        self.alpha_bar = alpha_bar
        self.empty = empty
        self.stride = stride
        self.strides = strides
        self.guidance = guidance

    def add_noise(self, z0: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(self.alpha_bar, t)
        return alpha * z0 + sigma * torch.randn_like(z0)

    @torch.no_grad()
    def denoise(self, z: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents ``z_s [B, 4, h, w]`` and the timesteps ``s [B]`` after ``strides`` DDIM steps.

        A timestep that would be negative is replaced by 0.

        Args:
            z: noisy latents, ``[B, 4, h, w]``.
            t: timesteps of the noisy latents, ``[B]``.
            text: hidden states of the text encoder for the captions, ``[B, L, D]``.
        """
        low, high = self.guidance
        guidance = low + (high - low) * torch.rand(len(z), 1, 1, 1)
        for _ in range(self.strides):
            s = (t - self.stride).clamp(min=0)
            noise = guided(self.network, z, t, text, empty=self.empty, guidance=guidance)
            alpha_t, sigma_t = alpha_sigma(self.alpha_bar, t)
            alpha_s, sigma_s = alpha_sigma(self.alpha_bar, s)
            z = alpha_s * (z - sigma_t * noise) / alpha_t + sigma_s * noise
            t = s
        return z, t


def guided(network: Network, z: Tensor, t: Tensor, text: Tensor, *, empty: Tensor, guidance: Tensor | float) -> Tensor:
    """Return the predicted noise with classifier-free guidance, ``[B, 4, h, w]``.

    If the guidance scale is the float 1.0, the network is evaluated once instead of twice.
    """
    if isinstance(guidance, float) and guidance == 1:
        return network(z, t, text)
    both = network(torch.cat([z, z]), torch.cat([t, t]), torch.cat([empty.expand_as(text), text]))
    unconditional, conditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def alpha_sigma(alpha_bar: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``sqrt(alpha_bar)`` and ``sqrt(1 - alpha_bar)`` at timesteps ``t [B]``, each float32 ``[B, 1, 1, 1]``."""
    a = alpha_bar[t].view(-1, 1, 1, 1)
    return a.sqrt().float(), (1 - a).sqrt().float()


def boundary_scalings(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors ``c_skip`` and ``c_out`` of a consistency model at timesteps ``t [B]``, each ``[B, 1, 1, 1]``.

    The output of a consistency model is ``c_skip z + c_out x0`` for the latent ``z`` and the predicted clean latent
    ``x0``. At t = 0, the output is equal to ``z``.
    """
    scaled = t.view(-1, 1, 1, 1) * TIME_SCALING
    return SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / (scaled**2 + SIGMA_DATA**2).sqrt()


def build_lcm_scheduler(pipeline: StableDiffusionPipeline) -> LCMScheduler:
    """Return an LCMScheduler with the same noise levels as the scheduler of ``pipeline``."""
    config = pipeline.scheduler.config
    return LCMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=config.beta_schedule,
        trained_betas=config.trained_betas,
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type=config.prediction_type,
    )


def timestep_distribution(scheduler: LCMScheduler) -> tuple[Tensor, Tensor]:
    """Return the timesteps at which the student is trained, and their probabilities.

    The timesteps are the grid from which an LCM scheduler chooses the timesteps of a sampler. Half of the probability
    is distributed uniformly on the grid. The other half is distributed on the timesteps of the samplers with 1, 2, 4
    and 8 steps; the probability of a timestep in this half is proportional to the number of samplers that use the
    timestep. All other timesteps are less important, because they affect the samplers only through the training
    targets.
    """
    spacing = scheduler.config.num_train_timesteps // scheduler.config.original_inference_steps
    grid = torch.arange(spacing, scheduler.config.num_train_timesteps + 1, spacing) - 1
    used = torch.zeros(len(grid))
    for steps in SAMPLER_STEPS:
        scheduler.set_timesteps(steps)
        used += torch.isin(grid, scheduler.timesteps)
    return grid, 0.5 / len(grid) + 0.5 * used / used.sum()


class ConsistencyDistillation(LightningModule):
    """Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378) with a LoRA (arXiv 2311.05556) as student.

    The teacher moves a noisy latent from timestep ``t`` to a timestep ``s < t`` by several guided DDIM steps. The
    training target is the clean latent that the exponential moving average of the student predicts from the latent at
    timestep ``s``. If ``s`` is 0, the training target is the latent at timestep 0. The loss compares the training
    target with the clean latent that the student predicts from the latent at ``t``. Each latent of the teacher is used
    in several training steps.

    Args:
        student: the LoRA to train.
        teacher: the teacher, which computes the latents at timestep ``s``.
        states: hidden states of the text encoder for every caption, ``[captions, L, D]``.
        pipeline: the base model.
        settings: settings of the training task.
    """

    def __init__(
        self,
        student: LowRank,
        teacher: DDIMTeacher,
        states: Tensor,
        *,
        pipeline: StableDiffusionPipeline,
        settings: PretrainLcm,
    ) -> None:
        super().__init__()
        self.student = student
        self.target = deepcopy(student).requires_grad_(False)
        self.pipeline = Unregistered(pipeline)
        self.teacher = teacher
        self.states = states
        self.settings = settings
        self.grid = timestep_distribution(build_lcm_scheduler(pipeline))
        self.replay = ReplayBuffer(8 * settings.batch_size)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        z0, captions = batch
        if not self.replay.rows or index % self.settings.reuse == 0:
            timesteps, weights = self.grid
            t = timesteps[torch.multinomial(weights, len(z0), replacement=True)]
            z = self.teacher.add_noise(z0, t)
            self.replay.add(z, t, *self.teacher.denoise(z, t, self.states[captions]), captions)
        z_t, t, z_s, s, captions = self.replay.sample(len(z0))
        text = self.states[captions]
        with torch.no_grad():
            target = self.clean(self.target, z_s, s, text)
        error = self.clean(self.student, z_t, t, text) - target
        loss = ((error**2 + PSEUDO_HUBER_C**2).sqrt() - PSEUDO_HUBER_C).mean()
        self.log_dict({"loss": loss, "squared": error.square().mean()}, prog_bar=True)
        return loss

    def clean(self, student: LowRank, z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Return the clean latents ``[B, 4, h, w]`` that ``student`` predicts from latents ``z`` at timesteps ``t``."""
        noise = student.run(student.weights(), z, t, text)
        alpha, sigma = alpha_sigma(self.teacher.alpha_bar, t)
        skip, out = boundary_scalings(t)
        return skip * z + out * (z - sigma * noise) / alpha

    def on_train_batch_end(self, *_: object) -> None:
        self.target.update_average(self.student, self.settings.target_decay)

    @torch.no_grad()
    def validation_step(self, prompts: list[str], _: int) -> None:
        pipeline = self.pipeline.value
        seeds = sample_seeds(len(prompts), latent_shape(pipeline))
        network = partial(self.student.run, self.student.weights())
        images = sample_images(pipeline, network, list(prompts), seeds, steps=GRID_STEPS, guidance=1.0)
        save_grid(images, self.trainer)

    def configure_optimizers(self) -> dict:
        return adamw(self.student, self.settings.lr, self.trainer.max_steps, warmup=50, decay_from=0.3)


def latent_shape(pipeline: StableDiffusionPipeline) -> tuple[int, int, int]:
    """Return the shape ``(C, h, w)`` of the latents of ``pipeline``."""
    config = pipeline.unet.config
    return config.in_channels, config.sample_size, config.sample_size


@torch.no_grad()
def sample_images(
    pipeline: StableDiffusionPipeline,
    network: Network,
    prompts: list[str],
    seeds: Tensor,
    *,
    steps: int,
    guidance: float,
) -> Tensor:
    """Return images ``[B, 3, H, W]`` in [0, 1], sampled by DDIM steps without noise at the timesteps of LCMScheduler.

    Args:
        pipeline: pipeline whose text encoder, VAE and scheduler are used.
        network: network that predicts the noise.
        prompts: one prompt per image.
        seeds: initial noise latents, ``[B, 4, h, w]``.
        steps: number of sampling steps.
        guidance: guidance scale.
    """
    schedule = Schedule.from_scheduler(build_lcm_scheduler(pipeline), steps)
    text = text_states(pipeline, prompts)
    empty = text_states(pipeline, [""])

    def predictor(z: Tensor, t: int) -> Tensor:
        return guided(network, z.float(), torch.full((len(z),), t), text, empty=empty, guidance=guidance)

    z = sample(seeds, predictor, schedule) / pipeline.vae.config.scaling_factor
    return (pipeline.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)


@dataclass
class PretrainLcm(DistillationTask):
    """The task of ``experiment=pretrain_lcm``: distills the pipeline in the folder ``model`` into an LCM-LoRA.

    The U-Net of ``model`` must predict noise. The LoRA and the config of its LCMScheduler are saved to ``output``.

    Args:
        rank: rank of the LoRA.
        stride: number of timesteps per DDIM step of the teacher.
        strides: number of DDIM steps of the teacher per training target.
        guidance: lowest and highest guidance scale of the teacher.
        target_decay: decay of the exponential moving average of the student, which predicts the training targets.
    """

    rank: PositiveInt
    stride: PositiveInt
    strides: PositiveInt
    guidance: Annotated[Sequence[GuidanceScale], Len(2, 2), Field(description="a list [low, high] of numbers >= 1")]
    target_decay: UnitInterval

    def prepare(self, trainer: Trainer) -> None:
        if self.guidance[0] > self.guidance[1]:
            raise ValueError(
                f"task.guidance={list(self.guidance)} is not a range [low, high]: write the lower guidance scale first."
            )
        self.pipeline = self.load_model()
        if self.pipeline.scheduler.config.prediction_type != "epsilon":
            raise ValueError(
                f"task.model={self.model!r} does not predict noise: set it to a model with prediction_type=epsilon."
            )
        self.student = LowRank(self.pipeline.unet, self.rank)
        if self.init_from:
            self.student.load(self.init_from)
        if self.accuracy_probe:
            self.accuracy_probe.prepare()

    def run(self, trainer: Trainer) -> None:
        pipeline = self.pipeline
        for part in (pipeline.unet, pipeline.vae):
            part.eval().to(memory_format=torch.channels_last)  # training steps take 25 % less time on a CPU
        data = self.encode_corpus(pipeline, trainer)
        (states,) = data.encode(lambda captions: (text_states(pipeline, captions),))
        teacher = DDIMTeacher(
            self._base_network,
            pipeline.scheduler.alphas_cumprod.double(),
            states[:1],
            stride=self.stride,
            strides=self.strides,
            guidance=self.guidance,
        )
        module = ConsistencyDistillation(self.student, teacher, states, pipeline=pipeline, settings=self)
        fit(trainer, module, self.data_module(data))
        save_lora(self.student, pipeline, self.output)
        report(trainer, {"steps": trainer.global_step, **final_loss(trainer), "rows": self.rows()})

    def _base_network(self, z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.pipeline.unet(z, t, text).sample.float()

    @torch.no_grad()
    def rows(self) -> list[dict]:
        """Return the accuracy of the evaluation classifier on images from the LoRA and from the base model.

        The returned list has one row per model, guidance scale and number of sampling steps.
        """
        if not self.accuracy_probe:
            return []
        student = partial(self.student.run, self.student.weights())
        samplers = [("lcm", student, guidance) for guidance in self.probe_guidance]
        samplers.append(("ddim", self._base_network, DDIM_GUIDANCE))
        return [
            self._row(method, network, steps, float(guidance))
            for method, network, guidance in samplers
            for steps in PROBE_STEPS
        ]

    def _row(self, method: str, network: Network, steps: int, guidance: float) -> dict:
        def sampler(prompts: list[str], seeds: Tensor) -> Tensor:
            return sample_images(self.pipeline, network, prompts, seeds, steps=steps, guidance=guidance)

        shape = latent_shape(self.pipeline)
        return self.accuracy_probe.row(sampler, shape, method=method, steps=steps, guidance=guidance)


def save_lora(student: LowRank, pipeline: StableDiffusionPipeline, folder: str | Path) -> None:
    """Save the LoRA in the format of ``pipeline.load_lora_weights(folder)``, and the config of its LCMScheduler."""
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=student.peft_state_dict())
    build_lcm_scheduler(pipeline).save_pretrained(folder)
