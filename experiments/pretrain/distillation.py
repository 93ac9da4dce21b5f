"""What the trainings with a teacher share: captions that are encoded once, and targets that serve several steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.utils.data import Dataset

from experiments.pretrain.denoiser import CaptionedLatents

Encode = Callable[[list[str]], Sequence[Tensor]]
"""From captions to tensors with a row for each."""

UNCONDITIONAL_INDEX = 0  # number of the empty caption


class EncodedCaptions(Dataset):
    """The caption corpus as ``(latent [4, h, w], number of the caption)``.

    Attributes:
        texts: the distinct captions by number; the empty one is ``UNCONDITIONAL_INDEX``.
    """

    def __init__(self, data: CaptionedLatents) -> None:
        self.data = data
        self.texts = ["", *sorted(set(data.texts))]
        numbers = {text: number for number, text in enumerate(self.texts)}
        self.captions = torch.tensor([numbers[text] for text in data.texts])

    @torch.no_grad()
    def encoded(self, encode: Encode, batch_size: int = 256) -> list[Tensor]:
        """What ``encode`` makes of all captions, by number."""
        parts = [encode(self.texts[k : k + batch_size]) for k in range(0, len(self.texts), batch_size)]
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data.latents[self.data.rows[index]], self.captions[index]


@torch.no_grad()
def text_states(pipeline: StableDiffusionPipeline, captions: list[str]) -> Tensor:
    """What the pipeline's UNet is told of ``captions``: ``[B, L, D]``."""
    tokens = pipeline.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return pipeline.text_encoder.eval()(tokens)[0]


class ReplayBuffer:
    """The latest targets, from which steps draw at random: a target costs a teacher's evaluations.

    Args:
        capacity: rows kept; the oldest go first.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[Tensor] = []

    def add(self, *rows: Tensor) -> None:
        """Of any number of tensors, always the same, each with a row for every sample."""
        joined = [torch.cat(pair) for pair in zip(self.rows, rows, strict=True)] if self.rows else rows
        self.rows = [tensor[-self.capacity :] for tensor in joined]

    def draw(self, count: int) -> list[Tensor]:
        chosen = torch.randperm(len(self.rows[0]))[:count]
        return [tensor[chosen] for tensor in self.rows]
