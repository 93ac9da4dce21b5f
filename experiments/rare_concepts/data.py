"""Batches of concepts whose images one arm (pipeline) generates, with the inverted seeds of the reference images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path

import torch
from torch import Tensor

from experiments.cache.store import UnitStore
from experiments.data.concepts import Concept
from experiments.finite import is_finite
from experiments.rare_concepts.context import RunContext
from experiments.rare_concepts.inversion_stage import CachedSeeds
from experiments.runtime.progress import RunProgress
from experiments.runtime.running_means import RunningMeans
from experiments.runtime.unit_queue import CachedUnitDataModule

Unit = tuple[str, Concept]
"""A unit of work: the name of an arm (pipeline), and a concept whose images are generated with the arm."""


@dataclass
class ConceptBatch:
    """A batch of G concepts whose images one arm (pipeline) generates.

    Attributes:
        arm: name of the arm.
        concepts: the G concepts.
        references: R reference images of each of the G concepts, ``float32 [G, R, 3, H, W]`` in [0, 1].
        seeds: inverted seeds of all ``G * R`` reference images, or None if the arm has no inverter.
    """

    arm: str
    concepts: list[Concept]
    references: Tensor
    seeds: CachedSeeds | None = None

    def has_finite_seeds(self) -> list[bool]:
        """Return, for each concept, whether the inverted seeds and latents of all its reference images are finite."""
        if self.seeds is None:
            return [True] * len(self.concepts)
        finite = is_finite(self.seeds.seed) & is_finite(self.seeds.z0)
        return finite.view(len(self.concepts), -1).all(1).tolist()

    def select(self, mask: Sequence[bool]) -> ConceptBatch:
        """Return a batch with the concepts whose entry in ``mask`` is true."""
        groups = torch.tensor(mask).nonzero().flatten()
        references_per_concept = self.references.shape[1]
        rows = torch.arange(len(self.concepts) * references_per_concept).view(len(self.concepts), -1)[groups].flatten()
        return replace(
            self,
            concepts=[self.concepts[k] for k in groups.tolist()],
            references=self.references[groups.to(self.references.device)],
            seeds=self.seeds.select(rows) if self.seeds else None,
        )

    def inversion_nfe(self, group: int) -> float:
        """Return the number of network evaluations for inverting all reference images of one concept.

        ``group`` is the index of the concept in the batch. Without inverted seeds, the number is 0.
        """
        return self._sum_over_references(self.seeds.nfe, group) if self.seeds else 0.0

    def inversion_seconds(self, group: int) -> float:
        """Return the time in seconds for inverting all reference images of one concept.

        ``group`` is the index of the concept in the batch. Without inverted seeds, the time is 0.
        """
        return self._sum_over_references(self.seeds.seconds, group) if self.seeds else 0.0

    def _sum_over_references(self, values: Tensor, group: int) -> float:
        return values.view(len(self.concepts), -1)[group].sum().item()


class ConceptDataModule(CachedUnitDataModule):
    """Lightning data module with the concepts whose images are not on disk yet.

    The images of all concepts in a batch are generated with the same arm (pipeline).
    """

    unit_noun = "concept"

    def __init__(
        self,
        context: RunContext,
        stores: Mapping[str, UnitStore],
        progress: RunProgress,
        leases: str | Path,
        *,
        running_means: RunningMeans | None = None,
    ) -> None:
        super().__init__(list(product(stores, context.concepts)), stores, progress, leases, running_means=running_means)
        self.context = context
        self.inversions = {arm: context.inversion_stage(arm) for arm in stores}

    def part(self, unit: Unit) -> str:
        return unit[0]

    def cost(self, unit: Unit) -> float:
        context = self.context
        cost = context.arms[unit[0]].cost(context.steps, context.samples, context.references)
        return cost.nfe + cost.decoded

    def address(self, unit: Unit) -> tuple[str, str]:
        arm, concept = unit
        return arm, concept.key

    def groups(self, units: list[Unit]) -> list[list[Unit]]:
        size = self.context.concepts_per_batch
        batches = []
        for _, group in groupby(units, key=lambda unit: unit[0]):
            same_arm = list(group)
            batches += [same_arm[k : k + size] for k in range(0, len(same_arm), size)]
        return batches

    def load(self, units: list[Unit]) -> ConceptBatch:
        arm = units[0][0]
        concepts = [concept for _, concept in units]
        images = [torch.from_numpy(concept.references[: self.context.references]) for concept in concepts]
        return ConceptBatch(arm, concepts, torch.stack(images).float() / 255)

    def transfer_batch_to_device(self, batch: ConceptBatch, device: torch.device, _: int) -> ConceptBatch:
        return replace(batch, references=batch.references.to(device))

    def on_after_batch_transfer(self, batch: ConceptBatch, _: int) -> ConceptBatch:
        """Invert the reference images of the batch, or read their seeds from the cache."""
        inversion = self.inversions[batch.arm]
        if inversion is None:
            return batch
        prompts = [concept.prompt for concept in batch.concepts for _ in range(self.context.references)]
        steps = len(inversion.schedule)

        def show_step(k: int) -> None:
            self.progress.set_stage(f"inverting, step {k + 1} of {steps}")

        seeds = inversion(batch.references.flatten(0, 1), prompts, show_step)
        return replace(batch, seeds=seeds)
