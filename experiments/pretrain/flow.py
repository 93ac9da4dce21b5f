"""Trains the embedded flow-matching model: a Stable Diffusion 3 transformer in the latents of the embedded VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from string import ascii_lowercase
from typing import Annotated

import torch
from annotated_types import Ge, Le, MinLen
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from diffusers.configuration_utils import FrozenDict
from diffusers.models.attention_processor import Attention
from lightning.pytorch import LightningModule, Trainer
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from experiments.data.emoji import check_corpus
from experiments.pretrain.denoiser import CaptionedLatents, Prompts
from experiments.pretrain.distillation import UNCONDITIONAL_INDEX, EncodedCaptions, ReplayBuffer, text_states
from experiments.pretrain.training import (
    ImageDataModule,
    Unregistered,
    adamw,
    check_output,
    final_loss,
    fit,
    load_pretrained,
    report,
    save_fp16,
    save_grid,
)
from experiments.pretrain.validation_accuracy import AccuracyProbe
from rnri.validation import GuidanceScale, NonEmptyStr, UnitInterval, dataclass

SAMPLE_STEPS, SAMPLE_GUIDANCE = 20, 6.0
FEATURE_LOSS_WEIGHT = 0.5
TIMESTEPS = 1000  # in which the transformer is told sigma
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}  # diffusers wants to be told
ZEROS = 256  # tokens of zeros that SD3's pipeline appends for a T5 it does not have


Targets = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""From clean latents, noise levels and numbers of captions to ``(x, sigma, velocity, features)``."""


def build_text_encoder(start: CLIPTextModel, layers: int) -> CLIPTextModelWithProjection:
    """The first ``layers`` layers of ``start``, then layers without effect; the projection is the identity.

    SD3 reads the states before the last layer and the pooled ones after it. A layer more than ``start`` has adds
    nothing to its input, so that the states are those of ``start``'s last layer.
    """
    config = type(start.config).from_dict(start.config.to_dict() | {"num_hidden_layers": layers})
    encoder = CLIPTextModelWithProjection(config)
    inner = encoder.text_model
    known = {name: tensor for name, tensor in start.state_dict().items() if name in inner.state_dict()}
    with torch.no_grad():
        for name in inner.load_state_dict(known, strict=False).missing_keys:
            if "out_proj" in name or "fc2" in name:  # what a layer adds to its input comes out of these two
                inner.get_parameter(name).zero_()
        nn.init.eye_(encoder.text_projection.weight)
    return encoder.eval()


def build_transformer(
    vae: nn.Module, text_width: int, pooled_width: int, width: int, layers: int, heads: int
) -> SD3Transformer2DModel:
    """Modulations and output begin at zero (adaLN-Zero, Peebles and Xie 2023): every block begins as the identity."""
    side = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    transformer = SD3Transformer2DModel(
        sample_size=side,
        patch_size=2,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=layers,
        attention_head_dim=width // heads,
        num_attention_heads=heads,
        joint_attention_dim=text_width,
        caption_projection_dim=width,
        pooled_projection_dim=pooled_width,
        pos_embed_max_size=side // 2,
        qk_norm="rms_norm",
    )
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            if "norm" in name or name == "proj_out":
                nn.init.zeros_(layer.weight)
    return transformer


@torch.no_grad()
def standardize(layer: nn.Linear, inputs: Tensor) -> None:
    """Folds the standardizing of each feature of ``inputs [..., D]`` into the weights.

    CLIP's states before the final norm have features hundreds of times larger than others.
    """
    mean, std = inputs.flatten(0, -2).mean(0), inputs.flatten(0, -2).std(0).clamp(min=1e-3)
    layer.weight /= std
    layer.bias -= layer.weight @ mean


