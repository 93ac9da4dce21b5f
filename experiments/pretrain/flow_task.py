"""Trains the embedded flow-matching model: a Stable Diffusion 3 transformer in the latents of the embedded VAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Le, MinLen
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from lightning.pytorch import LightningModule, Trainer
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data.emoji import check_corpus
from experiments.pretrain.denoiser import CaptionedLatents, Prompts
from experiments.pretrain.distillation import UNCONDITIONAL_INDEX, EncodedCaptions, ReplayBuffer, text_states
from experiments.pretrain.flow_distillation import OutputHook, Teacher, data_targets, hint_channels
from experiments.pretrain.flow_model import (
    T5_TOKENS,
    WITHOUT_T5,
    MergedPaddingAttention,
    Velocity,
    build_text_encoder,
    build_transformer,
    clip_states,
    latent_shape,
    processor,
    sample_images,
    save_pipeline,
    standardize,
)
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
from rnri.validation import GuidanceScale, NonEmptyStr, UnitInterval, dataclass

SAMPLE_STEPS = 20
SAMPLE_GUIDANCE = 6.0
FEATURE_LOSS_WEIGHT = 0.5


class Flow(LightningModule):
    """Rectified flow: squared error of the velocity, at noise levels drawn from a logit-normal distribution.

    With a teacher, a linear readout of the last block but one is drawn to the teacher's features of the same place as
    well (hints, Romero et al. 2015, arXiv 1412.6550): a target of many numbers a token instead of sixteen.
    """

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        velocity: Velocity,
        targets: Callable,
        channels: int,
        settings: PretrainFlow,
    ) -> None:
        super().__init__()
        self.transformer = pipeline.transformer.train()
        self.pipeline, self.velocity, self.targets, self.settings = Unregistered(pipeline), velocity, targets, settings
        self.kept = ReplayBuffer(8 * settings.batch_size)
        self.readout = nn.Linear(settings.width, channels) if channels else None
        self.hidden = OutputHook(self.transformer.transformer_blocks[-2]) if channels else None

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        z0, captions = batch
        if not self.kept.rows or index % self.settings.reuse == 0:
            captions = torch.where(torch.rand(len(z0)) < self.settings.drop_caption, UNCONDITIONAL_INDEX, captions)
            sigma = torch.sigmoid(self.settings.logit_mean + self.settings.logit_std * torch.randn(len(z0)))
            self.kept.add(*self.targets(z0, sigma, captions), captions)
        x, sigma, target, features, captions = self.kept.draw(len(z0))
        zeros = torch.where(torch.rand(len(x)) < 0.5, 0, T5_TOKENS)
        velocity = self.velocity(x, sigma, captions, zeros)
        loss = error = F.mse_loss(velocity, target)
        if self.readout:
            hint = F.mse_loss(self.readout(self.hidden.take()[1]), features)
            self.log("hint", hint, prog_bar=True)
            loss = error + FEATURE_LOSS_WEIGHT * hint
        self.log_dict({"loss": loss, "error": error}, prog_bar=True)
        return loss

    @torch.no_grad()
    def validation_step(self, prompts: list[str], _: int) -> None:
        shape = latent_shape(self.pipeline.value)
        seeds = [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in range(len(prompts))]
        images = sample_images(self.pipeline.value, list(prompts), torch.stack(seeds), SAMPLE_STEPS, SAMPLE_GUIDANCE)
        save_grid(images, self.trainer)

    def configure_optimizers(self) -> dict:
        return adamw(self, self.settings.lr, self.trainer.max_steps, warmup=200, decay_from=self.settings.decay_from)


@dataclass
class PretrainFlow:
    """The task behind ``experiment=pretrain_flow``.

    Args:
        corpus: folder of the caption corpus.
        model: folder of the Stable Diffusion pipeline that gives VAE, tokenizer and text encoder.
        teacher: folder of the one that gives the targets; null: the data give them.
        hint_layer: the teacher's layer whose features the transformer is to have as well.
        output: folder of the pipeline.
        max_images: of the corpus, encoded before the training; null: all.
        batch_size, lr, decay_from: of the training.
        drop_caption: share of empty captions.
        logit_mean, logit_std: of the normal distribution of sigma's logit.
        reuse: steps that a noised latent with its target serves, on average.
        width, layers, heads: of the transformer.
        shift: of the sampler's noise levels.
        prompts: of the sample grids.
        accuracy_probe: of the samples in the end; null: none.
        probe_guidance: of those samples.
        init_from: a saved pipeline to go on from.
    """

    corpus: NonEmptyStr | None
    model: NonEmptyStr
    teacher: NonEmptyStr | None
    hint_layer: NonEmptyStr
    output: NonEmptyStr
    max_images: PositiveInt | None
    batch_size: PositiveInt
    lr: NonNegativeFloat  # 0 leaves the weights as they are
    decay_from: UnitInterval
    drop_caption: UnitInterval
    logit_mean: Annotated[float, Ge(-10), Le(10)]
    logit_std: PositiveFloat
    reuse: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    shift: PositiveFloat
    prompts: Annotated[Sequence[NonEmptyStr], MinLen(1)]
    accuracy_probe: AccuracyProbe | None
    probe_guidance: Annotated[Sequence[GuidanceScale], MinLen(1)]
    init_from: NonEmptyStr | None = None

    def prepare(self, trainer: Trainer) -> None:
        check_corpus(self.corpus)
        check_output(self.output)
        if self.width % self.heads:
            raise ValueError(f"task.width={self.width} is no multiple of task.heads={self.heads}: choose one.")
        source = load_pretrained(StableDiffusionPipeline, "task.model", self.model, safety_checker=None)
        self.pipeline = self.build(source)
        self.teacher_pipeline = None
        if self.teacher:
            self.teacher_pipeline = load_pretrained(
                StableDiffusionPipeline, "task.teacher", self.teacher, safety_checker=None
            )
            self.channels = hint_channels(self.teacher_pipeline, self.hint_layer, self.pipeline.transformer)
        if self.accuracy_probe:
            self.accuracy_probe.prepare()

    def run(self, trainer: Trainer) -> None:
        pipeline = self.pipeline
        cache = Path(trainer.default_root_dir) / "latents.safetensors"
        latents = CaptionedLatents(self.corpus, pipeline.vae.eval(), pipeline.tokenizer, cache, self.max_images)
        data = EncodedCaptions(latents)
        states, pooled = data.encoded(partial(clip_states, pipeline))
        targets, channels = data_targets, 0
        if self.teacher_pipeline:
            (told,) = data.encoded(lambda captions: (text_states(self.teacher_pipeline, captions),))
            targets, channels = Teacher(self.teacher_pipeline, told, self.hint_layer), self.channels
        if not self.init_from:
            standardize(pipeline.transformer.context_embedder, states)
        velocity = Velocity(pipeline.transformer, states, pooled)
        module = Flow(pipeline, velocity, targets, channels, self)
        with processor(pipeline.transformer, MergedPaddingAttention()):
            fit(trainer, module, ImageDataModule(data, Prompts(list(self.prompts)), self.batch_size))
            rows = self.rows()
        save_pipeline(pipeline, self.output)
        report(trainer, {"steps": trainer.global_step, **final_loss(trainer), "rows": rows})

    def rows(self) -> list[dict]:
        """The judge's verdict at each guidance."""
        if not self.accuracy_probe:
            return []
        self.pipeline.transformer.eval()
        return [self._row(float(guidance)) for guidance in self.probe_guidance]

    def _row(self, guidance: float) -> dict:
        def draw(prompts: list[str], seeds: Tensor) -> Tensor:
            return sample_images(self.pipeline, prompts, seeds, SAMPLE_STEPS, guidance)

        return self.accuracy_probe.row(draw, latent_shape(self.pipeline), steps=SAMPLE_STEPS, guidance=guidance)

    def build(self, source: StableDiffusionPipeline) -> StableDiffusion3Pipeline:
        if self.init_from:
            return load_pretrained(StableDiffusion3Pipeline, "task.init_from", self.init_from, **WITHOUT_T5)
        layers = source.text_encoder.config.num_hidden_layers
        encoders = [build_text_encoder(source.text_encoder, number) for number in (layers + 1, layers)]
        width = source.text_encoder.config.hidden_size
        source.vae.register_to_config(shift_factor=0.0)  # SD3's pipeline adds it
        return StableDiffusion3Pipeline(
            transformer=build_transformer(source.vae, 2 * width, 2 * width, self.width, self.layers, self.heads),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=self.shift),
            vae=source.vae,
            text_encoder=encoders[0],
            tokenizer=source.tokenizer,
            text_encoder_2=encoders[1],
            tokenizer_2=source.tokenizer,
            **WITHOUT_T5,
        )
