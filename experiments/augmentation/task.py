"""Few-shot augmentation: do generated images of rare concepts improve a classifier that is trained on few real images?

To evaluate a method, a classifier is trained from scratch on ``k`` real reference images per concept and on the images
that the method generated. The classifier is tested on held-out images: real images on which neither the classifier nor
the text-to-image model was trained. The first row of the results table belongs to a classifier that is trained on the
reference images only. Methods differ only in the generated images. The number of training steps, the batch size and the
random seeds of the training are the same for all methods.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from pydantic import PositiveInt
from torch import Tensor

from experiments.augmentation.few_shot import FewShot, classify
from experiments.augmentation.report import Predictions, write_report
from experiments.cache.atomic import digest
from experiments.cache.key import fingerprint_config
from experiments.cache.store import UnitStore, content_hash
from experiments.planning.cost import Cost, StagePlan
from experiments.rare_concepts.arms_experiment import ArmsExperiment, ExperimentStage
from experiments.rare_concepts.context import RunContext
from experiments.rare_concepts.image_stage import ImageStage
from experiments.runtime.progress import RunProgress
from experiments.runtime.unit_queue import CachedUnitDataModule, Stage
from rnri.validation import dataclass

REFERENCES_ONLY = "references only"
PREDICTION_BYTES = 8  # size in bytes of the stored label of one test image, an int64

Training = tuple[str, int]
"""Identifies the training of one classifier: the name of the method, and the index of the training, from 0."""


class TrainingJobs(CachedUnitDataModule):
    """Lightning data module of the classifier trainings whose predicted labels are not on disk yet."""

    unit_noun = "classifier"

    def __init__(
        self,
        jobs: Sequence[Training],
        stores: Mapping[str, UnitStore],
        progress: RunProgress,
        leases: Path,
        *,
        steps: int,
    ) -> None:
        super().__init__(jobs, stores, progress, leases)
        self.steps = steps

    def part(self, unit: Training) -> str:
        return f"training with {unit[0]}"

    def cost(self, unit: Training) -> float:
        """Return the number of training steps, each of which the progress bar counts as a network evaluation."""
        return self.steps

    def address(self, unit: Training) -> tuple[str, str]:
        method, index = unit
        return method, str(index)


@plain_dataclass(frozen=True)
class TrainingStage:
    """The stage that trains the few-shot classifiers, after the stage that generates the images.

    A unit (smallest piece of resumable work) is the training of one classifier. The result of a unit is the
    classifier's predicted labels of the test images.

    Attributes:
        context: inputs and settings of the run, such as concepts and arms.
        few_shot: training procedure of a classifier.
        trainings: number of classifiers that are trained per method; each classifier has a different random seed.
        test_images: held-out images, ``uint8 [N, 3, H, W]``.
        truth: index of the concept of each test image, ``int64 [N]``.
    """

    context: RunContext
    few_shot: FewShot
    trainings: int
    test_images: Tensor
    truth: Tensor

    @property
    def methods(self) -> list[str]:
        """Names of the compared methods. The first method trains on the reference images only."""
        return [REFERENCES_ONLY, *self.context.arms]

    @property
    def num_units(self) -> int:
        return self.trainings * len(self.methods)

    def plan(self) -> list[StagePlan]:
        size = self.num_units * PREDICTION_BYTES * len(self.truth)
        return [StagePlan("few-shot trainings", self.num_units, 0, Cost(), size)]  # the denoiser is not called

    def build(self, leases: Path, progress: RunProgress) -> Stage:
        """Return the Lightning module and the data module that train all classifiers without a stored result."""
        jobs = [(method, k) for method in self.methods for k in range(self.trainings)]
        stores = {method: self.units(method) for method in self.methods}
        return FewShotModule(self, stores), TrainingJobs(jobs, stores, progress, leases, steps=self.few_shot.steps)

    def train(self, method: str, k: int, device: torch.device) -> Tensor:
        """Train the ``k``-th classifier of a method; return its labels for the N test images, ``int64 [N]``."""
        names = [concept.name for concept in self.context.concepts]
        images, labels = self._training_set(method)
        classifier = self.few_shot.train(images, labels, names, seed=k, device=device)
        return classify(classifier, self.test_images, device)

    def _training_set(self, method: str) -> tuple[Tensor, Tensor]:
        """Return the M training images of a method, ``uint8 [M, 3, H, W]``, and the concept index of each image.

        The real reference images precede the generated images.
        """
        concepts = self.context.concepts
        images = [torch.from_numpy(concept.references[: self.context.references]) for concept in concepts]
        if method != REFERENCES_ONLY:
            units = self.context.units(method)
            images += [units.read(concept.key)[0]["images"] for concept in concepts]
        labels = [torch.full((len(group),), k % len(concepts)) for k, group in enumerate(images)]
        return torch.cat(images), torch.cat(labels)

    def units(self, method: str) -> UnitStore:
        """Return the store with the results of all trainings of a method.

        The settings of the store include all concepts, because the concepts are the classes of a classifier.
        """
        settings = {
            "few_shot": fingerprint_config(self.few_shot),
            "numerics": dict(self.context.networks.numerics),
            "references": self.context.references,
            "concepts": digest({"keys": [concept.key for concept in self.context.concepts]}),
            "tests": content_hash(self.test_images),
            "images": None if method == REFERENCES_ONLY else self.context.units(method).settings,
        }
        return UnitStore(self.context.run_dir / "trainings" / method.replace(" ", "_"), settings)

    def predictions(self, method: str) -> Predictions:
        """Read from disk the predicted labels of all trained classifiers of a method."""
        units = [self.units(method).read(str(k)) for k in range(self.trainings)]
        predictions = torch.stack([tensors["predictions"] for tensors, _ in units])
        seconds = [record["seconds"] for _, record in units]
        return Predictions(predictions, self.truth, self.context.concepts, seconds)


class FewShotModule(LightningModule):
    """Lightning module whose predict step trains one classifier and stores the predicted labels of held-out images."""

    def __init__(self, stage: TrainingStage, stores: Mapping[str, UnitStore]) -> None:
        super().__init__()
        self.stage = stage
        self.stores = stores

    def predict_step(self, training: Training, _: int) -> None:
        method, k = training
        start = time.perf_counter()
        with torch.enable_grad():
            predictions = self.stage.train(method, k, self.device)
        self.stores[method].write(str(k), {"predictions": predictions}, {"seconds": time.perf_counter() - start})


@dataclass(kw_only=True)
class AugmentationExperiment(ArmsExperiment):
    """The task of ``experiment=augmentation``; the results table has one row per method.

    Args:
        few_shot: training procedure of a classifier.
        trainings: number of classifiers that are trained per method. The classifiers of a method differ in their
            initial weights, batches and image augmentation.
    """

    few_shot: FewShot
    trainings: PositiveInt

    def prepare(self, trainer: Trainer) -> None:
        self.few_shot.check()
        super().prepare(trainer)
        concepts = self.context.concepts
        if len(concepts) < 2:
            raise ValueError("data.concepts: the classifier needs at least 2 concepts, got 1; select more concepts.")
        size = self.networks.model.image_size
        images = {name: images.resized(size) for name, images in self.labeled_real_images.items()}
        missing = [concept.name for concept in concepts if concept.name not in images]
        if missing:
            raise ValueError(
                f"the concept {missing[0]!r} has no real images except its reference images: add images of the concept "
                "to the folder of real images, or do not select the concept."
            )
        self._training_stage = TrainingStage(
            self.context,
            self.few_shot,
            self.trainings,
            test_images=torch.cat([torch.from_numpy(images[concept.name][:]) for concept in concepts]),
            truth=torch.cat([torch.full((len(images[c.name]),), k) for k, c in enumerate(concepts)]),
        )

    def stages(self) -> list[ExperimentStage]:
        return [ImageStage(self.context), self._training_stage]

    def report(self, loggers: Sequence[Logger]) -> float:
        """Write the report; return the accuracy of the last method."""
        rows = write_report(
            self.context.run_dir,
            {method: self._training_stage.predictions(method) for method in self._training_stage.methods},
            self.evaluator.arms(),
            self.context.settings() | {"few_shot": fingerprint_config(self.few_shot), "trainings": self.trainings},
            loggers=loggers,
            references=self.references,
            seed=self.seed,
            step=self.num_units,
        )
        return rows[-1]["accuracy"]
