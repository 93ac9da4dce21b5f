"""Distils the embedded model into few steps: a latent consistency model as a LoRA of its UNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Len, MinLen
from diffusers import LCMScheduler, StableDiffusionPipeline
from lightning.pytorch import LightningModule, Trainer
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from experiments.data.emoji import check_corpus
from experiments.pretrain.denoiser import CaptionedLatents, Prompts
from experiments.pretrain.distillation import EncodedCaptions, ReplayBuffer, text_states
from experiments.pretrain.low_rank import LowRank
from experiments.pretrain.training import (
    ImageDataModule,
    Unregistered,
    adamw,
    check_output,
    final_loss,
    fit,
    load_pretrained,
    report,
    save_grid,
)
from experiments.pretrain.validation_accuracy import AccuracyProbe
from rnri.models.sampling import sample
from rnri.models.schedule import Schedule
from rnri.validation import GuidanceScale, NonEmptyStr, UnitInterval, dataclass

SAMPLER_STEPS = (1, 2, 4, 8)  # steps of the samplers whose timesteps are drawn more often
GRID_STEPS = 2  # of the sample grids
PROBE_STEPS, DDIM_GUIDANCE = (1, 2, 4), 3.0
SIGMA_DATA, TIME_SCALING = 0.5, 10.0  # of the boundary scalings, as in diffusers' LCMScheduler
PSEUDO_HUBER_C = 1e-3  # where the pseudo-Huber loss goes from squared to absolute

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Noise ``[B, 4, h, w]`` in a latent at timesteps ``[B]``, told text states ``[B, L, D]``."""


