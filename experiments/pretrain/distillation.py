"""Shared by the trainings with a teacher: encoded captions, a replay buffer of targets, and common settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import MinLen
from diffusers import StableDiffusionPipeline
from lightning.pytorch import Trainer
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from experiments.data.emoji import check_corpus
from experiments.pretrain.denoiser import CaptionedLatents, Prompts
from experiments.pretrain.training import ImageDataModule, TrainingTask, check_output, load_pretrained
from experiments.pretrain.validation_accuracy import AccuracyProbe
from rnri.validation import GuidanceScale, NonEmptyStr, dataclass

Encode = Callable[[list[str]], Sequence[Tensor]]
"""Maps captions to tensors with one row per caption."""

UNCONDITIONAL_INDEX = 0  # index of the empty caption


class EncodedCaptions(Dataset):
    """The caption corpus as ``(latent [4, h, w], caption index)``.

    Attributes:
        texts: distinct captions by index; the empty one has ``UNCONDITIONAL_INDEX``.
    """

    def __init__(self, data: CaptionedLatents) -> None:
        self.data = data
        self.texts = ["", *sorted(set(data.texts))]
        index = {text: k for k, text in enumerate(self.texts)}
        self.captions = torch.tensor([index[text] for text in data.texts])

    @torch.no_grad()
    def encode(self, encoder: Encode, batch_size: int = 256) -> list[Tensor]:
        """Outputs of ``encoder`` for all distinct captions, by index."""
        parts = [encoder(self.texts[k : k + batch_size]) for k in range(0, len(self.texts), batch_size)]
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data.latents[self.data.rows[index]], self.captions[index]


@torch.no_grad()
def text_states(pipeline: StableDiffusionPipeline, captions: list[str]) -> Tensor:
    """Text conditioning of the pipeline's U-Net, ``[B, L, D]``."""
    tokens = pipeline.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return pipeline.text_encoder.eval()(tokens)[0]


class ReplayBuffer:
    """The latest targets; training steps sample from them, because a target costs evaluations of the teacher.

    Args:
        capacity: maximum number of rows; the oldest are dropped.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[Tensor] = []

    def add(self, *rows: Tensor) -> None:
        """Appends tensors with one row per sample; every call has the same number of tensors."""
        joined = [torch.cat(pair) for pair in zip(self.rows, rows, strict=True)] if self.rows else rows
        self.rows = [tensor[-self.capacity :] for tensor in joined]

    def sample(self, count: int) -> list[Tensor]:
        """``count`` random rows of each tensor, without replacement."""
        index = torch.randperm(len(self.rows[0]))[:count]
        return [tensor[index] for tensor in self.rows]


@dataclass
class DistillationTask(TrainingTask):
    """Settings and preparation of the trainings that start from a Stable Diffusion pipeline.

    Args:
        corpus: folder of the caption corpus.
        model: folder of the Stable Diffusion pipeline.
        output: folder of the trained model.
        max_images: number of images of the corpus to encode before the training; None is all.
        batch_size, lr: of the training.
        reuse: average number of steps that use a target.
        prompts: of the sample grids.
        accuracy_probe: evaluates samples at the end; None skips it.
        probe_guidance: guidance scales of these samples.
        init_from: folder of a saved model to continue from; None starts a new one.
    """

    corpus: NonEmptyStr | None
    model: NonEmptyStr
    output: NonEmptyStr
    max_images: PositiveInt | None
    batch_size: PositiveInt
    lr: NonNegativeFloat  # 0 keeps the weights
    reuse: PositiveInt
    prompts: Annotated[Sequence[NonEmptyStr], MinLen(1)]
    accuracy_probe: AccuracyProbe | None
    probe_guidance: Annotated[Sequence[GuidanceScale], MinLen(1)]
    init_from: NonEmptyStr | None

    def load_model(self) -> StableDiffusionPipeline:
        """Checks the folders and loads ``model``; ValueError if one is invalid."""
        check_corpus(self.corpus)
        check_output(self.output)
        return load_pretrained(StableDiffusionPipeline, "task.model", self.model, safety_checker=None)

    def encode_corpus(self, pipeline: object, trainer: Trainer) -> EncodedCaptions:
        """The captioned latents of the VAE of ``pipeline``, cached in the run folder."""
        cache = Path(trainer.default_root_dir) / "latents.safetensors"
        latents = CaptionedLatents(
            self.corpus, pipeline.vae.eval(), pipeline.tokenizer, cache=cache, max_images=self.max_images
        )
        return EncodedCaptions(latents)

    def data_module(self, data: EncodedCaptions) -> ImageDataModule:
        return ImageDataModule(data, Prompts(list(self.prompts)), self.batch_size)
