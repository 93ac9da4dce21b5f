"""Classifiers trained on a few images a class, and the real images that they are tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.classifier import Classifier
from experiments.data.concepts import EmojiConcepts
from experiments.data.emoji import Drawings
from experiments.data.folder import FolderConcepts, image_files, read_image
from experiments.pretrain.jitter import jitter


@dataclass(frozen=True)
class FewShot:
    """The training of a small classifier: AdamW, cosine decay, smoothed labels, each image changed anew at every step.

    Every training makes the same number of steps, however many images there are.

    Args:
        network: makes a timm network, given ``num_classes``. Unless it loads weights, the classifier has seen nothing
            but its training images.
        image_size: side in pixels that the network works on.
        steps, batch_size, learning_rate, weight_decay: of the training; images are drawn evenly from all there are.
    """

    network: Callable[..., nn.Module]
    image_size: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float

    def __post_init__(self) -> None:
        for name in ("image_size", "steps", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"task.few_shot.{name}={getattr(self, name)} has to be positive.")

    def train(self, images: Tensor, labels: Tensor, names: list[str], seed: int, device: torch.device) -> Classifier:
        """A classifier of ``names``, in evaluation mode, from ``uint8`` images ``[N, 3, H, W]`` and indices ``[N]``.

        ``seed`` decides weights, order and changes; the global generator is left as it was.
        """
        images, labels = images.to(device), labels.to(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            classifier = self._untrained(names).to(device).train()
            optimiser = torch.optim.AdamW(
                classifier.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
            )
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
            for _ in range(self.steps):
                drawn = torch.randint(len(images), (self.batch_size,)).to(device)
                optimiser.zero_grad()
                logits = classifier(_changed(images[drawn].float() / 255))
                F.cross_entropy(logits, labels[drawn], label_smoothing=0.1).backward()
                optimiser.step()
                schedule.step()
        return classifier.eval()

    def _untrained(self, names: list[str]) -> Classifier:
        network = self.network(num_classes=len(names))
        return Classifier(
            network, names, self.image_size, timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
        )


def _changed(images: Tensor) -> Tensor:
    mirrored = (torch.rand(len(images)) < 0.5).to(images.device).view(-1, 1, 1, 1)
    return jitter(torch.where(mirrored, images.flip(-1), images))


@torch.no_grad()
def classify(classifier: Classifier, images: Tensor, device: torch.device, batch_size: int = 128) -> Tensor:
    """Index of each image's label, ``int64 [N]``, of ``uint8`` images ``[N, 3, H, W]``."""
    return torch.cat(
        [classifier(batch.to(device).float() / 255).argmax(-1).cpu() for batch in images.split(batch_size)]
    )


@singledispatch
def held_out(source: object) -> dict[str, np.ndarray]:
    """Real images that are no references, ``uint8 [N, 3, H, W]`` by the concept that they show."""
    raise ValueError(f"{type(source).__name__} does not say what its real images show: register it with held_out.")


@held_out.register
def _(source: EmojiConcepts) -> dict[str, np.ndarray]:
    names = [row["concept"] for row in Drawings(source.folder, ["fid"]).rows]
    pictures: dict[str, list[np.ndarray]] = {}
    for name, picture in zip(names, source.real_images(), strict=True):
        pictures.setdefault(name, []).append(picture)
    return {name: np.stack(own) for name, own in pictures.items()}


@held_out.register
def _(source: FolderConcepts) -> dict[str, np.ndarray]:
    root = Path(source.real)
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return {path.name: np.stack([read_image(file, source.size) for file in image_files(path)]) for path in folders}
