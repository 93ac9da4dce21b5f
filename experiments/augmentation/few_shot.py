"""Training of classifiers on a few images per class."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.data.augmentations import jitter
from experiments.evaluation.classifier import Classifier, Preprocessing
from experiments.finite import NonFiniteError
from rnri.validation import dataclass, first_line

LABEL_SMOOTHING = 0.1
"""Label smoothing of the cross-entropy loss."""


@dataclass(frozen=True)
class FewShot:
    """Trains a small classifier with AdamW, a cosine learning-rate schedule, label smoothing and image augmentation.

    The number of training steps is ``steps``, for any number of images.

    Args:
        network: function that creates a timm network with ``num_classes`` outputs. The classifier is trained from
            scratch, unless ``network`` loads pretrained weights.
        image_size: height and width in pixels of the input images of the network.
        steps: number of training steps.
        batch_size: number of images per training step. The images are drawn uniformly with replacement.
        learning_rate: initial learning rate of AdamW.
        weight_decay: weight decay of AdamW.
    """

    network: Callable[..., nn.Module]
    image_size: PositiveInt
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat

    def check(self) -> None:
        """Check that the network can be created and accepts images, without changing the random state.

        Raises:
            ValueError: timm cannot create the network, or the network does not accept images of ``image_size``.
        """
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                self._new_classifier(["a", "b"]).train()(torch.zeros(2, 3, self.image_size, self.image_size))
        except Exception as error:  # timm raises exceptions of many types
            raise ValueError(
                f"task.few_shot.network: cannot classify images of task.few_shot.image_size={self.image_size} "
                f"({first_line(error)}); choose another network or image size."
            ) from None

    def train(self, images: Tensor, labels: Tensor, names: list[str], *, seed: int, device: torch.device) -> Classifier:
        """Train on ``uint8`` images ``[N, 3, H, W]`` with label indices ``[N]``; return the classifier in eval mode.

        ``seed`` determines the initial weights, the batches and the augmentation of the images. The global random state
        is not changed.

        Raises:
            NonFiniteError: after the training, a weight of the classifier is NaN or infinite.
        """
        images = images.to(device)
        labels = labels.to(device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            classifier = self._new_classifier(names).to(device).train()
            optimizer = torch.optim.AdamW(
                classifier.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
            )
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
            for _ in range(self.steps):
                batch = torch.randint(len(images), (self.batch_size,)).to(device)
                optimizer.zero_grad()
                logits = classifier(_augment(images[batch].float() / 255))
                F.cross_entropy(logits, labels[batch], label_smoothing=LABEL_SMOOTHING).backward()
                optimizer.step()
                schedule.step()
        if not all(parameter.isfinite().all() for parameter in classifier.parameters()):
            raise NonFiniteError(
                f"the few-shot training with seed {seed} diverged: lower task.few_shot.learning_rate "
                f"(now {self.learning_rate})."
            )
        return classifier.eval()

    def _new_classifier(self, names: list[str]) -> Classifier:
        network = self.network(num_classes=len(names))
        mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
        return Classifier(network, names, Preprocessing(self.image_size, mean, std))


def _augment(images: Tensor) -> Tensor:
    """Mirror each image with probability 1/2, then apply a random affine map, color jitter and blur."""
    mirrored = (torch.rand(len(images)) < 0.5).to(images.device).view(-1, 1, 1, 1)
    return jitter(torch.where(mirrored, images.flip(-1), images))


@torch.no_grad()
def classify(classifier: Classifier, images: Tensor, device: torch.device, batch_size: int = 128) -> Tensor:
    """Return the index of the predicted label, ``int64 [N]``, of each of the images ``uint8 [N, 3, H, W]``."""
    predictions = [classifier(batch.to(device).float() / 255).argmax(-1).cpu() for batch in images.split(batch_size)]
    return torch.cat(predictions)
