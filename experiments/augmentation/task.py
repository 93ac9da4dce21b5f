"""Few-shot semantic augmentation: do generated images of rare concepts help a classifier that has few real ones?

The protocol, the same for every method: a network is trained from its first weight on ``k`` references a concept and
the images that the method made of it, and names real images that neither it nor the model has seen. The first row has
the references alone. Methods differ in their generated images only: steps, batches and seeds of the training are equal.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from pydantic import PositiveInt
from torch import Tensor

from experiments.augmentation.few_shot import FewShot, classify
from experiments.augmentation.report import Predictions, write_report
from experiments.cache.atomic import digest
from experiments.cache.key import describe
from experiments.cache.store import UnitStore, content_hash
from experiments.planning.cost import Cost, Planned
from experiments.rare_concepts.task import RareConceptsExperiment
from experiments.runtime.progress import Progress
from experiments.runtime.unit_queue import CachedUnitDataModule, Stage, carry_out
from rnri.validation import dataclass

REAL_ONLY = "references only"


class TrainingJobs(CachedUnitDataModule):
    """The trainings that are not on disk yet: a method and a number each."""

    def address(self, unit: tuple[str, int]) -> tuple[str, str]:
        name, k = unit
        return name, str(k)


class FewShotModule(LightningModule):
    """Trains a classifier a step and writes what it says of the held-out images."""

    def __init__(self, task: AugmentationExperiment, stores: Mapping[str, UnitStore], progress: Progress) -> None:
        super().__init__()
        self.task, self.stores, self.progress = task, stores, progress

    def predict_step(self, job: tuple[str, int], _: int) -> None:
        name, k = job
        self.progress.stage(name)
        start = time.perf_counter()
        with torch.enable_grad():
            predictions = self.task.train(name, k, self.device)
        self.stores[name].write(str(k), {"predictions": predictions}, {"seconds": time.perf_counter() - start})
        self.progress.finish(1)


@dataclass(kw_only=True)
class AugmentationExperiment(RareConceptsExperiment):
    """The task behind ``experiment=augmentation``. A training is a unit, as a concept under an arm is.

    Args:
        few_shot: how classifiers are trained.
        trainings: classifiers a method; they differ in initial weights, order and changes of the images.
    """

    few_shot: FewShot
    trainings: PositiveInt

    def prepare(self, trainer: Trainer) -> None:
        super().prepare(trainer)
        if len(self.chosen) < 2:
            raise ValueError("one concept leaves a classifier nothing to tell apart: choose at least 2 concepts.")
        size = self.networks.model.image_size
        found = {name: images.resized(size) for name, images in self.source.held_out().items()}
        missing = [concept.name for concept in self.chosen if concept.name not in found]
        if missing:
            raise ValueError(
                f"there is no real image of {missing[0]!r} besides the references: add some under its name to the "
                "folder of real images, or leave the concept out."
            )
        self.tests = torch.cat([torch.from_numpy(found[concept.name][:]) for concept in self.chosen])
        self.truth = torch.cat([torch.full((len(found[c.name]),), k) for k, c in enumerate(self.chosen)])

    def run(self, trainer: Trainer) -> float:
        """Makes the images, then trains what is not on disk yet; then the first process reports."""
        self._announce(trainer.world_size)
        carry_out(trainer, self.images_stage(), self._trainings_stage())
        return self.report(trainer.loggers) if self.writes_report(trainer) else 0.0

    def plan(self) -> list[Planned]:
        """The images, and the trainings, whose network is none of the model's."""
        names = (REAL_ONLY, *self.arms)
        units = self.trainings * len(names)
        return [*super().plan(), Planned("few-shot trainings", units, 0, Cost(), units * 8 * len(self.truth))]

    @property
    def all_units(self) -> int:
        return super().all_units + self.trainings * (1 + len(self.arms))

    def _trainings_stage(self) -> Stage:
        progress = Progress("few-shot training", "classifier")
        jobs = [(name, k) for name in (REAL_ONLY, *self.arms) for k in range(self.trainings)]
        stores = {name: self._verdicts(name) for name in (REAL_ONLY, *self.arms)}
        return FewShotModule(self, stores, progress), TrainingJobs(jobs, stores, progress, self.claims)

    def train(self, name: str, k: int, device: torch.device) -> Tensor:
        """What the ``k``-th classifier of a method says of the held-out images: indices ``int64 [N]``."""
        names = [concept.name for concept in self.chosen]
        classifier = self.few_shot.train(*self._training_set(name), names, k, device)
        return classify(classifier, self.tests, device)

    def _training_set(self, name: str) -> tuple[Tensor, Tensor]:
        """Images ``uint8 [N, 3, H, W]``, references first, and the index of each one's concept."""
        images = [torch.from_numpy(concept.references[: self.references]) for concept in self.chosen]
        if name != REAL_ONLY:
            units = self.units(name, self.arms[name])
            images += [units.read(concept.key)[0]["images"] for concept in self.chosen]
        labels = [torch.full((len(own),), k % len(self.chosen)) for k, own in enumerate(images)]
        return torch.cat(images), torch.cat(labels)

    def _verdicts(self, name: str) -> UnitStore:
        """Finished trainings of a method; they depend on every concept, for a classifier knows them all."""
        settings = {
            "few_shot": describe(self.few_shot),
            "numerics": self.numerics,
            "references": self.references,
            "concepts": digest({"keys": [concept.key for concept in self.chosen]}),
            "tests": content_hash(self.tests),
            "images": None if name == REAL_ONLY else self.units(name, self.arms[name]).settings,
        }
        return UnitStore(Path(self.run_dir) / "trainings" / name.replace(" ", "_"), settings)

    def report(self, loggers: Sequence[Logger]) -> float:
        """Writes the results; returns the last arm's accuracy."""
        predictions = {}
        for name in (REAL_ONLY, *self.arms):
            found = [self._verdicts(name).read(str(k)) for k in range(self.trainings)]
            predictions = torch.stack([tensors["predictions"] for tensors, _ in found])
            seconds = [record["seconds"] for _, record in found]
            predictions[name] = Predictions(predictions, self.truth, self.chosen, seconds)
        judged = {name: self._judge(name, arm) for name, arm in self.arms.items()}
        settings = self.dependencies() | {"few_shot": describe(self.few_shot), "trainings": self.trainings}
        rows = write_report(
            Path(self.run_dir), predictions, judged, settings, loggers, k=self.references, seed=self.seed,
            step=self.all_units,
        )  # fmt: skip
        return rows[-1]["accuracy"]
