"""Trains a judge, and measures it on the groups of images that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated

import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from experiments.data.augmentations import jitter
from experiments.data.labeled import LabeledImages
from experiments.evaluation.classifier import Classifier
from experiments.pretrain.training import ImageDataModule, adamw, check_output, final_loss, fit, report
from rnri.validation import NonEmptyStr, dataclass, unique_items


class ConceptClassifier(LightningModule):
    """Cross-entropy with smoothed labels and mix-up; every concept has about as many drawings as any other.

    The head learns at ``lr``, the rest at ``body_lr``, the parts ``frozen`` of the network not at all.
    """

    def __init__(
        self, classifier: Classifier, lr: float, steps: int, body_lr: float | None = None, frozen: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.classifier, self.frozen = classifier, tuple(frozen)
        self.lr, self.steps, self.body_lr = lr, steps, body_lr or lr
        for part in self._frozen():
            part.requires_grad_(False).eval()  # Lightning leaves modules in the mode that it finds

    def _frozen(self) -> list[nn.Module]:
        return [self.classifier.network.get_submodule(name) for name in self.frozen]

    def train(self, mode: bool = True) -> ConceptClassifier:
        """As of any module, but the frozen parts keep the statistics that they came with."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def on_train_start(self) -> None:
        if self.global_step:  # other changes of the drawings than before the training was interrupted
            torch.manual_seed(torch.initial_seed() + self.global_step)

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
        head = list(self.classifier.network.get_classifier().parameters())
        own = {id(parameter) for parameter in head}
        body = [p for p in self.classifier.parameters() if id(p) not in own and p.requires_grad]
        groups = [{"params": head, "lr": self.lr}, {"params": body, "lr": self.body_lr}]
        warmup = min(100, max(self.steps // 10, 1))
        return adamw(groups, self.lr, self.steps, warmup=warmup, decay_from=0.1, weight_decay=0.05)


@dataclass
class PretrainClassifier:
    """The task behind ``experiment=pretrain_classifier``: a judge in ``output`` and its accuracy on what it never saw.

    Args:
        images: what it learns.
        output: folder of the judge, to be named as ``data.classifier``.
        architecture: of timm.
        pretrained: start from timm's own weights instead of random ones.
        init_from: start from the weights in this ``.pth`` file, whose tensors have, in order, the shapes of the network's;
            the head's are left aside.
        frozen: parts of the network, by the names of its modules, that stay as they start.
        image_size: side in pixels that the network works on.
        batch_size, lr: of the training.
        body_lr: of all but the head; None is ``lr``.
        excluded: groups of ``images`` that are not learned; the accuracy on each is reported.
    """

    images: LabeledImages
    output: NonEmptyStr
    architecture: NonEmptyStr
    pretrained: bool
    image_size: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    init_from: NonEmptyStr | None = None
    frozen: Annotated[Sequence[NonEmptyStr], unique_items] = ()
    body_lr: PositiveFloat | None = None
    excluded: Annotated[Sequence[NonEmptyStr], unique_items] = ()

    def prepare(self, trainer: Trainer) -> None:
        """Finds the images and builds the network; ValueError says what is wrong with them."""
        self.images.prepare(self.image_size)
        self.learned = [group for group in self.images.groups if group not in self.excluded]
        unknown = [group for group in self.excluded if group not in self.images.groups]
        if unknown or not self.learned:
            raise ValueError(
                f"task.excluded={list(self.excluded)}: name some, but not all, of {', '.join(self.images.groups)}."
            )
        if lacking := self.images.missing_labels(self.learned):
            raise ValueError(
                f"task.excluded={list(self.excluded)} leaves no image of {lacking[0]!r} to learn from: add some to "
                f"{' or '.join(self.learned)}, or leave less out."
            )
        self.classifier = self._untrained()
        self._check_frozen()
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
        if self.init_from is not None:
            load_in_order(network, self.init_from)
        usual = timm.data.resolve_model_data_config(network)
        network = network.to(memory_format=torch.channels_last)  # faster on CPUs; what is saved is contiguous
        return Classifier(network.train(), self.images.labels, self.image_size, usual["mean"], usual["std"])

    def _check_frozen(self) -> None:
        parts = [name for name, _ in self.classifier.network.named_modules() if name]
        for name in self.frozen:
            if name not in parts:
                near = ", ".join(get_close_matches(name, parts, cutoff=0.0))
                raise ValueError(f"task.frozen names {name!r}, no part of {self.architecture}; nearest: {near}.")

    def run(self, trainer: Trainer) -> None:
        unseen = {group: self.images.dataset([group], augment=False) for group in self.excluded}
        module = ConceptClassifier(self.classifier, self.lr, trainer.max_steps, self.body_lr, self.frozen)
        learned = self.images.dataset(self.learned, augment=True)
        validation = ConcatDataset(unseen.values()) if unseen else None
        fit(trainer, module, ImageDataModule(learned, validation, self.batch_size, workers=self.images.workers))
        self.classifier.eval()
        self.classifier.save(self.output, self.architecture)
        told = {"steps": trainer.global_step, **final_loss(trainer)}
        report(trainer, told | (accuracies(self.classifier, unseen) if unseen else {}))


def load_in_order(network: nn.Module, path: str) -> None:
    """Gives ``network`` the tensors of a file one after another, all but its head's.

    Names are not looked at: other libraries have other names for the parts of the same network.

    Raises:
        ValueError: the file cannot be read, or its tensors are not those of such a network.
    """
    try:
        given = list(torch.load(path, weights_only=True, map_location="cpu").values())
    except Exception as error:  # of pickle and of zip archives
        said = str(error).splitlines()[0]
        raise ValueError(f"task.init_from={path!r} cannot be read as weights ({said}): name a .pth file.") from None
    needed, head = network.state_dict(), {id(p) for p in network.get_classifier().parameters()}
    aside = {name for name, p in network.named_parameters() if id(p) in head}
    names = [name for name in needed if name not in aside]
    fits = len(given) == len(needed) and all(
        given[k].shape == tensor.shape for k, (name, tensor) in enumerate(needed.items()) if name in names
    )
    if not fits:
        raise ValueError(
            f"task.init_from={path!r} holds {len(given)} tensors, not in order the {len(needed)} of this network: "
            "choose its task.architecture, or another file."
        )
    found = dict(zip(needed, given, strict=True))
    network.load_state_dict({name: found[name] for name in names}, strict=False)


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
