"""Batches of concepts under an arm, their references inverted on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path

import torch
from torch import Tensor

from experiments.cache.store import UnitStore
from experiments.data.concepts import Concept
from experiments.rare_concepts.inversion_stage import InversionStage, CachedSeeds
from experiments.reporting.finite import is_finite
from experiments.runtime.progress import Progress
from experiments.runtime.running_means import Running
from experiments.runtime.unit_queue import CachedUnitDataModule

Unit = tuple[str, Concept]
"""An arm's name and a concept: what one file of results is about."""


@dataclass
class ConceptBatch:
    """G concepts whose units are computed together under an arm, and their inverted references if it has any.

    ``references`` are ``float32 [G, R, 3, H, W]`` in [0, 1].
    """

    arm: str
    concepts: list[Concept]
    references: Tensor
    seeds: CachedSeeds | None = None

    def sound(self) -> list[bool]:
        """Of each concept, whether all its references have a seed and a latent that are finite."""
        if self.seeds is None:
            return [True] * len(self.concepts)
        found = is_finite(self.seeds.seed) & is_finite(self.seeds.z0)
        return found.view(len(self.concepts), -1).all(1).tolist()

    def select(self, which: Sequence[bool]) -> ConceptBatch:
        """The batch of the concepts that ``which`` names."""
        groups = torch.tensor(which).nonzero().flatten()
        concepts = [concept for concept, chosen in zip(self.concepts, which, strict=True) if chosen]
        references = self.references[groups.to(self.references.device)]
        rows = torch.arange(self.references[:, :, 0, 0, 0].numel()).view(len(self.concepts), -1)[groups].flatten()
        return replace(
            self, concepts=concepts, references=references, seeds=self.seeds.select(rows) if self.seeds else None
        )


class ConceptDataModule(CachedUnitDataModule):
    """Batches of the concepts that have no finished unit yet under one of the arms, arm by arm.

    Inverting the references is a transform of the data, done after they are on the device.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        stores: Mapping[str, UnitStore],
        stages: Mapping[str, InversionStage | None],
        progress: Progress,
        claims: str | Path,
        *,
        batch_size: int,
        references: int,
        running: Running | None = None,
    ) -> None:
        super().__init__(list(product(stores, concepts)), stores, progress, claims, running)
        self.stages = stages
        self.batch_size, self.references = batch_size, references
        self._arm: str | None = None
        self._all: Counter[str] = Counter()
        self._pending: Counter[str] = Counter()

    def address(self, unit: Unit) -> tuple[str, str]:
        arm, concept = unit
        return arm, concept.key

    def groups(self, units: list[Unit]) -> list[list[Unit]]:
        found = []
        for _, same in groupby(units, key=lambda unit: unit[0]):
            own = list(same)
            found += [own[k : k + self.batch_size] for k in range(0, len(own), self.batch_size)]
        return found

    def load(self, units: list[Unit]) -> ConceptBatch:
        concepts = [concept for _, concept in units]
        images = torch.stack([torch.from_numpy(concept.references[: self.references]) for concept in concepts])
        return ConceptBatch(units[0][0], concepts, images.float() / 255)

    def begin(self, units: list[Unit], pending: list[Unit]) -> None:
        """Every arm has a progress of its own: they differ too much in time for one to foretell another's."""
        self._arm = None
        self._all, self._pending = (Counter(arm for arm, _ in own) for own in (units, pending))

    def passed(self, unit: Unit) -> None:
        self._pending[unit[0]] -= 1
        if unit[0] == self._arm:
            super().passed(unit)

    def transfer_batch_to_device(self, batch: ConceptBatch, device: torch.device, _: int) -> ConceptBatch:
        return replace(batch, references=batch.references.to(device))

    def on_after_batch_transfer(self, batch: ConceptBatch, _: int) -> ConceptBatch:
        if batch.arm != self._arm:
            self._next(batch.arm)
        stage = self.stages[batch.arm]
        if stage is not None:
            prompts = [concept.prompt for concept in batch.concepts for _ in range(self.references)]
            batch.seeds = stage(
                batch.references.flatten(0, 1), prompts,
                on_step=lambda k: self.progress.stage(f"inverting, step {k + 1} of {len(stage.schedule)}"),
            )  # fmt: skip
        return batch

    def _next(self, arm: str) -> None:
        self.progress.close()
        self._arm = self.progress.description = arm
        total, pending = self._all[arm], self._pending[arm]
        self.progress.start(total, total - pending, visible=self.trainer.is_global_zero)
