"""Batches of concepts for an experiment, their references inverted on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from experiments.data.concepts import Concept
from experiments.rare_concepts.inversion_stage import InversionStage, Seeds
from experiments.results.progress import Progress
from experiments.results.store import UnitStore, units_for_rank


@dataclass
class ConceptBatch:
    """Concepts whose units are computed together, and their inverted references if the arm has any.

    ``references`` are ``float32 [G, R, 3, H, W]`` in [0, 1].
    """

    concepts: list[Concept]
    references: Tensor
    seeds: Seeds | None = None

    @classmethod
    def collate(cls, concepts: list[Concept], references: int) -> ConceptBatch:
        images = torch.stack([torch.from_numpy(concept.references[:references]) for concept in concepts])
        return cls(concepts, images.float() / 255)


class ConceptData(LightningDataModule):
    """Batches of the concepts that have no finished unit yet, shared among the processes.

    Inverting the references is a transform of the data, done after they are on the device.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        units: UnitStore,
        batch_size: int,
        references: int,
        stage: InversionStage | None,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.concepts, self.units = concepts, units
        self.batch_size, self.references = batch_size, references
        self.stage, self.progress = stage, progress

    def predict_dataloader(self) -> DataLoader:
        # Only here does a process know its rank: Lightning starts the others with the first loop.
        mine = units_for_rank(self.concepts, self.trainer.global_rank, self.trainer.world_size)
        pending = [concept for concept in mine if not self.units.done(concept.key)]
        self.progress.start(len(mine), len(mine) - len(pending), visible=self.trainer.is_global_zero)
        collate = partial(ConceptBatch.collate, references=self.references)
        return DataLoader(dataset=pending, batch_size=self.batch_size, collate_fn=collate)

    def transfer_batch_to_device(self, batch: ConceptBatch, device: torch.device, _: int) -> ConceptBatch:
        return ConceptBatch(batch.concepts, batch.references.to(device))

    def on_after_batch_transfer(self, batch: ConceptBatch, _: int) -> ConceptBatch:
        if self.stage is not None:
            prompts = [concept.prompt for concept in batch.concepts for _ in range(self.references)]
            steps = len(self.stage.schedule)
            batch.seeds = self.stage(
                batch.references.flatten(0, 1), prompts,
                on_step=lambda k: self.progress.stage(f"inverting, step {k + 1} of {steps}"),
            )  # fmt: skip
        return batch
