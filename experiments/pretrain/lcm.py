"""Distils the embedded model into few steps: a latent consistency model as a LoRA of its UNet."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Le, Len
from diffusers import LCMScheduler, StableDiffusionPipeline
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.utils import save_image

from checked import Count, Guidance, Name, Positive, dataclass
from experiments.data.emoji import check_corpus
from experiments.pretrain.denoiser import CaptionedLatents, Prompts, _Hidden
from experiments.pretrain.fitting import Pictures, adamw, check_output, fit, last_loss, report, saved
from experiments.pretrain.low_rank import LowRank
from rnri.models.sampling import sample
from rnri.models.schedule import Schedule

BUDGETS = (1, 2, 4, 8)  # steps of the samplers whose timesteps are drawn more often
SHOWN_STEPS = 2  # of the sample grids
SIGMA_DATA, TIME_SCALING = 0.5, 10.0  # of the boundary scalings, as in diffusers' LCMScheduler
HUBER = 1e-3  # where the pseudo-Huber loss goes from squared to absolute


class EncodedCaptions(Dataset):
    """Latents with the number of their caption; every distinct caption is encoded once.

    Attributes:
        states: what the text encoder says of each distinct caption, ``[captions, L, D]``.
    """

    @torch.no_grad()
    def __init__(self, data: CaptionedLatents, pipeline: StableDiffusionPipeline, batch_size: int = 256) -> None:
        self.data = data
        tokens, self.captions = torch.unique(data.tokens, dim=0, return_inverse=True)
        encoder = pipeline.text_encoder.eval()
        self.states = torch.cat([encoder(batch)[0] for batch in tokens.split(batch_size)])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data.latents[self.data.rows[index]], self.captions[index]


class Teacher:
    """Guided DDIM steps of the frozen model, from the corpus's noised latents.

    Args:
        pipeline: the model; its UNet is used without any LoRA.
        stride: timesteps a DDIM step goes down.
        strides: DDIM steps from a noisy latent to the one whose target is asked.
        guidance: the range from which each sample's guidance is drawn.
    """

    def __init__(
        self, pipeline: StableDiffusionPipeline, stride: int, strides: int, guidance: tuple[float, float]
    ) -> None:
        self.unet = pipeline.unet
        self.alpha_bar = pipeline.scheduler.alphas_cumprod.double()
        self.stride, self.strides, self.guidance = stride, strides, guidance
        self.empty = encode(pipeline, [""])

    def noised(self, z0: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = levels(self.alpha_bar, t)
        return alpha * z0 + sigma * torch.randn_like(z0)

    @torch.no_grad()
    def walk(self, z: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """``(z_s, s)`` after ``strides`` DDIM steps from ``z [B, 4, h, w]`` at ``t [B]``; none goes below 0."""
        low, high = self.guidance
        guidance = low + (high - low) * torch.rand(len(z), 1, 1, 1)
        for _ in range(self.strides):
            s = (t - self.stride).clamp(min=0)
            noise = self._guided(z, t, text, guidance)
            (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(self.alpha_bar, t), levels(self.alpha_bar, s)
            z, t = alpha_s * (z - sigma_t * noise) / alpha_t + sigma_s * noise, s
        return z, t

    def _guided(self, z: Tensor, t: Tensor, text: Tensor, guidance: Tensor) -> Tensor:
        both = torch.cat([self.empty.expand_as(text), text])
        noise = self.unet(torch.cat([z, z]), torch.cat([t, t]), both).sample.float()
        without, with_text = noise.chunk(2)
        return without + guidance * (with_text - without)


@torch.no_grad()
def encode(pipeline: StableDiffusionPipeline, captions: list[str]) -> Tensor:
    """``[B, L, D]``"""
    tokens = pipeline.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return pipeline.text_encoder.eval()(tokens)[0]


def levels(alpha_bar: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise level at timesteps ``t [B]``, each ``[B, 1, 1, 1]`` in single precision."""
    a = alpha_bar[t].view(-1, 1, 1, 1)
    return a.sqrt().float(), (1 - a).sqrt().float()


def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
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
    for steps in BUDGETS:
        scheduler.set_timesteps(steps)
        used += torch.isin(grid, scheduler.timesteps)
    return grid, 0.5 / len(grid) + 0.5 * used / used.sum()