class MergedPaddingAttention:
    """SD3's joint attention with a mask over its keys.

    The tokens of zeros that stand for a missing T5 are all alike and stay so: the context has no positions. In the
    softmax n of them count as one whose logit is higher by log n, which makes a training step cost a quarter.
    """

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        length = hidden_states.shape[1]
        image = [split_heads(layer(hidden_states), attn.heads) for layer in (attn.to_q, attn.to_k, attn.to_v)]
        text = [
            split_heads(layer(encoder_hidden_states), attn.heads)
            for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        ]
        query = torch.cat([attn.norm_q(image[0]), attn.norm_added_q(text[0])], 2)
        key = torch.cat([attn.norm_k(image[1]), attn.norm_added_k(text[1])], 2)
        mixed = F.scaled_dot_product_attention(query, key, torch.cat([image[2], text[2]], 2), attention_mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        context = mixed[:, length:]
        return attn.to_out[0](mixed[:, :length]), context if attn.context_pre_only else attn.to_add_out(context)


def split_heads(x: Tensor, count: int) -> Tensor:
    """``[B, L, D]`` to ``[B, heads, L, D / heads]``"""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


@contextmanager
def processor(transformer: SD3Transformer2DModel, other: object) -> Iterator[None]:
    """Attention by another processor for a while."""
    usual = transformer.attn_processors
    transformer.set_attn_processor(other)
    try:
        yield
    finally:
        transformer.set_attn_processor(usual)


class Velocity:
    """The transformer as the pipeline runs it, with one token for all the zeros.

    Args:
        transformer: with processors of :class:`OneForMany`.
        states: CLIP states of every caption ``[captions, L, D]``; pooled: ``[captions, P]``.
    """

    def __init__(self, transformer: SD3Transformer2DModel, states: Tensor, pooled: Tensor) -> None:
        self.transformer, self.states, self.pooled = transformer, states, pooled

    def __call__(self, x: Tensor, sigma: Tensor, captions: Tensor, zeros: Tensor) -> Tensor:
        """Velocity ``[B, 4, h, w]`` at ``sigma [B]``, where ``zeros [B]`` tokens of zeros follow the caption's."""
        text = F.pad(self.states[captions], (0, 0, 0, 1))
        size = self.transformer.config.patch_size
        keys = x.shape[-2] * x.shape[-1] // size**2 + text.shape[1]
        mask = torch.zeros(len(x), 1, 1, keys, device=x.device)
        mask[..., -1] = zeros.float().log()[:, None, None]
        return self.transformer(
            x, text, self.pooled[captions], sigma * TIMESTEPS, joint_attention_kwargs={"attention_mask": mask}
        ).sample


class OutputHook:
    """The latest output of a layer, given once: kept, its graph would keep the layer from being copied."""

    def __init__(self, layer: nn.Module) -> None:
        layer.register_forward_hook(self._record)
        self._output: object = None

    def _record(self, _layer: nn.Module, _inputs: object, output: object) -> None:
        self._output = output

    def take(self) -> Tensor | tuple[Tensor, ...]:
        output, self._output = self._output, None
        return output


def feature_tokens(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A layer's map ``[B, C, h, w]`` as ``[B, h w, C]`` of equal norm."""
    features = output[0] if isinstance(output, tuple) else output
    return F.layer_norm(features.flatten(2).transpose(1, 2), features.shape[1:2])


@torch.no_grad()
def hint_channels(pipeline: StableDiffusionPipeline, hint: str, transformer: SD3Transformer2DModel) -> int:
    """Channels of the layer ``hint`` of the pipeline's UNet. ValueError unless its map has a place for every token."""
    unet, config = pipeline.unet.eval(), transformer.config
    try:
        features = OutputHook(unet.get_submodule(hint))
    except AttributeError:
        raise ValueError(
            f"task.hint_layer={hint!r} is no layer of the teacher's UNet: name one, such as up_blocks.1.attentions.1."
        ) from None
    unet(
        torch.zeros(1, unet.config.in_channels, config.sample_size, config.sample_size), 0, text_states(pipeline, [""])
    )
    _, places, channels = feature_tokens(features.take()).shape
    tokens = (config.sample_size // config.patch_size) ** 2
    if places != tokens:
        raise ValueError(
            f"task.hint_layer={hint!r} has a map of {places} places, the transformer {tokens} tokens: name another layer."
        )
    return channels


class Teacher:
    """Velocities of a model that predicts noise, at the same signal-to-noise ratio.

    ``x = (1 - sigma) x0 + sigma n`` divided by ``sqrt((1 - sigma)^2 + sigma^2)`` is the latent ``z`` that a model of
    variance-preserving diffusion knows at the timestep whose ``abar`` is ``(1 - sigma)^2 / ((1 - sigma)^2 + sigma^2)``.
    Its noise prediction gives ``E[x0 | z] = (z - sqrt(1 - abar) eps) / sqrt(abar)``, and the velocity that rectified
    flow learns is ``E[n - x0 | x] = (x - E[x0 | x]) / sigma``: the same mean as that of the data target ``n - x0``,
    without its variance. No guidance is in it.

    The model knows nothing noisier than its last timestep. There ``x`` gets further noise on top of a latent of that
    timestep, whose ``E[x0 | z]`` has the right mean given ``x``.

    Args:
        pipeline: the model.
        states: what its text encoder says of every caption, ``[captions, L, D]``.
        hint: name of the layer whose map, one place a token, is to be told as well.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, states: Tensor, hint: str) -> None:
        self.features = OutputHook(pipeline.unet.get_submodule(hint))
        self.unet = pipeline.unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        a = pipeline.scheduler.alphas_cumprod.double()
        self.alpha, self.level = a.sqrt(), (1 - a).sqrt()
        self.sigma = self.level / (self.alpha + self.level)  # ascending
        self.states = states

    @torch.no_grad()
    def __call__(self, z0: Tensor, sigma: Tensor, captions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(x, sigma, velocity, features [B, tokens, C])`` for latents ``z0``.

        ``sigma [B]`` is moved to that of the timestep below or equal.
        """
        t = (torch.searchsorted(self.sigma, sigma.double(), right=True) - 1).clamp(min=0)
        beyond = sigma.double() > self.sigma[-1]
        sigma = torch.where(beyond, sigma.double(), self.sigma[t])
        alpha, level = (values[t].view(-1, 1, 1, 1).float() for values in (self.alpha, self.level))
        z = alpha * z0 + level * torch.randn_like(z0)
        clean = (z - level * self.unet(z, t, self.states[captions]).sample.float()) / alpha
        # x = (1 - sigma) x0 + sigma n out of z: what z lacks in noise is added.
        sigma = sigma.view(-1, 1, 1, 1)
        share = (1 - sigma) / self.alpha[t].view(-1, 1, 1, 1)
        rest = (sigma**2 - (share * self.level[t].view(-1, 1, 1, 1)) ** 2).clamp(min=0).sqrt()
        x = share.float() * z + rest.float() * torch.randn_like(z)
        return x, sigma.flatten().float(), (x - clean) / sigma.float(), feature_tokens(self.features.take())


def data_targets(z0: Tensor, sigma: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(x, sigma, n - z0, no features)``: the target of rectified flow (Liu et al. 2023, arXiv 2209.03003) itself."""
    noise, level = torch.randn_like(z0), sigma.view(-1, 1, 1, 1)
    return (1 - level) * z0 + level * noise, sigma, noise - z0, torch.empty(len(z0), 0)


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
        zeros = torch.where(torch.rand(len(x)) < 0.5, 0, ZEROS)
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


def latent_shape(pipeline: StableDiffusion3Pipeline) -> tuple[int, int, int]:
    config = pipeline.transformer.config
    return config.in_channels, config.sample_size, config.sample_size


@torch.no_grad()
def sample_images(
    pipeline: StableDiffusion3Pipeline, prompts: list[str], seeds: Tensor, steps: int, guidance: float
) -> Tensor:
    """The pipeline's own images ``[B, 3, H, W]`` in [0, 1], at the lower cost of :class:`OneForMany`."""
    states, pooled = clip_states(pipeline, ["", *prompts])
    velocity = Velocity(pipeline.transformer, states, pooled)
    scheduler = deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(steps)
    told, x = 1 + torch.arange(len(prompts)), seeds
    captions = torch.cat([torch.full_like(told, UNCONDITIONAL_INDEX), told])
    for t in scheduler.timesteps:
        sigma = (t / TIMESTEPS).expand(len(captions))
        without, with_text = velocity(torch.cat([x, x]), sigma, captions, torch.full_like(captions, ZEROS)).chunk(2)
        x = scheduler.step(without + guidance * (with_text - without), t, x, return_dict=False)[0]
    x = x / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    return (pipeline.vae.decode(x).sample / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def clip_states(pipeline: StableDiffusion3Pipeline, captions: list[str]) -> tuple[Tensor, Tensor]:
    """``[B, L, D]`` without the zeros, and pooled ``[B, P]``, as the pipeline makes them."""
    encoded = pipeline.encode_prompt(captions, None, None, do_classifier_free_guidance=False, max_sequence_length=0)
    return encoded[0], encoded[2]


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


def save_pipeline(pipeline: StableDiffusion3Pipeline, folder: str | Path) -> None:
    """``save_pretrained`` in half precision, part by part, with a third text encoder that says nothing."""
    pipeline = StableDiffusion3Pipeline(**pipeline.components | zero_t5_embeddings(pipeline.transformer.config))
    pipeline.save_pretrained(folder)
    for name in ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae"):
        save_fp16(getattr(pipeline, name), Path(folder) / name)


def zero_t5_embeddings(transformer: FrozenDict) -> dict[str, object]:
    """A T5 of one unit whose states are the zeros that SD3's pipeline takes for a missing T5, and its tokenizer.

    ``DiffusionPipeline.from_pretrained`` loads a Stable Diffusion 3 folder only with all three text encoders, unless it
    is told otherwise.
    """
    tokens = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -3.0) for letter in "\u2581" + ascii_lowercase)]
    width = transformer.joint_attention_dim
    config = T5Config(vocab_size=len(tokens), d_model=width, d_kv=1, d_ff=1, num_layers=1, num_heads=1)
    encoder = T5EncoderModel(config).eval()
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    tokenizer = T5TokenizerFast(vocab=tokens, extra_ids=0, model_max_length=ZEROS)
    return {"text_encoder_3": encoder, "tokenizer_3": tokenizer}