class Teacher:
    """Guided DDIM steps of the frozen model.

    Args:
        network: its UNet, without any LoRA.
        alpha_bar: float64, by timestep.
        empty: text states of the empty caption, ``[1, L, D]``.
        stride: timesteps a DDIM step goes down.
        strides: DDIM steps from a noisy latent to the one whose target is asked.
        guidance: the range from which each sample's guidance is drawn.
    """

    def __init__(
        self, network: Network, alpha_bar: Tensor, empty: Tensor, stride: int, strides: int, guidance: Sequence[float]
    ) -> None:
        self.network, self.alpha_bar, self.empty = network, alpha_bar, empty
        self.stride, self.strides, self.guidance = stride, strides, guidance

    def noised(self, z0: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(self.alpha_bar, t)
        return alpha * z0 + sigma * torch.randn_like(z0)

    @torch.no_grad()
    def walk(self, z: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """``(z_s, s)`` after ``strides`` DDIM steps from ``z [B, 4, h, w]`` at ``t [B]``; none goes below 0."""
        low, high = self.guidance
        guidance = low + (high - low) * torch.rand(len(z), 1, 1, 1)
        for _ in range(self.strides):
            s = (t - self.stride).clamp(min=0)
            noise = guided(self.network, z, t, text, self.empty, guidance)
            (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(self.alpha_bar, t), alpha_sigma(self.alpha_bar, s)
            z, t = alpha_s * (z - sigma_t * noise) / alpha_t + sigma_s * noise, s
        return z, t


def guided(network: Network, z: Tensor, t: Tensor, text: Tensor, empty: Tensor, guidance: Tensor | float) -> Tensor:
    """Classifier-free guidance; at the number 1 one evaluation instead of two."""
    if isinstance(guidance, float) and guidance == 1:
        return network(z, t, text)
    both = network(torch.cat([z, z]), torch.cat([t, t]), torch.cat([empty.expand_as(text), text]))
    without, told = both.chunk(2)
    return without + guidance * (told - without)


def alpha_sigma(alpha_bar: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise level at timesteps ``t [B]``, each ``[B, 1, 1, 1]`` in single precision."""
    a = alpha_bar[t].view(-1, 1, 1, 1)
    return a.sqrt().float(), (1 - a).sqrt().float()


def boundary_scalings(t: Tensor) -> tuple[Tensor, Tensor]:
    """``(c_skip, c_out)`` at ``t [B]``, ``[B, 1, 1, 1]`` each: at t = 0 the consistency function is the identity."""
    scaled = t.view(-1, 1, 1, 1) * TIME_SCALING
    return SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / (scaled**2 + SIGMA_DATA**2).sqrt()


def build_lcm_scheduler(pipeline: StableDiffusionPipeline) -> LCMScheduler:
    """On the noise levels of the pipeline's own scheduler."""
    config = pipeline.scheduler.config
    return LCMScheduler(
        num_train_timesteps=config.num_train_timesteps, beta_start=config.beta_start, beta_end=config.beta_end,
        beta_schedule=config.beta_schedule, trained_betas=config.trained_betas, clip_sample=False,
        set_alpha_to_one=True, prediction_type=config.prediction_type,
    )  # fmt: skip


def timesteps_drawn(scheduler: LCMScheduler) -> tuple[Tensor, Tensor]:
    """Timesteps of the few-step samplers' grid and their probabilities.

    Half of the mass lies evenly on the grid, half where samplers of 1, 2, 4 and 8 steps run the network, as often as
    they do: what is learnt elsewhere serves those through their targets only.
    """
    spacing = scheduler.config.num_train_timesteps // scheduler.config.original_inference_steps
    grid = torch.arange(spacing, scheduler.config.num_train_timesteps + 1, spacing) - 1
    used = torch.zeros(len(grid))
    for steps in SAMPLER_STEPS:
        scheduler.set_timesteps(steps)
        used += torch.isin(grid, scheduler.timesteps)
    return grid, 0.5 / len(grid) + 0.5 * used / used.sum()


class ConsistencyDistillation(LightningModule):
    """Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378) of a LoRA (arXiv 2311.05556).

    The student's estimate of the clean latent at ``t`` is drawn to its own moving average's estimate at ``s < t``,
    where the teacher's guided DDIM leads from the same latent; at ``s = 0`` that is the latent itself. Here a walk
    takes several DDIM steps, so that few targets lie between pure noise and the clean latent, and a walk is used
    for several steps.
    """

    def __init__(
        self, student: LowRank, teacher: Teacher, states: Tensor, pipeline: StableDiffusionPipeline,
        settings: PretrainLcm,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self.target = student, deepcopy(student).requires_grad_(False)
        self.pipeline = Unregistered(pipeline)
        self.teacher, self.states, self.settings = teacher, states, settings
        self.grid = timesteps_drawn(build_lcm_scheduler(pipeline))
        self.replay = ReplayBuffer(8 * settings.batch_size)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        z0, captions = batch
        if not self.replay.rows or index % self.settings.reuse == 0:
            timesteps, weights = self.grid
            t = timesteps[torch.multinomial(weights, len(z0), replacement=True)]
            z = self.teacher.noised(z0, t)
            self.replay.add(z, t, *self.teacher.walk(z, t, self.states[captions]), captions)
        z_t, t, z_s, s, captions = self.replay.draw(len(z0))
        text = self.states[captions]
        with torch.no_grad():
            target = self.clean(self.target, z_s, s, text)
        error = self.clean(self.student, z_t, t, text) - target
        loss = ((error**2 + PSEUDO_HUBER_C**2).sqrt() - PSEUDO_HUBER_C).mean()
        self.log_dict({"loss": loss, "squared": error.square().mean()}, prog_bar=True)
        return loss

    def clean(self, student: LowRank, z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The consistency function: the clean latent that ``student`` sees behind ``z`` at ``t``."""
        noise = student.run(student.weights(), z, t, text)
        alpha, sigma = alpha_sigma(self.teacher.alpha_bar, t)
        skip, out = boundary_scalings(t)
        return skip * z + out * (z - sigma * noise) / alpha

    def on_train_batch_end(self, *_: object) -> None:
        self.target.follow(self.student, self.settings.target_decay)

    @torch.no_grad()
    def validation_step(self, prompts: list[str], _: int) -> None:
        pipeline = self.pipeline.value
        shape = (pipeline.unet.config.in_channels, *[pipeline.unet.config.sample_size] * 2)
        seeds = [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in range(len(prompts))]
        network = partial(self.student.run, self.student.weights())
        save_grid(sample_images(pipeline, network, list(prompts), torch.stack(seeds), GRID_STEPS, 1.0), self.trainer)

    def configure_optimizers(self) -> dict:
        return adamw(self.student, self.settings.lr, self.trainer.max_steps, warmup=50, decay_from=0.3)


@torch.no_grad()
def sample_images(
    pipeline: StableDiffusionPipeline, network: Network, prompts: list[str], seeds: Tensor, steps: int, guidance: float
) -> Tensor:
    """Images ``[B, 3, H, W]`` in [0, 1] after deterministic DDIM steps on the LCM scheduler's timesteps."""
    schedule = Schedule.from_scheduler(build_lcm_scheduler(pipeline), steps)
    text, empty = text_states(pipeline, prompts), text_states(pipeline, [""])

    def predictor(z: Tensor, t: int) -> Tensor:
        return guided(network, z.float(), torch.full((len(z),), t), text, empty, guidance)

    z = sample(seeds, predictor, schedule) / pipeline.vae.config.scaling_factor
    return (pipeline.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)


@dataclass
class PretrainLcm:
    """The task behind ``experiment=pretrain_lcm``.

    Args:
        corpus: folder of the caption corpus.
        model: folder of the pipeline to distil, a Stable Diffusion model that predicts noise.
        output: folder of the LoRA and of its LCMScheduler's config.
        max_images: of the corpus, encoded before the training; null: all.
        batch_size, lr: of the training.
        rank: of the LoRA.
        stride, strides: timesteps of a DDIM step of the teacher, and such steps between a latent and its target's.
        guidance: the lowest and the highest that the teacher's is drawn from.
        reuse: steps that a walk of the teacher serves, on average.
        target_decay: of the moving average that makes the targets.
        prompts: of the sample grids.
        accuracy_probe: of the samples in the end; null: none.
        probe_guidance: the student's for those samples.
        init_from: folder of a saved LoRA to go on from.
    """

    corpus: NonEmptyStr | None
    model: NonEmptyStr
    output: NonEmptyStr
    max_images: PositiveInt | None
    batch_size: PositiveInt
    lr: NonNegativeFloat  # 0 leaves the weights as they are
    rank: PositiveInt
    stride: PositiveInt
    strides: PositiveInt
    guidance: Annotated[
        Sequence[GuidanceScale],
        Len(2, 2),
        Field(description="a list of two numbers of at least 1, the lower one first"),
    ]
    reuse: PositiveInt
    target_decay: UnitInterval
    prompts: Annotated[Sequence[NonEmptyStr], MinLen(1)]
    accuracy_probe: AccuracyProbe | None
    probe_guidance: Annotated[Sequence[GuidanceScale], MinLen(1)]
    init_from: NonEmptyStr | None = None

    def prepare(self, trainer: Trainer) -> None:
        check_corpus(self.corpus)
        check_output(self.output)
        if self.guidance[0] > self.guidance[1]:
            raise ValueError(f"task.guidance={list(self.guidance)} is no range: give the lower end first.")
        self.pipeline = load_pretrained(StableDiffusionPipeline, "task.model", self.model, safety_checker=None)
        if self.pipeline.scheduler.config.prediction_type != "epsilon":
            raise ValueError(f"task.model={self.model!r} does not predict noise: name a model that does.")
        self.student = LowRank(self.pipeline.unet, self.rank)
        if self.init_from:
            self.student.load(self.init_from)
        if self.accuracy_probe:
            self.accuracy_probe.prepare()

    def run(self, trainer: Trainer) -> None:
        pipeline = self.pipeline
        for part in (pipeline.unet, pipeline.vae):
            part.eval().to(memory_format=torch.channels_last)  # a quarter less time a step on a CPU
        cache = Path(trainer.default_root_dir) / "latents.safetensors"
        data = EncodedCaptions(
            CaptionedLatents(self.corpus, pipeline.vae, pipeline.tokenizer, cache, self.max_images)
        )  # fmt: skip
        (states,) = data.encoded(lambda captions: (text_states(pipeline, captions),))
        teacher = Teacher(
            self._plain,
            pipeline.scheduler.alphas_cumprod.double(),
            states[:1],
            self.stride,
            self.strides,
            self.guidance,
        )
        module = ConsistencyDistillation(self.student, teacher, states, pipeline, self)
        fit(trainer, module, ImageDataModule(data, Prompts(list(self.prompts)), self.batch_size))
        save_lora(self.student, pipeline, self.output)
        report(trainer, {"steps": trainer.global_step, **final_loss(trainer), "rows": self.rows()})

    def _plain(self, z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.pipeline.unet(z, t, text).sample.float()

    @torch.no_grad()
    def rows(self) -> list[dict]:
        """The judge's verdict on the LoRA, and on the plain model beside it, at few deterministic steps."""
        if not self.accuracy_probe:
            return []
        student = partial(self.student.run, self.student.weights())
        samplers = [("lcm", student, guidance) for guidance in self.probe_guidance]
        return [
            self._row(method, network, steps, float(guidance))
            for method, network, guidance in [*samplers, ("ddim", self._plain, DDIM_GUIDANCE)]
            for steps in PROBE_STEPS
        ]

    def _row(self, method: str, network: Network, steps: int, guidance: float) -> dict:
        config = self.pipeline.unet.config

        def draw(prompts: list[str], seeds: Tensor) -> Tensor:
            return sample_images(self.pipeline, network, prompts, seeds, steps, guidance)

        shape = (config.in_channels, config.sample_size, config.sample_size)
        return self.accuracy_probe.row(draw, shape, method=method, steps=steps, guidance=guidance)


def save_lora(student: LowRank, pipeline: StableDiffusionPipeline, folder: str | Path) -> None:
    """What ``pipeline.load_lora_weights(folder)`` reads, and the scheduler to use with it."""
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=student.peft_state_dict())
    build_lcm_scheduler(pipeline).save_pretrained(folder)