class Pairs:
    """The teacher's latest walks, from which steps draw: a walk costs more than a step of the student.

    Args:
        capacity: walks kept; the oldest go first.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.kept: list[Tensor] | None = None

    def add(self, *walks: Tensor) -> None:
        kept = walks if self.kept is None else [torch.cat(pair) for pair in zip(self.kept, walks, strict=True)]
        self.kept = [tensor[-self.capacity :] for tensor in kept]

    def draw(self, rows: int) -> list[Tensor]:
        chosen = torch.randperm(len(self.kept[0]))[:rows]
        return [tensor[chosen] for tensor in self.kept]


class ConsistencyDistillation(LightningModule):
    """Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378) of a LoRA (arXiv 2311.05556).

    The student's estimate of the clean latent at ``t`` is drawn to its own moving average's estimate at ``s < t``,
    where the teacher's guided DDIM leads from the same latent; at ``s = 0`` that is the latent itself. Here a walk
    takes several DDIM steps, so that few targets lie between pure noise and the clean latent, and a walk is used
    for several steps.
    """

    def __init__(
        self,
        student: LowRank,
        teacher: Teacher,
        states: Tensor,
        pipeline: StableDiffusionPipeline,
        settings: PretrainLcm,
    ) -> None:
        super().__init__()
        self.student, self.target = student, deepcopy(student).requires_grad_(False)
        self.pipeline = _Hidden(pipeline)
        self.teacher, self.states, self.settings = teacher, states, settings
        self.grid = timesteps_drawn(build_lcm_scheduler(pipeline))
        self.pairs = Pairs(8 * settings.batch_size)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        z0, captions = batch
        if self.pairs.kept is None or index % self.settings.reuse == 0:
            timesteps, weights = self.grid
            t = timesteps[torch.multinomial(weights, len(z0), replacement=True)]
            z = self.teacher.noised(z0, t)
            self.pairs.add(z, t, *self.teacher.walk(z, t, self.states[captions]), captions)
        z_t, t, z_s, s, captions = self.pairs.draw(len(z0))
        text = self.states[captions]
        with torch.no_grad():
            target = self.consistency(self.target, z_s, s, text)
        error = self.consistency(self.student, z_t, t, text) - target
        loss = ((error**2 + HUBER**2).sqrt() - HUBER).mean()
        self.log_dict({"loss": loss, "squared": error.square().mean()}, prog_bar=True)
        return loss

    def consistency(self, network: LowRank, z: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The clean latent that ``network`` sees behind ``z`` at ``t``."""
        noise = network.run(network.weights(), z, t, text)
        alpha, sigma = levels(self.teacher.alpha_bar, t)
        skip, out = boundary(t)
        return skip * z + out * (z - sigma * noise) / alpha

    def on_train_batch_end(self, *_: object) -> None:
        self.target.follow(self.student, self.settings.target_decay)

    def configure_optimizers(self) -> dict:
        return adamw(self.student, self.settings.lr, self.trainer.max_steps, warmup=50, decay_from=0.3)

    @torch.no_grad()
    def validation_step(self, prompts: list[str], _: int) -> None:
        pipeline = self.pipeline.value
        seeds = [torch.randn(self.pairs.kept[0].shape[1:], generator=torch.Generator().manual_seed(k))
                 for k in range(len(prompts))]  # fmt: skip
        z = self.sample(torch.stack(seeds), encode(pipeline, list(prompts)))
        images = pipeline.vae.decode(z / pipeline.vae.config.scaling_factor).sample
        folder = Path(self.trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        save_image((images / 2 + 0.5).clamp(0, 1), folder / f"step{self.global_step:06d}.png", nrow=8)

    def sample(self, z: Tensor, text: Tensor) -> Tensor:
        """The clean latent after the deterministic steps of the sample grids, without guidance."""
        schedule = Schedule.from_scheduler(build_lcm_scheduler(self.pipeline.value), SHOWN_STEPS)
        weights = self.student.weights()
        return sample(z, lambda z, t: self.student.run(weights, z.float(), torch.full((len(z),), t), text), schedule)


@dataclass
class PretrainLcm:
    """The task behind ``experiment=pretrain_lcm``.

    Args:
        corpus: folder of the caption corpus.
        model: folder of the pipeline to distil, a Stable Diffusion model that predicts noise.
        output: folder of the LoRA and of its LCMScheduler's config.
        pictures: of the corpus, encoded before the training; null: all.
        batch_size, lr: of the training.
        rank: of the LoRA.
        stride, strides: timesteps of a DDIM step of the teacher, and such steps between a latent and its target's.
        guidance: the range from which the teacher's is drawn.
        reuse: steps that a walk of the teacher serves, on average.
        target_decay: of the moving average that makes the targets.
        prompts: of the sample grids.
        start: a saved LoRA to go on from.
    """

    corpus: Name | None
    model: Name
    output: Name
    pictures: Count | None
    batch_size: Count
    lr: Positive
    rank: Count
    stride: Count
    strides: Count
    guidance: Annotated[Sequence[Guidance], Len(2, 2)]
    reuse: Count
    target_decay: Annotated[float, Ge(0), Le(1)]
    prompts: Annotated[Sequence[Name], Len(1)]
    start: Name | None = None

    def prepare(self, trainer: Trainer) -> None:
        check_corpus(self.corpus)
        check_output(self.output)
        if self.guidance[0] > self.guidance[1]:
            raise ValueError(f"task.guidance={list(self.guidance)} is no range: name the lower end first.")
        self.pipeline = saved(StableDiffusionPipeline, "task.model", self.model, safety_checker=None)
        self.student = LowRank(self.pipeline.unet, self.rank)

    def run(self, trainer: Trainer) -> None:
        pipeline = self.pipeline
        for part in (pipeline.unet, pipeline.vae):
            part.eval().to(memory_format=torch.channels_last)  # a quarter of the time of a step on a CPU
        cache = Path(trainer.default_root_dir) / "latents.safetensors"
        latents = CaptionedLatents(self.corpus, pipeline.vae, pipeline.tokenizer, cache, self.pictures)
        data = EncodedCaptions(latents, pipeline)
        teacher = Teacher(pipeline, self.stride, self.strides, tuple(self.guidance))
        module = ConsistencyDistillation(self.student, teacher, data.states, pipeline, self)
        fit(trainer, module, Pictures(data, Prompts(list(self.prompts)), self.batch_size))
        save_lora(self.student, pipeline, self.output)
        report(trainer, {"steps": trainer.global_step, **last_loss(trainer)})


def save_lora(student: LowRank, pipeline: StableDiffusionPipeline, folder: str | Path) -> None:
    """What ``pipeline.load_lora_weights(folder)`` reads, and the scheduler to use with it."""
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=student.layers_of_peft())
    build_lcm_scheduler(pipeline).save_pretrained(folder)
