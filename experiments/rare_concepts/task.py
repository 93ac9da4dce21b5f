"""Rare concepts, Table 3 of the paper: inversion -> NAO -> SeedSelect -> samples, judged by a classifier.

A *unit* is one concept under one arm. It is on disk before the next begins, so a killed run loses at most the
units in progress, and a finished one is never computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from experiments.data.concepts import Concept, ConceptSource, choose
from experiments.judges.classifier import load_classifier
from experiments.rare_concepts.arm import Arm, RareConceptModule
from experiments.rare_concepts.batches import ConceptData
from experiments.rare_concepts.inversion_stage import InversionStage
from experiments.rare_concepts.report import write_report
from experiments.rare_concepts.scoring import JudgedImages, judge
from experiments.results.progress import Progress
from experiments.results.settings import describe
from experiments.results.store import SeedStore, UnitStore
from rnri import LatentDiffusion
from rnri.models.checkpoint import fingerprint
from seedselect import ClipFeatures


@dataclass
class RareConcepts:
    """The task behind ``experiment=rare_concepts``.

    Args:
        source: where concepts and real images come from.
        concepts, buckets: which of them (see :func:`experiments.data.concepts.choose`).
        model, clip: make the text-to-image model and SeedSelect's features, given a device.
        classifier: folder of the judge, which must not be the network of the features.
        arms: what is compared, by name, in the order of the table.
        steps: of inversion and sampling alike; a seed is only good for the schedule that it was made for.
        samples: images a concept.
        references: reference images a concept.
        concepts_per_batch: units computed together; changes speed and memory, not results.
        seed: of noise, of the choice of concepts and of the bootstrap.
        run_dir: where everything is written.
        checkpoint: compute each sampling step again in the backward pass: slower by a third, memory that does not
            grow with the steps.
    """

    source: ConceptSource
    concepts: int | str | Sequence[str]
    buckets: Sequence[str]
    model: Callable[..., LatentDiffusion]
    clip: Callable[..., ClipFeatures]
    classifier: str
    arms: Mapping[str, Arm]
    steps: int
    samples: int
    references: int
    concepts_per_batch: int
    seed: int
    run_dir: str
    checkpoint: bool
    chosen: list[Concept] = field(init=False)

    def prepare(self, trainer: Trainer) -> None:
        """Loads everything that the run needs; ValueError says what is wrong with it."""
        self.arms = dict(self.arms)
        self.chosen = choose(self.source.concepts(), self.concepts, self.buckets, self.seed)
        for concept in self.chosen:
            if len(concept.references) < self.references:
                raise ValueError(
                    f"task.references={self.references}, but {concept.name!r} has {len(concept.references)} "
                    "reference images: add some or ask for fewer."
                )
        device = trainer.strategy.root_device
        self.judge = load_classifier(self.classifier, device)
        unknown = [concept.name for concept in self.chosen if concept.name not in self.judge.labels]
        if unknown:
            raise ValueError(
                f"the classifier in {self.classifier} has no label {unknown[0]!r}: train it on these concepts."
            )
        self.real = self.source.real_images()
        self.features = self.clip(device=device)
        self.diffusion = self.model(device=device)
        self.diffusion.schedule(self.steps)

    def run(self, trainer: Trainer) -> float:
        """Computes what is not on disk yet, arm by arm; then the first process judges and reports."""
        for name, arm in self.arms.items():
            self._run_arm(name, arm, trainer)
        trainer.strategy.barrier("all units are on disk")
        return self.report(trainer.loggers) if trainer.is_global_zero else 0.0

    def units(self, name: str, arm: Arm) -> UnitStore:
        """Finished units of an arm; other settings have other units."""
        return UnitStore(Path(self.run_dir) / "units" / name, self._settings() | {"arm": describe(arm)})

    def _settings(self) -> dict:
        """What every unit depends on."""
        return {
            "checkpoint": self.diffusion.fingerprint,
            "clip": fingerprint({"clip": self.features.model}, {}),
            "steps": self.steps,
            "samples": self.samples,
            "references": self.references,
            "seed": self.seed,
        }

    def _run_arm(self, name: str, arm: Arm, trainer: Trainer) -> None:
        units, progress = self.units(name, arm), Progress(name)
        stage = None
        if arm.inverter is not None:
            store = SeedStore(Path(self.run_dir) / "seeds")
            schedule = self.diffusion.schedule(self.steps)
            stage = InversionStage(self.diffusion, arm.inverter, describe(arm.inverter), schedule, arm.guidance, store)
        module = RareConceptModule(
            arm,
            self.diffusion,
            self.features,
            units,
            progress,
            steps=self.steps,
            samples=self.samples,
            noise_seed=self.seed,
            checkpoint=self.checkpoint,
        )
        data = ConceptData(self.chosen, units, self.concepts_per_batch, self.references, stage, progress)
        trainer.predict(module, datamodule=data, return_predictions=False)
        progress.close()

    def report(self, loggers: Sequence[Logger]) -> float:
        """Judges every image and writes the results; returns the last arm's accuracy on the rarest bucket asked for."""
        judged = {name: self._judge(name, arm) for name, arm in self.arms.items()}
        rows = write_report(Path(self.run_dir), judged, self._judge_real(), self._settings(), loggers, self.seed)
        return [row["accuracy"] for row in rows if row["bucket"] != "total"][-1]

    def _judge(self, name: str, arm: Arm) -> JudgedImages:
        units, progress, records = self.units(name, arm), Progress(f"judging {name}"), []

        def images() -> Iterator[Tensor]:
            for concept in self.chosen:
                tensors, record = units.read(concept.key)
                records.append(record)
                yield from tensors["images"]
                progress.finish(1)

        progress.start(len(self.chosen), 0, visible=True)
        features, predictions = judge(self.judge, images())
        progress.close()
        return JudgedImages(
            units=units,
            features=features,
            predictions=predictions,
            concepts=[concept for concept in self.chosen for _ in range(self.samples)],
            t_init=[record["t_init"] for record in records],
            t_opt=[record["t_opt"] for record in records],
            records=[sample for record in records for sample in record["samples"]],
        )

    def _judge_real(self) -> Tensor:
        """Features ``float64 [N, D]`` of the real images."""
        return judge(self.judge, map(torch.from_numpy, self.real))[0]
