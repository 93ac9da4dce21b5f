"""Trains the judge over all concepts, first without some designers to measure it, then on every drawing."""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from experiments.data.emoji import AugmentedDrawings, Drawings, check_corpus
from experiments.data.jitter import jitter
from experiments.judges.classifier import Classifier
from experiments.pretrain.fitting import Pictures, adamw, fit, report

SPLITS = ("corpus", "reference", "fid")


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

    With ``left_out`` (designers) nothing is saved: the run reports the accuracy on each of them. Without, the
    network sees every drawing and is saved to ``output``.
    """

    corpus: str
    output: str
    architecture: str
    batch_size: int
    lr: float
    left_out: tuple[str, ...] = ()

    def prepare(self, trainer: Trainer) -> None:
        check_corpus(self.corpus)

    def run(self, trainer: Trainer) -> None:
        drawings, unseen = (Drawings(self.corpus, SPLITS) for _ in range(2))
        names = {row["concept_id"]: row["concept"] for row in drawings.rows}
        drawings.rows = [row for row in drawings.rows if row["designer"] not in self.left_out]
        unseen.rows = [row for row in unseen.rows if row["designer"] in self.left_out]
        network = timm.create_model(self.architecture, num_classes=len(names))
        labels = [names[k] for k in sorted(names)]
        classifier = Classifier(network, labels, 64, timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
        module = ConceptClassifier(classifier, self.lr, trainer.max_steps)
        validation = AugmentedDrawings(unseen, augmentations=1) if unseen.rows else None
        fit(trainer, module, Pictures(AugmentedDrawings(drawings), validation, self.batch_size))
        if self.left_out:
            report(trainer, self.accuracies(classifier.eval(), unseen))
        else:
            classifier.save(self.output, self.architecture)
            report(trainer, {"loss": float(trainer.callback_metrics["loss"])})

    @torch.no_grad()
    def accuracies(self, classifier: Classifier, unseen: Drawings) -> dict[str, float]:
        data = AugmentedDrawings(unseen, augmentations=1)
        hits = torch.cat([classifier(x).argmax(-1) == y for x, y in DataLoader(data, 64)]).float()
        designers = [row["designer"] for row in unseen.rows]
        result = {d: hits[[k for k, e in enumerate(designers) if e == d]].mean().item() for d in self.left_out}
        return result | {"accuracy": hits.mean().item(), "n": len(hits)}
