"""Trains a judge, first without some groups of images to measure it, then on all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from checked import Count, Name, Positive, dataclass, distinct
from experiments.data.jitter import jitter
from experiments.data.labelled import LabelledImages
from experiments.judges.classifier import Classifier
from experiments.pretrain.fitting import Pictures, adamw, check_output, fit, last_loss, report


class ConceptClassifier(LightningModule):
    """Cross-entropy with smoothed labels and mix-up; every concept has about as many drawings as any other."""

    def __init__(self, classifier: Classifier, lr: float, steps: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.lr, self.steps = lr, steps

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, concepts = jitter(batch[0]), batch[1]
        share = torch.distributions.Beta(0.4, 0.4).sample().clamp(0.5).item()
        other = torch.randperm(len(images))
        logits = self.classifier(share * images + (1 - share) * images[other]).float()
        losses = [F.cross_entropy(logits, target, label_smoothing=0.1) for target in (concepts, concepts[other])]
        loss = share * losses[0] + (1 - share) * losses[1]
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        hits = (self.classifier(batch[0]).argmax(-1) == batch[1]).float()
        self.log("accuracy", hits.mean(), prog_bar=True, batch_size=len(hits))

    def configure_optimizers(self) -> dict:
        return adamw(self, self.lr, self.steps, warmup=100, decay_from=0.1, weight_decay=0.05)


@dataclass
class PretrainClassifier:
    """The task behind ``experiment=pretrain_classifier``.

    With ``left_out`` nothing is saved: the run reports the accuracy on each of these groups. Without, the network sees
    every image and is saved to ``output``.

    Args:
        images: what it learns.
        output: folder of the judge, to be named as ``data.classifier``.
        architecture: of timm.
        pretrained: start from timm's own weights instead of random ones.
        image_size: side in pixels that the network works on.
        batch_size, lr: of the training.
        left_out: groups of ``images``.
    """

    images: LabelledImages
    output: Name
    architecture: Name
    pretrained: bool
    image_size: Count
    batch_size: Count
    lr: Positive
    left_out: Annotated[Sequence[Name], distinct] = ()

    def prepare(self, trainer: Trainer) -> None:
        """Finds the images and builds the network; ValueError says what is wrong with them."""
        self.images.prepare(self.image_size)
        self.learned = [group for group in self.images.groups if group not in self.left_out]
        unknown = [group for group in self.left_out if group not in self.images.groups]
        if unknown or not self.learned:
            raise ValueError(
                f"task.left_out={list(self.left_out)}: name some, but not all, of {', '.join(self.images.groups)}."
            )
        if lacking := self.images.lacking(self.learned):
            raise ValueError(
                f"task.left_out={list(self.left_out)} leaves no image of {lacking[0]!r} to learn from: add some to "
                f"{' or '.join(self.learned)}, or leave less out."
            )
        self.classifier = self._untrained()
        if not self.left_out:
            check_output(self.output)

    def _untrained(self) -> Classifier:
        try:
            network = timm.create_model(
                self.architecture, pretrained=self.pretrained, num_classes=len(self.images.labels)
            )
            with torch.no_grad():
                network.eval()(torch.zeros(1, 3, self.image_size, self.image_size))
        except Exception as error:  # timm's own, and those of downloads
            raise ValueError(
                f"task.architecture={self.architecture!r} with task.pretrained={self.pretrained} and "
                f"task.image_size={self.image_size} cannot be had from timm ({error}): choose others."
            ) from None
        usual = timm.data.resolve_model_data_config(network)
        return Classifier(network.train(), self.images.labels, self.image_size, usual["mean"], usual["std"])

    def run(self, trainer: Trainer) -> None:
        unseen = {group: self.images.pictures([group], changed=False) for group in self.left_out}
        module = ConceptClassifier(self.classifier, self.lr, trainer.max_steps)
        learned = self.images.pictures(self.learned, changed=True)
        validation = ConcatDataset(unseen.values()) if unseen else None
        fit(trainer, module, Pictures(learned, validation, self.batch_size, workers=self.images.workers))
        if unseen:
            report(trainer, accuracies(self.classifier.eval(), unseen))
        else:
            self.classifier.save(self.output, self.architecture)
            report(trainer, {"steps": trainer.global_step, **last_loss(trainer)})


@torch.no_grad()
def accuracies(classifier: Classifier, unseen: Mapping[str, Dataset]) -> dict[str, float]:
    """The share of images named rightly, by group and of all."""
    hits = {
        group: torch.cat([classifier(x).argmax(-1) == y for x, y in DataLoader(images, 64)]).float()
        for group, images in unseen.items()
    }
    every = torch.cat(list(hits.values()))
    return {group: own.mean().item() for group, own in hits.items()} | {
        "accuracy": every.mean().item(),
        "n": len(every),
    }
