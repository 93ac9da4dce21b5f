"""What all visitors share: the networks, how they sample, and the lock that lets one act at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from experiments.app.uploads import Example, read_examples, read_picture
from rnri import Inverter, LatentDiffusion
from seedselect import ClipFeatures, SeedSelect

FEW, MANY = 4, 20
"""Steps of a distilled model and of others, where none are given."""
UNDISTILLED = 2.0  # guidance from which on a model is none that is distilled


@dataclass(frozen=True)
class Bounds:
    """Of uploads: bytes of a file, pixels of an image."""

    bytes: int
    pixels: int


@dataclass(frozen=True)
class Studio:
    """A model and its settings.

    Args:
        model: any that ``rnri`` knows; its pipeline is left as it was found.
        steps, guidance: of inversion and sampling.
        method: of inversion; its seed alone must give the image back.
        load_clip: makes the features of SeedSelect, when they are first needed.
        select, gradient_steps: of Rare concept; derivatives go through the network in so many of the last steps.
        examples: a folder or table, or none.
        bounds: of uploads.
    """

    model: LatentDiffusion
    steps: int
    guidance: float
    method: Inverter
    load_clip: Callable[[], ClipFeatures]
    select: SeedSelect
    gradient_steps: int
    examples_from: str | None
    bounds: Bounds
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not self.method.seed_only:
            name = type(self.method).__name__
            raise ValueError(f"method: {name} needs more than a seed to give an image back: choose another, or none.")
        self.model.schedule(self.steps)
        self.model.pipeline.set_progress_bar_config(disable=True)

    @cached_property
    def fingerprint(self) -> str:
        """Of the checkpoint, which no visitor changes."""
        return self.model.fingerprint

    @cached_property
    def clip(self) -> ClipFeatures:
        return self.load_clip()

    @cached_property
    def examples(self) -> list[Example]:
        return read_examples(
            self.examples_from, self.model.image_size, most_bytes=self.bounds.bytes, most_pixels=self.bounds.pixels
        )

    def read(self, path: str | Path) -> Image.Image:
        """An uploaded image in the model's size; ValueError, one sentence, for what cannot be taken."""
        return read_picture(path, self.model.image_size, most_bytes=self.bounds.bytes, most_pixels=self.bounds.pixels)


def default_steps(default_guidance: float) -> int:
    """Few for a model that is distilled, whose guidance is 1 or near it."""
    return FEW if default_guidance < UNDISTILLED else MANY


def chosen_device(name: str) -> str:
    """``auto`` is a GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
