"""State that all visitors of the page share: the networks, the settings, and a lock.

Only the request that holds the lock uses the networks.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from experiments.app.checkpoint_info import CheckpointInfo
from experiments.app.uploads import Example, UploadLimits, read_examples, read_image, read_measured_examples
from experiments.evaluation.classifier import Classifier
from rnri import Inverter, LatentDiffusion
from rnri.validation import ConfigError
from seedselect import ClipFeatures, SeedSelect

DISTILLED_STEPS = 4
"""Default number of sampling steps for models that were distilled to sample in few steps."""
DEFAULT_STEPS = 20
"""Default number of sampling steps for models that were not distilled to sample in few steps."""
DISTILLED_GUIDANCE_MAX = 2.0
"""A model whose default guidance scale is below this threshold is treated as distilled to sample in few steps."""


@dataclass(frozen=True)
class AppContext:
    """The model and the settings of the page.

    Args:
        model: the diffusion model.
        steps, guidance: number of steps and guidance scale, used for inversion and for sampling.
        method: inversion method, which must be seed-only: the seed alone regenerates the image.
        clip: CLIP model that computes SeedSelect's semantic loss.
        classifier: classifier whose features measure the distance between images. None means that the page shows no
            distances.
        select: the SeedSelect optimizer of the tab Rare concept.
        gradient_steps: number of sampling steps at the end of the trajectory through which SeedSelect backpropagates.
        examples_from: folder or table of example images. None means that the page has no examples.
        limits: maximum size of uploaded images.
        info: information on the training data of the checkpoint.
        description: Markdown text with the name of the model and a sentence about its training data.
        lock: lock that a request holds while it uses a network.
    """

    model: LatentDiffusion
    steps: int
    guidance: float
    method: Inverter
    clip: ClipFeatures
    classifier: Classifier | None
    select: SeedSelect
    gradient_steps: int
    examples_from: str | None
    limits: UploadLimits
    info: CheckpointInfo
    description: str
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.model.schedule(self.steps)
        self.model.pipeline.set_progress_bar_config(disable=True)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the model's checkpoint. The fingerprint is cached, because its computation is slow."""
        return self.model.fingerprint

    @cached_property
    def examples(self) -> list[Example]:
        """The example images, resized to the image size of the model."""
        return read_examples(self.examples_from, self.model.image_size, self.limits)

    @cached_property
    def edit_examples(self) -> list[Example]:
        """Examples of the tab Edit: the drawings in ``info.edits``, or the example images if there are no drawings."""
        measured = read_measured_examples(self.examples_from, self.info.edits, self.model.image_size, self.limits)
        return measured or self.examples

    def read_image(self, path: str | Path) -> Image.Image:
        """Read an uploaded image and resize it to the model's image size; raise ValueError if the file is invalid."""
        return read_image(path, self.model.image_size, self.limits)


def check_method(method: Inverter) -> None:
    """Raise ConfigError if the inversion method ``method`` stores tensors in addition to the seed."""
    if not method.seed_only:
        raise ConfigError(
            "method",
            f"{type(method).__name__} stores more than the seed: choose a method whose seed alone regenerates the "
            "image, such as accelerated_8.",
        )


def default_steps(default_guidance: float) -> int:
    """Return the default number of sampling steps of a model whose default guidance scale is ``default_guidance``."""
    return DISTILLED_STEPS if default_guidance < DISTILLED_GUIDANCE_MAX else DEFAULT_STEPS


def resolve_device(name: str) -> str:
    """Return the device ``name``. ``auto`` stands for ``cuda`` if a GPU is available, and for ``cpu`` otherwise.

    Raises:
        ConfigError: PyTorch does not know the device, or the machine has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):  # PyTorch without CUDA raises AssertionError
        raise ConfigError(
            "device", f"must be auto or a device that PyTorch finds here, such as cpu or cuda:0, got {name!r}."
        ) from None
    return name
