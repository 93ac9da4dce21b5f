"""Training of the emoji flow-matching model, a small Stable Diffusion 3 transformer in the latent space of a VAE."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Le
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from lightning.pytorch import LightningModule, Trainer
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.pretrain.distillation import UNCONDITIONAL_INDEX, DistillationTask, ReplayBuffer, text_states
from experiments.pretrain.flow_distillation import OutputHook, Targets, VelocityTeacher, data_targets, hint_channels
from experiments.pretrain.flow_model import (
    T5_TOKENS,
    WITHOUT_T5,
    MergedPaddingAttention,
    Velocity,
    attention_processor,
    build_text_encoder,
    build_transformer,
    clip_states,
    latent_shape,
    sample_images,
    save_pipeline,
    standardize,
)
from experiments.pretrain.training import (
    Unregistered,
    adamw,
    final_loss,
    fit,
    load_pretrained,
    report,
    sample_seeds,
    save_grid,
)
from rnri.validation import NonEmptyStr, UnitInterval, dataclass

SAMPLE_STEPS = 20  # number of sampling steps of sample images
SAMPLE_GUIDANCE = 6.0  # guidance scale of the sample images during training
FEATURE_LOSS_WEIGHT = 0.5  # weight of the feature loss, relative to the velocity loss


class FlowTraining(LightningModule):
    """Training of rectified flow by the mean squared error of the predicted velocity, at logit-normal noise levels.

    If there is a teacher, a feature loss is added to the velocity loss (hints, Romero et al. 2015, arXiv 1412.6550). A
    linear layer predicts the features of the teacher from the output of the second-to-last transformer block, for each
    token separately. The feature loss has many more target values per token than the velocity loss.

    Args:
        pipeline: the pipeline whose transformer is trained.
        velocity: function that predicts velocities with the transformer of ``pipeline``.
        targets: function that computes the training targets.
        channels: number of channels of the features of the teacher; 0: the training has no feature loss.
        settings: settings of the training task.
    """

    def __init__(
        self,
        pipeline: StableDiffusion3Pipeline,
        velocity: Velocity,
        targets: Targets,
        *,
        channels: int,
        settings: PretrainFlow,
    ) -> None:
        super().__init__()
        self.transformer = pipeline.transformer.train()
        self.pipeline = Unregistered(pipeline)
        self.velocity = velocity
        self.targets = targets
        self.settings = settings
        self.replay = ReplayBuffer(8 * settings.batch_size)
        self.readout = nn.Linear(settings.width, channels) if channels else None
        self.hidden = OutputHook(self.transformer.transformer_blocks[-2]) if channels else None

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        z0, captions = batch
        if not self.replay.rows or index % self.settings.reuse == 0:
            captions = torch.where(torch.rand(len(z0)) < self.settings.drop_caption, UNCONDITIONAL_INDEX, captions)
            sigma = torch.sigmoid(self.settings.logit_mean + self.settings.logit_std * torch.randn(len(z0)))
            self.replay.add(*self.targets(z0, sigma, captions), captions)
        x, sigma, target, features, captions = self.replay.sample(len(z0))
        zeros = torch.where(torch.rand(len(x)) < 0.5, 0, T5_TOKENS)
        velocity = self.velocity(x, sigma, captions, zeros)
        loss = error = F.mse_loss(velocity, target)
        if self.readout:
            feature_loss = F.mse_loss(self.readout(self.hidden.take()[1]), features)
            self.log("feature_loss", feature_loss, prog_bar=True)
            loss = error + FEATURE_LOSS_WEIGHT * feature_loss
        self.log_dict({"loss": loss, "error": error}, prog_bar=True)
        return loss

    @torch.no_grad()
    def validation_step(self, prompts: list[str], _: int) -> None:
        pipeline = self.pipeline.value
        seeds = sample_seeds(len(prompts), latent_shape(pipeline))
        images = sample_images(pipeline, list(prompts), seeds, steps=SAMPLE_STEPS, guidance=SAMPLE_GUIDANCE)
        save_grid(images, self.trainer)

    def configure_optimizers(self) -> dict:
        return adamw(self, self.settings.lr, self.trainer.max_steps, warmup=200, decay_from=self.settings.decay_from)


@dataclass
class PretrainFlow(DistillationTask):
    """The task of ``experiment=pretrain_flow``: trains a small Stable Diffusion 3 transformer.

    The VAE, the tokenizer and the text encoder are taken from the pipeline in the folder ``model``.

    Args:
        teacher: folder of the Stable Diffusion pipeline (teacher) that computes the target velocities; None: the model
            is trained with the usual targets of rectified flow, without a teacher.
        hint_layer: name of the U-Net layer of the teacher whose output is the target of the feature loss.
        decay_from: fraction of the training steps after which the linear decay of the learning rate to zero begins.
        drop_caption: fraction of the captions that are replaced by the empty caption, for classifier-free guidance.
        logit_mean: mean of the normal distribution from which the logits of the noise levels are drawn in the training.
        logit_std: standard deviation of the normal distribution from which the logits of the noise levels are drawn.
        width: dimension of the hidden states of the transformer, which must be a multiple of ``heads`` and of 4.
        layers: number of transformer blocks.
        heads: number of attention heads.
        shift: argument ``shift`` of the sampler's ``FlowMatchEulerDiscreteScheduler``, which shifts the noise levels.
    """

    teacher: NonEmptyStr | None
    hint_layer: NonEmptyStr
    decay_from: UnitInterval
    drop_caption: UnitInterval
    logit_mean: Annotated[float, Ge(-10), Le(10)]
    logit_std: PositiveFloat
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    shift: PositiveFloat

    def prepare(self, trainer: Trainer) -> None:
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"task.width={self.width} must be a multiple of task.heads={self.heads} and of 4: change task.width."
            )
        self.pipeline = self.build(self.load_model())
        self.teacher_pipeline = None
        if self.teacher:
            teacher = load_pretrained(StableDiffusionPipeline, "task.teacher", self.teacher)
            self.channels = hint_channels(teacher, self.hint_layer, self.pipeline.transformer)
            self.teacher_pipeline = teacher
        if self.accuracy_probe:
            self.accuracy_probe.prepare()

    def run(self, trainer: Trainer) -> None:
        pipeline = self.pipeline
        data = self.encode_corpus(pipeline, trainer)
        states, pooled = data.encode(partial(clip_states, pipeline))
        targets: Targets = data_targets
        channels = 0
        if self.teacher_pipeline:
            (text,) = data.encode(lambda captions: (text_states(self.teacher_pipeline, captions),))
            targets = VelocityTeacher(self.teacher_pipeline, text, self.hint_layer)
            channels = self.channels
        if not self.init_from:
            standardize(pipeline.transformer.context_embedder, states)
        velocity = Velocity(pipeline.transformer, states, pooled)
        module = FlowTraining(pipeline, velocity, targets, channels=channels, settings=self)
        with attention_processor(pipeline.transformer, MergedPaddingAttention()):
            fit(trainer, module, self.data_module(data))
            rows = self.rows()
        save_pipeline(pipeline, self.output)
        report(trainer, {"steps": trainer.global_step, **final_loss(trainer), "rows": rows})

    def rows(self) -> list[dict]:
        """Return one table row per guidance scale, with the accuracy of the classifier on generated images."""
        if not self.accuracy_probe:
            return []
        self.pipeline.transformer.eval()
        return [self._row(float(guidance)) for guidance in self.probe_guidance]

    def _row(self, guidance: float) -> dict:
        def sampler(prompts: list[str], seeds: Tensor) -> Tensor:
            return sample_images(self.pipeline, prompts, seeds, steps=SAMPLE_STEPS, guidance=guidance)

        return self.accuracy_probe.row(sampler, latent_shape(self.pipeline), steps=SAMPLE_STEPS, guidance=guidance)

    def build(self, source: StableDiffusionPipeline) -> StableDiffusion3Pipeline:
        """Return the pipeline to train: the pipeline in the folder ``init_from``, or a new pipeline.

        A new pipeline has a new transformer, and the VAE, the tokenizer and the text encoder of ``source``.
        """
        if self.init_from:
            pipeline = load_pretrained(StableDiffusion3Pipeline, "task.init_from", self.init_from)
            pipeline.register_modules(**WITHOUT_T5)
            return pipeline
        layers = source.text_encoder.config.num_hidden_layers
        encoders = [build_text_encoder(source.text_encoder, number) for number in (layers + 1, layers)]
        width = source.text_encoder.config.hidden_size
        source.vae.register_to_config(shift_factor=0.0)  # the SD3 pipeline adds the shift factor to latents
        return StableDiffusion3Pipeline(
            transformer=build_transformer(
                source.vae,
                text_width=2 * width,
                pooled_width=2 * width,
                width=self.width,
                layers=self.layers,
                heads=self.heads,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=self.shift),
            vae=source.vae,
            text_encoder=encoders[0],
            tokenizer=source.tokenizer,
            text_encoder_2=encoders[1],
            tokenizer_2=source.tokenizer,
            **WITHOUT_T5,
        )
