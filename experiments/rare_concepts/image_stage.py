"""The stage of an experiment that generates the images of all arms (pipelines)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.cache.key import fingerprint_config
from experiments.evaluation.classifier import classify_images
from experiments.planning.cost import Cost, StagePlan, inversion_cost, print_cost_estimate
from experiments.rare_concepts.context import RunContext
from experiments.rare_concepts.data import ConceptDataModule, Unit
from experiments.rare_concepts.module import RareConceptModule
from experiments.runtime.progress import RunProgress
from experiments.runtime.running_means import RunningMeans
from experiments.runtime.unit_queue import Stage

LATENT_BYTES = 4  # bytes per element of a stored seed, which is float32
INVERSION_BYTES = 8 + 4  # bytes per element of a cached inversion: a float64 seed and a float32 latent

RowKey = Callable[[str, str], dict[str, Any] | None]
"""Function that returns the columns and values that identify one row of the table.

The arguments of the function are the name of an arm (pipeline) and a bucket (group of concepts by frequency). The
bucket ``total`` contains all concepts. The function returns None if the table has no row for its arguments.
"""


def method_and_bucket(arm: str, bucket: str) -> dict[str, Any]:
    """Return the columns that identify a row of the table, which has one row per method and bucket.

    A bucket is a group of concepts of similar frequency.
    """
    return {"method": arm, "bucket": bucket}


@dataclass(frozen=True)
class ImageStage:
    """Generates the images of every concept with every arm (pipeline).

    A unit, the smallest piece of work that a resumed run can skip, is the generation of the images of one concept with
    one arm.

    Attributes:
        context: inputs and settings of the run.
        row_key: function that returns the columns that identify a table row. During the run, the loggers show the mean
            accuracy of each table row.
        identity: names of the columns that ``row_key`` returns.
        module: class of the Lightning module that generates the images.
    """

    context: RunContext
    row_key: RowKey = method_and_bucket
    identity: Sequence[str] = ("method", "bucket")
    module: type[RareConceptModule] = RareConceptModule

    @property
    def num_units(self) -> int:
        return len(self.context.arms) * len(self.context.concepts)

    def build(self, leases: Path, progress: RunProgress) -> Stage:
        """Return the Lightning module and data module that generate the images that are not on disk yet."""
        stores = {arm: self.context.units(arm) for arm in self.context.arms}
        running_means = RunningMeans(self._accuracy_rows, self.identity, ["accuracy"])
        module = self.module(self.context, stores, progress)
        return module, ConceptDataModule(self.context, stores, progress, leases, running_means=running_means)

    def announce(self, processes: int) -> None:
        """Print the number of units of work, and the duration of the run estimated from a few timed network calls."""
        context = self.context
        cost = sum((planned.cost for planned in self.plan()), Cost())
        done = sum(context.units(name).done(concept.key) for name in context.arms for concept in context.concepts)
        print_cost_estimate(
            cost,
            self.num_units,
            done,
            "unit",
            model=context.networks.model,
            processes=processes,
            prompts=self.prompts(),
        )

    def prompts(self) -> list[str]:
        """Return the prompt of each image of one batch."""
        concepts = self.context.concepts[: self.context.concepts_per_batch]
        return [concept.prompt for concept in concepts for _ in range(self.context.samples)]

    def plan(self) -> list[StagePlan]:
        """Return the cost of inversion and generation for each arm (pipeline).

        If several arms use the same inversion, its cost is counted only for the first of these arms.
        """
        planned: list[StagePlan] = []
        inverted: set[tuple[str, str]] = set()
        for name in self.context.arms:
            units = self.context.units(name)
            pending = [concept.name for concept in self.context.concepts if not units.done(concept.key)]
            planned += self._plan_inversion(name, pending, inverted)
            planned.append(self._plan_images(name, pending))
        return planned

    def _plan_inversion(self, name: str, pending: Sequence[str], inverted: set[tuple[str, str]]) -> list[StagePlan]:
        """Return the cost of inverting the reference images of the concepts in ``pending`` for an arm.

        A concept in ``inverted`` costs nothing, because an earlier arm inverts its reference images by the same method.
        The other concepts are added to ``inverted``.
        """
        context, arm = self.context, self.context.arms[name]
        if arm.inverter is None:
            return []
        model = context.networks.model
        method = json.dumps([fingerprint_config(arm.inverter), arm.guidance])
        concepts = [concept for concept in pending if (method, concept) not in inverted]
        inverted |= {(method, concept) for concept in concepts}
        images = context.references * len(concepts)
        per_image = inversion_cost(arm.inverter, context.schedule, arm.guidance, model.latent_shape[0])
        size = images * math.prod(model.latent_shape) * INVERSION_BYTES
        return [StagePlan(f"{name}, inversion", len(concepts), 0, per_image.times(images), size)]

    def _plan_images(self, name: str, pending: Sequence[str]) -> StagePlan:
        context, arm = self.context, self.context.arms[name]
        model = context.networks.model
        per_concept = arm.sampling_cost(
            context.steps, context.samples, gradient_checkpointing=context.gradient_checkpointing
        )
        total = len(context.concepts)
        bytes_per_image = 3 * math.prod(model.image_size) + LATENT_BYTES * math.prod(model.latent_shape)
        return StagePlan(
            f"{name}, {'seeds optimized' if arm.select else 'samples'}",
            total,
            total - len(pending),
            per_concept.times(len(pending)),
            total * context.samples * bytes_per_image,
        )

    def _accuracy_rows(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """Yield one dict per generated image and table row: whether the image is classified correctly.

        An image yields one dict for every table row that contains the image. An image with NaN or infinite pixels
        counts as misclassified.

        Args:
            unit: name of the arm (pipeline), and concept of the images.
        """
        arm, concept = unit
        tensors, record = self.context.units(arm).read(concept.key)
        labels = iter(classify_images(self.context.networks.classifier, tensors["images"])[1])
        correct = [sample["finite"] and next(labels) == concept.name for sample in record["samples"]]
        for bucket in (concept.bucket, "total"):
            key = self.row_key(arm, bucket)
            if key is not None:
                yield from ({**key, "accuracy": value} for value in correct)
