"""What all visitors share: the networks, the sampling settings, and a lock so that one request runs at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from experiments.app.uploads import Example, UploadLimits, read_examples, read_image
from rnri import Inverter, LatentDiffusion
from seedselect import ClipFeatures, SeedSelect

DISTILLED_STEPS, DEFAULT_STEPS = 4, 20
DISTILLED_GUIDANCE_MAX = 2.0
"""Models with a default guidance scale below this are taken to be distilled for few steps."""


@dataclass(frozen=True)
class AppContext:
    """A model and the settings of the page.

    Args:
        model: the diffusion model.
        steps, guidance: number of steps and guidance scale of inversion and sampling.
        method: inversion method; it must be seed-only.
        load_clip: loads the CLIP features of SeedSelect; called when they are first needed.
        select: SeedSelect of the tab Rare concept.
        gradient_steps: number of last sampling steps that SeedSelect differentiates.
        examples_from: folder or table of example images, or None.
        limits: upload limits.

    Raises:
        ValueError: ``method`` is not seed-only.
    """

    model: LatentDiffusion
    steps: int
    guidance: float
    method: Inverter
    load_clip: Callable[[], ClipFeatures]
    select: SeedSelect
    gradient_steps: int
    examples_from: str | None
    limits: UploadLimits
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not self.method.seed_only:
            name = type(self.method).__name__
            raise ValueError(f"method: {name} stores more than the seed; choose a seed-only method.")
        self.model.schedule(self.steps)
        self.model.pipeline.set_progress_bar_config(disable=True)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the checkpoint, computed once."""
        return self.model.fingerprint

    @cached_property
    def clip(self) -> ClipFeatures:
        """CLIP features, loaded on first use."""
        return self.load_clip()

    @cached_property
    def examples(self) -> list[Example]:
        """Example images in the image size of the model."""
        return read_examples(self.examples_from, self.model.image_size, self.limits)

    def read_image(self, path: str | Path) -> Image.Image:
        """Read an uploaded image in the image size of the model; ValueError if it is not acceptable."""
        return read_image(path, self.model.image_size, self.limits)


def default_steps(default_guidance: float) -> int:
    """Default number of sampling steps, from the default guidance scale of a model."""
    return DISTILLED_STEPS if default_guidance < DISTILLED_GUIDANCE_MAX else DEFAULT_STEPS


def resolve_device(name: str) -> str:
    """Resolve ``auto`` to ``cuda`` if available, else ``cpu``."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
