"""Classifiers trained on a few images a class."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data.augmentations import jitter
from experiments.evaluation.classifier import Classifier
from experiments.reporting.finite import NonFiniteError
from rnri.validation import dataclass


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
    image_size: PositiveInt
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat

    def train(self, images: Tensor, labels: Tensor, names: list[str], seed: int, device: torch.device) -> Classifier:
        """A classifier of ``names``, in evaluation mode, from ``uint8`` images ``[N, 3, H, W]`` and indices ``[N]``.

        ``seed`` decides weights, order and changes; the global generator is left as it was.

        Raises:
            NotFinite: the training diverged, so that its classifier would name anything the same.
        """
        images, labels = images.to(device), labels.to(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            classifier = self._untrained(names).to(device).train()
            optimizer = torch.optim.AdamW(
                classifier.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
            )
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
            for _ in range(self.steps):
                drawn = torch.randint(len(images), (self.batch_size,)).to(device)
                optimizer.zero_grad()
                logits = classifier(_changed(images[drawn].float() / 255))
                F.cross_entropy(logits, labels[drawn], label_smoothing=0.1).backward()
                optimizer.step()
                schedule.step()
        if not all(parameter.isfinite().all() for parameter in classifier.parameters()):
            raise NonFiniteError(
                f"the few-shot training {seed} diverged: lower task.few_shot.learning_rate={self.learning_rate}."
            )
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
