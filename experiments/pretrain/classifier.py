"""Training of an evaluation classifier, whose accuracy is measured on images that are not used for the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
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
from experiments.evaluation.classifier import Classifier, Preprocessing
from experiments.pretrain.training import (
    ImageDataModule,
    TrainingTask,
    adamw,
    check_output,
    final_loss,
    fit,
    report,
    reseed_resumed,
)
from rnri.loading import read_weights
from rnri.validation import NonEmptyStr, dataclass, first_line, unique_items


class ConceptClassifier(LightningModule):
    """Training of a classifier with the cross-entropy loss, label smoothing and mix-up.

    The loss has no class weights. Therefore all classes must have similar numbers of training images.

    Args:
        classifier: the classifier to train.
        lr: learning rate of the head (last layer).
        steps: number of training steps.
        body_lr: learning rate of all layers except the head; None: ``lr`` is used for all layers.
        frozen: names of modules of the network that are not trained.
    """

    def __init__(
        self, classifier: Classifier, lr: float, steps: int, *, body_lr: float | None = None, frozen: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.frozen = tuple(frozen)
        self.lr = lr
        self.steps = steps
        self.body_lr = body_lr or lr
        for part in self._frozen():
            part.requires_grad_(False).eval()  # the method `train` keeps these modules in eval mode

    def _frozen(self) -> list[nn.Module]:
        return [self.classifier.network.get_submodule(name) for name in self.frozen]

    def train(self, mode: bool = True) -> ConceptClassifier:
        """Set the mode (train or eval) of all modules except the frozen modules, which remain in eval mode."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def on_train_start(self) -> None:
        reseed_resumed(self)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images = jitter(batch[0])
        concepts = batch[1]
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
        in_head = {id(parameter) for parameter in head}
        body = [p for p in self.classifier.parameters() if id(p) not in in_head and p.requires_grad]
        groups = [{"params": head, "lr": self.lr}, {"params": body, "lr": self.body_lr}]
        warmup = min(100, max(self.steps // 10, 1))
        return adamw(groups, self.lr, self.steps, warmup=warmup, decay_from=0.1, weight_decay=0.05)


@dataclass
class PretrainClassifier(TrainingTask):
    """The task of ``experiment=pretrain_classifier``: trains a classifier and measures its accuracy on excluded groups.

    Args:
        images: labeled images, which are divided into groups.
        output: folder to which the trained classifier is saved; experiments use the classifier with
            ``data.classifier=FOLDER``.
        architecture: name of a timm model.
        pretrained: whether the training starts from the pretrained weights of timm.
        image_size: side in pixels of the square input images of the network.
        batch_size: number of images per training step.
        lr: learning rate of the head (last layer).
        init_from: ``.pth`` file with the initial weights, whose tensors have the same order as the tensors of the
            network. The tensors of the head are ignored. None: no file is loaded.
        frozen: names of modules of the network that are not trained.
        body_lr: learning rate of all layers except the head; None: ``lr`` is used for all layers.
        excluded: groups of ``images`` on which the accuracy is measured, and which are not used for the training.
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
        """Read the images and build the network.

        Raises:
            ValueError: the images or a setting are invalid, or the network cannot be created.
        """
        self.images.prepare(self.image_size)
        self.trained_groups = [group for group in self.images.groups if group not in self.excluded]
        unknown = [group for group in self.excluded if group not in self.images.groups]
        if unknown or not self.trained_groups:
            raise ValueError(
                f"task.excluded={list(self.excluded)}: must be some, but not all, of the groups "
                f"{', '.join(self.images.groups)}."
            )
        if missing := self.images.missing_labels(self.trained_groups):
            raise ValueError(
                f"task.excluded={list(self.excluded)} leaves no training image of {missing[0]!r}: add images to "
                f"{' or '.join(self.trained_groups)}, or exclude fewer groups."
            )
        self.classifier = self._untrained()
        self._check_frozen()
        check_output(self.output)

    def _untrained(self) -> Classifier:
        try:
            network = timm.create_model(
                self.architecture, pretrained=self.pretrained, num_classes=len(self.images.labels)
            )
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                images = torch.zeros(min(self.batch_size, 2), 3, self.image_size, self.image_size)
                network.eval()(images)
                deepcopy(network).train()(images)
            next(network.get_classifier().parameters())
        except Exception as error:  # timm and the download of weights raise exceptions of many types
            raise ValueError(
                f"task.architecture={self.architecture!r} with task.pretrained={self.pretrained} and "
                f"task.image_size={self.image_size} and task.batch_size={self.batch_size} cannot be created by timm "
                f"({first_line(error)}): choose other values."
            ) from None
        if self.init_from is not None:
            load_in_order(network, self.init_from)
        usual = timm.data.resolve_model_data_config(network)
        network = network.to(memory_format=torch.channels_last)  # faster on CPUs
        preprocessing = Preprocessing(self.image_size, usual["mean"], usual["std"])
        return Classifier(network.train(), self.images.labels, preprocessing)

    def _check_frozen(self) -> None:
        parts = [name for name, _ in self.classifier.network.named_modules() if name]
        for name in self.frozen:
            if name not in parts:
                close = ", ".join(get_close_matches(name, parts, cutoff=0.0))
                raise ValueError(
                    f"task.frozen: {name!r} is not a module of {self.architecture}; choose a module, such as {close}."
                )

    def run(self, trainer: Trainer) -> None:
        unseen = {group: self.images.dataset([group], augment=False) for group in self.excluded}
        module = ConceptClassifier(
            self.classifier, self.lr, trainer.max_steps, body_lr=self.body_lr, frozen=self.frozen
        )
        train = self.images.dataset(self.trained_groups, augment=True)
        validation = ConcatDataset(unseen.values()) if unseen else None
        fit(trainer, module, ImageDataModule(train, validation, self.batch_size, workers=self.images.workers))
        self.classifier.eval()
        self.classifier.save(self.output, self.architecture)
        results = {"steps": trainer.global_step, **final_loss(trainer)}
        report(trainer, results | (accuracies(self.classifier, unseen) if unseen else {}))


def load_in_order(network: nn.Module, path: str) -> None:
    """Copy the tensors of the file ``path`` into ``network`` in the order of the file, except the tensors of the head.

    The names of the tensors are ignored, because libraries name the layers of the same network differently.

    Raises:
        ValueError: the file cannot be read, or the number or shapes of its tensors do not match the network.
    """
    try:
        tensors = list(read_weights(path).values())
    except ValueError as error:
        raise ValueError(f"task.init_from: {error}; set it to a .pth file.") from None
    expected = network.state_dict()
    head = {id(p) for p in network.get_classifier().parameters()}
    in_head = {name for name, p in network.named_parameters() if id(p) in head}
    names = [name for name in expected if name not in in_head]
    fits = len(tensors) == len(expected) and all(
        tensors[k].shape == tensor.shape for k, (name, tensor) in enumerate(expected.items()) if name in names
    )
    if not fits:
        raise ValueError(
            f"task.init_from={path!r} has {len(tensors)} tensors, whose order and shapes do not match the "
            f"{len(expected)} tensors of this network: set task.architecture to the architecture of the file, or "
            "choose another file."
        )
    state = dict(zip(expected, tensors, strict=True))
    network.load_state_dict({name: state[name] for name in names}, strict=False)


@torch.no_grad()
def accuracies(classifier: Classifier, unseen: Mapping[str, Dataset]) -> dict[str, float]:
    """Return a dict from the name of each group of images in ``unseen`` to the accuracy of ``classifier`` in [0, 1].

    The returned dictionary also contains the accuracy on all groups together (``accuracy``) and the number of all
    images (``n``).
    """
    correct = {
        group: torch.cat([classifier(x).argmax(-1) == y for x, y in DataLoader(images, 64)]).float()
        for group, images in unseen.items()
    }
    every = torch.cat(list(correct.values()))
    return {group: values.mean().item() for group, values in correct.items()} | {
        "accuracy": every.mean().item(),
        "n": len(every),
    }
