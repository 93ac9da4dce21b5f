"""Base class of the experiments that compare arms (pipelines that generate images of concepts)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import numpy as np
from annotated_types import MinLen
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from pydantic import PositiveInt

from experiments.base import Networks, load_networks
from experiments.data.concepts import (
    Buckets,
    Concept,
    ConceptSelection,
    ConceptSource,
    limit_references,
    select_concepts,
)
from experiments.planning.cost import StagePlan
from experiments.rare_concepts.arm import Arm
from experiments.rare_concepts.context import RunContext
from experiments.rare_concepts.image_stage import ImageStage
from experiments.runtime.progress import RunProgress
from experiments.runtime.unit_queue import ResumableRun, Stage, run_stages
from rnri import LatentDiffusion, check_schedule
from rnri.validation import ConfigError, NonEmptyStr, RandomSeed, dataclass
from seedselect import ClipFeatures

if TYPE_CHECKING:
    from experiments.rare_concepts.evaluator import Evaluator


THRESHOLD_CONCEPTS = 48
"""Minimum number of concepts whose real images define the distance below which a generated image counts as a copy.

If a run has fewer concepts, real images of other concepts of the data source are used, too.
"""


REAL = "real"
"""Name of the row of the results that contains the scores of the real reference images."""


class ExperimentStage(Protocol):
    """One part of an experiment, such as the generation of images. The results of a stage are cached on disk."""

    @property
    def num_units(self) -> int: ...

    def plan(self) -> list[StagePlan]:
        """Return the estimated cost of computing the results of this stage that are not on disk yet."""

    def build(self, leases: Path, progress: RunProgress) -> Stage:
        """Return the Lightning module and data module that compute the results of this stage."""


@dataclass(kw_only=True)
class ArmsExperiment(ResumableRun, ABC):
    """Base class of the experiments that compare arms (pipelines). A subclass implements ``stages`` and ``report``.

    A unit of work is the generation of the images of one concept with one arm. The results of a unit of work are
    written to disk as soon as they are computed. A resumed run therefore repeats only the units of work that the
    interrupted run was computing.

    The method ``prepare`` sets the attribute ``context``, which contains the inputs of all stages.

    Args:
        source: data source of the concepts and their images.
        concepts: the selected concepts (:func:`experiments.data.concepts.select_concepts`).
        buckets: the selected buckets, which are groups of concepts of similar frequency.
        model: function that loads the text-to-image model on the device ``device``.
        clip: function that loads CLIP on the device ``device``.
        classifier: folder, Hugging Face Hub id or timm model name of the evaluation classifier.
        second_classifier: folder, Hugging Face Hub id or timm model name of a second evaluation classifier, whose
            accuracy is a column of the results; None if one classifier is enough.
        arms: dict from names to the compared arms (pipelines), in the order of the table.
        steps: number of steps of inversion and of sampling. Both use the same number, because an inverted seed
            regenerates its image only with the schedule of the inversion.
        samples: number of generated images per concept.
        references: number of reference images per concept.
        concepts_per_batch: number of concepts that are computed in one batch. The batch size changes speed and memory,
            but no results.
        gradient_checkpointing: whether the backward pass recomputes each sampling step instead of storing its
            activations. Recomputing takes a third more time, but the memory does not grow with the number of steps.
        inception: file with the weights of the Inception-v3 network for FID and KID; None: FID and KID use the features
            of the evaluation classifier.
        sscd: TorchScript file of SSCD, a network that measures how similar generated images are to the reference
            images; None: the similarities are not measured.
        seed: random seed of the initial noise, of the selection of concepts and of the bootstrap.
        run_dir: folder that all outputs are written to.
    """

    source: ConceptSource
    concepts: ConceptSelection
    buckets: Buckets
    model: Callable[..., LatentDiffusion]
    clip: Callable[..., ClipFeatures]
    classifier: NonEmptyStr
    arms: Annotated[Mapping[str, Arm], MinLen(1)]
    steps: PositiveInt
    samples: PositiveInt
    references: PositiveInt
    concepts_per_batch: PositiveInt
    gradient_checkpointing: bool
    seed: RandomSeed
    run_dir: NonEmptyStr
    second_classifier: NonEmptyStr | None = None
    inception: NonEmptyStr | None = None
    sscd: NonEmptyStr | None = None

    @property
    def networks(self) -> Networks:
        return self.context.networks

    @property
    def evaluator(self) -> Evaluator:
        """The object that classifies and scores the generated images."""
        from experiments.rare_concepts.evaluator import Evaluator

        return Evaluator(
            self.context,
            self.real_images,
            self.labeled_real_images,
            self.other_concepts,
            extractor=self.extractor,
            sscd=self.sscd_network,
        )

    @property
    def num_units(self) -> int:
        """Total number of units (pieces of resumable work) of all stages."""
        return sum(stage.num_units for stage in self.stages())

    def prepare(self, trainer: Trainer) -> None:
        arms = {name: self._with_step_weights(name, arm) for name, arm in self.arms.items()}
        all_concepts = self.source.concepts()
        concepts = select_concepts(all_concepts, self.concepts, self.buckets, self.seed)
        others = self._other_concepts(all_concepts, concepts)
        concepts = limit_references(concepts, self.references)
        real = self.source.real_images()
        labeled_real_images = self.source.labeled_real_images()
        networks = load_networks(
            trainer,
            [self.steps],
            model=self.model,
            clip=self.clip,
            classifier=self.classifier,
            second_classifier=self.second_classifier,
        )
        size = networks.model.image_size
        self.context = RunContext(
            arms=arms,
            concepts=[concept.resized(size) for concept in concepts],
            networks=networks,
            run_dir=Path(self.run_dir),
            steps=self.steps,
            samples=self.samples,
            references=self.references,
            concepts_per_batch=self.concepts_per_batch,
            gradient_checkpointing=self.gradient_checkpointing,
            seed=self.seed,
        )
        self.other_concepts = [concept.resized(size) for concept in limit_references(others, self.references)]
        self.real_images = real.resized(size)
        self.labeled_real_images = labeled_real_images
        self.extractor = None
        if self.inception:
            from experiments.evaluation.inception import load_inception

            self.extractor = load_inception(self.inception, trainer.strategy.root_device)
        self.sscd_network = None
        if self.sscd:
            from experiments.evaluation.sscd import load_sscd

            self.sscd_network = load_sscd(self.sscd, trainer.strategy.root_device)
        self._check_labels()
        if REAL in arms:
            raise ConfigError(
                f"task.arms.{REAL}", f"the results have a row {REAL!r} of real images: choose another name for the arm."
            )
        for name in arms:
            self._check_arm(name)

    def plan(self, trainer: Trainer) -> list[StagePlan]:
        return [planned for stage in self.stages() for planned in stage.plan()]

    def run(self, trainer: Trainer) -> float:
        """Generate the images that are not on disk yet, evaluate all images and write the report.

        All processes generate images. Only one process evaluates the images and writes the report.
        """
        self.compute(trainer)
        if not self.writes_report(trainer):
            return 0.0
        print("Evaluating the images ...", flush=True)
        return self.report(trainer.loggers)

    def compute(self, trainer: Trainer) -> None:
        """Generate the images that are not on disk yet, and wait until all processes have finished."""
        ImageStage(self.context).announce(trainer.world_size)
        progress = RunProgress()
        run_stages(trainer, *(stage.build(self.leases, progress) for stage in self.stages()))

    @abstractmethod
    def stages(self) -> list[ExperimentStage]:
        """Return the stages of the experiment in the order in which they run."""

    @abstractmethod
    def report(self, loggers: Sequence[Logger]) -> float:
        """Evaluate the images, write the results, and return the value that a hyperparameter sweep optimizes."""

    def prompts(self) -> list[str]:
        """Return the prompts of one batch. The duration of a network call is measured with these prompts."""
        return ImageStage(self.context).prompts()

    def _with_step_weights(self, name: str, arm: Arm) -> Arm:
        """Return a copy of ``arm`` in which SeedSelect has at most as many step weights as there are sampling steps.

        SeedSelect's semantic loss is a weighted sum over the latents of the last sampling steps, and a step weight is
        the weight of one of these latents. If step weights are removed, the remaining step weights are rescaled to the
        same sum and printed.
        """
        if arm.select is None or len(arm.select.step_weights) <= self.steps:
            return arm
        select = arm.select.with_steps(self.steps)
        weights = ", ".join(f"{weight:.3g}" for weight in select.step_weights)
        rank_zero_only(print)(f"task.steps={self.steps}: the arm {name!r} uses the rescaled step weights {weights}")
        return replace(arm, select=select)

    def _other_concepts(self, concepts: Sequence[Concept], selected: Sequence[Concept]) -> list[Concept]:
        """Return random concepts that are not selected, whose real images are also used for detecting copies.

        The selected and the returned concepts together are ``THRESHOLD_CONCEPTS`` concepts, or fewer concepts if the
        data source does not have so many.
        """
        names = {concept.name for concept in selected}
        usable = [c for c in concepts if c.name not in names and len(c.references) >= self.references]
        order = np.random.default_rng(self.seed).permutation(len(usable))
        return [usable[k] for k in order[: max(0, THRESHOLD_CONCEPTS - len(selected))]]

    def _check_labels(self) -> None:
        keys = {"classifier": self.classifier, "second_classifier": self.second_classifier}
        for key, source in keys.items():
            classifier = getattr(self.networks, key)
            labels = [] if classifier is None else classifier.labels
            unknown = [concept.name for concept in self.context.concepts if concept.name not in labels]
            if classifier is not None and unknown:
                raise ValueError(
                    f"data.{key}={source} has no label {unknown[0]!r}, but a concept of this name is selected: set "
                    f"data.{key} to a classifier that was trained on the selected concepts."
                )

    def _check_arm(self, name: str) -> None:
        """Raise ValueError if the arm's inverter or seed initialization does not support the settings of the run.

        The inverter must support the schedule. The seed initialization must be able to compute the required number of
        seeds.
        """
        arm = self.context.arms[name]
        if arm.inverter is None or arm.seed_init is None:
            return
        model = self.networks.model
        try:
            check_schedule(arm.inverter, self.context.schedule)
            arm.seed_init(model.noise(range(self.references), self.seed)[None], self.samples * arm.candidates)
        except ValueError as error:
            raise ValueError(
                f"task.steps={self.steps} task.references={self.references} task.samples={self.samples} in the arm "
                f"{name!r}: {error}"
            ) from error
