"""Common code of two distillations: to a latent consistency model (LCM) and to a flow-matching model."""

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
"""A text encoder: a function that maps captions to one or more tensors with one row per caption."""

UNCONDITIONAL_INDEX = 0  # index of the empty caption in ``EncodedCaptions.texts``


class EncodedCaptions(Dataset):
    """The captions and images of the emoji corpus as a dataset of pairs ``(latent [4, h, w], caption index)``.

    Attributes:
        texts: the distinct captions; ``texts[UNCONDITIONAL_INDEX]`` is the empty caption.
    """

    def __init__(self, data: CaptionedLatents) -> None:
        self.data = data
        self.texts = ["", *sorted(set(data.texts))]
        index = {text: k for k, text in enumerate(self.texts)}
        self.captions = torch.tensor([index[text] for text in data.texts])

    @torch.no_grad()
    def encode(self, encoder: Encode, batch_size: int = 256) -> list[Tensor]:
        """Return the outputs of the text encoder ``encoder`` for all captions.

        Row k of each output tensor belongs to the caption ``texts[k]``.
        """
        parts = [encoder(self.texts[k : k + batch_size]) for k in range(0, len(self.texts), batch_size)]
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data.latents[self.data.rows[index]], self.captions[index]


@torch.no_grad()
def text_states(pipeline: StableDiffusionPipeline, captions: list[str]) -> Tensor:
    """Return the hidden states ``[B, L, D]`` of the text encoder for ``captions``, which are an input of the U-Net."""
    tokens = pipeline.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return pipeline.text_encoder.eval()(tokens)[0]


class ReplayBuffer:
    """A buffer of the most recent training targets, from which each training step draws a random batch.

    Each target is used in several training steps, because the computation of a target by the teacher model is slow.

    Args:
        capacity: maximum number of targets in the buffer; the oldest targets are removed.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[Tensor] = []

    def add(self, *rows: Tensor) -> None:
        """Append targets. Each tensor has one row per target, and each call must pass the same number of tensors."""
        joined = [torch.cat(pair) for pair in zip(self.rows, rows, strict=True)] if self.rows else rows
        self.rows = [tensor[-self.capacity :] for tensor in joined]

    def sample(self, count: int) -> list[Tensor]:
        """Return ``count`` random targets, drawn without replacement. The same rows are taken from each tensor."""
        index = torch.randperm(len(self.rows[0]))[:count]
        return [tensor[index] for tensor in self.rows]


@dataclass
class DistillationTask(TrainingTask):
    """Common settings of two distillations of a Stable Diffusion pipeline: to an LCM and to a flow-matching model.

    Args:
        corpus: folder of the emoji corpus.
        model: folder of the Stable Diffusion pipeline that is distilled.
        output: folder to which the trained model is saved.
        max_images: number of images of the corpus that are used for the training; None: all images are used.
        batch_size: number of training targets per training step.
        lr: learning rate. A learning rate of 0 keeps the weights unchanged.
        reuse: average number of training steps in which a training target is used.
        prompts: prompts from which sample images are generated during the training.
        accuracy_probe: measures the accuracy of an evaluation classifier on images that the trained model generates;
            None: the accuracy is not measured.
        probe_guidance: guidance scales with which images for ``accuracy_probe`` are generated.
        init_from: folder of a saved model from which the training starts; None: the training starts from a new model.
    """

    corpus: NonEmptyStr | None
    model: NonEmptyStr
    output: NonEmptyStr
    max_images: PositiveInt | None
    batch_size: PositiveInt
    lr: NonNegativeFloat
    reuse: PositiveInt
    prompts: Annotated[Sequence[NonEmptyStr], MinLen(1)]
    accuracy_probe: AccuracyProbe | None
    probe_guidance: Annotated[Sequence[GuidanceScale], MinLen(1)]
    init_from: NonEmptyStr | None

    def load_model(self) -> StableDiffusionPipeline:
        """Load the Stable Diffusion pipeline from the folder ``model``.

        Before the pipeline is loaded, this method checks that ``corpus`` is a folder of the emoji corpus, and that
        files can be written to the folder ``output``.

        Raises:
            ValueError: ``corpus``, ``output`` or ``model`` is invalid.
        """
        check_corpus(self.corpus)
        check_output(self.output)
        return load_pretrained(StableDiffusionPipeline, "task.model", self.model)

    def encode_corpus(self, pipeline: object, trainer: Trainer) -> EncodedCaptions:
        """Return the captioned images of the emoji corpus, encoded by the VAE of ``pipeline``.

        The latents of the images are cached in the run folder.
        """
        cache = Path(trainer.default_root_dir) / "latents.safetensors"
        latents = CaptionedLatents(
            self.corpus, pipeline.vae.eval(), pipeline.tokenizer, cache=cache, max_images=self.max_images
        )
        return EncodedCaptions(latents)

    def data_module(self, data: EncodedCaptions) -> ImageDataModule:
        return ImageDataModule(data, Prompts(list(self.prompts)), self.batch_size)
