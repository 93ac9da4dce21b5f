"""Rare concepts, Table 3 of the paper: inversion -> NAO -> SeedSelect -> samples, judged by a classifier.

A *unit* is one concept under one arm. It is on disk before the next begins, so a killed run loses at most the
units in progress, and a finished one is never computed again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from pydantic import PositiveInt
from torch import Tensor

from experiments.base import ConceptTask
from experiments.cache.key import describe
from experiments.cache.store import SeedStore, UnitStore
from experiments.data.concepts import Concept
from experiments.evaluation.diversity import CopyDetection, perceptual_vectors, detect_copies
from experiments.evaluation.inception import Inception, load_inception
from experiments.planning.cost import Cost, Planned, announce_cost, inversion_cost
from experiments.rare_concepts.arm import Arm, RareConceptModule
from experiments.rare_concepts.batches import ConceptDataModule, Unit
from experiments.rare_concepts.inversion_stage import InversionStage
from experiments.rare_concepts.report import write_report
from experiments.rare_concepts.scoring import ClassifiedImages, classifier_ceiling, classify_images
from experiments.runtime.progress import QUIET, Progress
from experiments.runtime.running_means import Running
from experiments.runtime.unit_queue import Stage, carry_out
from rnri import check_schedule
from rnri.models.fingerprint import fingerprint
from rnri.validation import NonEmptyStr, dataclass

REAL = 20  # held-out images of a concept that tell how near real ones are to one another


@dataclass(kw_only=True)
class RareConceptsExperiment(ConceptTask):
    """The task behind ``experiment=rare_concepts``.

    Args:
        arms: what is compared, by name, in the order of the table.
        steps: of inversion and sampling alike; a seed is only good for the schedule that it was made for.
        samples: images a concept.
        references: reference images a concept.
        concepts_per_batch: units computed together; changes speed and memory, not results.
        checkpoint: compute each sampling step again in the backward pass: slower by a third, memory that does not
            grow with the steps.
        inception: file of Inception's weights, whose features FID and KID then take; None: the judge's features.
    """

    arms: Annotated[Mapping[str, Arm], MinLen(1)]
    steps: PositiveInt
    samples: PositiveInt
    references: PositiveInt
    concepts_per_batch: PositiveInt
    gradient_checkpointing: bool
    inception: NonEmptyStr | None = None
    extractor: Inception | None = field(init=False, default=None)
    identity = ("method", "bucket")  # what tells the table's rows apart

    def prepare(self, trainer: Trainer) -> None:
        """Loads everything that the run needs; ValueError says what is wrong with it."""
        self.arms = {name: self._with_step_weights(name, arm) for name, arm in self.arms.items()}
        self.choose_concepts(self.references)
        self.real, self.held_out = self.source.real_images(), self.source.held_out()
        self.load_networks(trainer, [self.steps])
        self.extractor = load_inception(self.inception, trainer.strategy.root_device) if self.inception else None
        unknown = [concept.name for concept in self.chosen if concept.name not in self.networks.classifier.labels]
        if unknown:
            raise ValueError(
                f"the classifier {self.classifier} has no label {unknown[0]!r}: train one on these concepts."
            )
        self.real = self.real.resized(self.networks.model.image_size)
        for name, arm in self.arms.items():
            self._try_seeds(name, arm)

    def _with_step_weights(self, name: str, arm: Arm) -> Arm:
        """``arm`` with no more step weights than there are steps; says where that changes them."""
        if arm.select is None or len(arm.select.step_weights) <= self.steps:
            return arm
        select = arm.select.with_steps(self.steps)
        weights = ", ".join(f"{weight:.3g}" for weight in select.step_weights)
        rank_zero_only(print)(f"task.steps={self.steps}: SeedSelect's step weights are {weights} in the arm {name!r}")
        return replace(arm, select=select)

    def _try_seeds(self, name: str, arm: Arm) -> None:
        """ValueError where the arm cannot make as many seeds of as many references, or not of this schedule."""
        if arm.inverter is None or arm.seed_init is None:
            return
        model = self.networks.model
        try:
            check_schedule(arm.inverter, model.schedule(self.steps))
            arm.seed_init(model.noise(range(self.references), self.seed)[None], self.samples * arm.candidates)
        except ValueError as error:
            raise ValueError(
                f"task.steps={self.steps} task.references={self.references} task.samples={self.samples} in the arm "
                f"{name!r}: {error}"
            ) from error

    def run(self, trainer: Trainer) -> float:
        """Computes what is not on disk yet, arm by arm; then the first process judges and reports."""
        self.make_images(trainer)
        return self.report(trainer.loggers) if self.writes_report(trainer) else 0.0

    def make_images(self, trainer: Trainer) -> None:
        """Writes the units that are not on disk yet, arm by arm; afterwards those of all processes are there."""
        self._announce(trainer.world_size)
        carry_out(trainer, self.images_stage())

    def _announce(self, processes: int) -> None:
        """Says what is to be computed and about how long it takes, from the time of a few network calls."""
        cost, done = Cost(), 0
        for name, arm in self.arms.items():
            units = self.units(name, arm)
            finished = sum(units.done(concept.key) for concept in self.chosen)
            done += finished
            cost += arm.cost(self.steps, self.samples, self.references).times(len(self.chosen) - finished)
        announce_cost(
            cost, len(self.arms) * len(self.chosen), done, "unit", model=self.networks.model, processes=processes,
            prompts=self.prompts(),
        )  # fmt: skip

    def plan(self) -> list[Planned]:
        """What each arm would take, inversion apart: seeds that several arms start from are found once."""
        stages, inverted = [], set[tuple]()
        model = self.networks.model
        latent, pixels = math.prod(model.latent_shape), 3 * math.prod(model.image_size)
        for name, arm in self.arms.items():
            store = self.units(name, arm)
            pending = [concept.name for concept in self.chosen if not store.done(concept.key)]
            if arm.inverter is not None:
                known = json.dumps([describe(arm.inverter), arm.guidance])
                fresh = [concept for concept in pending if (known, concept) not in inverted]
                inverted |= {(known, concept) for concept in fresh}
                each = inversion_cost(arm.inverter, model.schedule(self.steps), arm.guidance, model.latent_shape[0])
                images = self.references * len(fresh)
                stages.append(
                    Planned(f"{name}, inversion", len(fresh), 0, each.times(images), images * latent * (8 + 4))
                )
            made = arm.sampling_cost(self.steps, self.samples, gradient_checkpointing=self.gradient_checkpointing).times(len(pending))
            size = len(self.chosen) * self.samples * (pixels + 4 * latent)
            what = "seeds optimized" if arm.select else "samples"
            done = len(self.chosen) - len(pending)
            stages.append(Planned(f"{name}, {what}", len(self.chosen), done, made, size))
        return stages

    def prompts(self) -> list[str]:
        """Those of one batch."""
        return [concept.prompt for concept in self.chosen[: self.concepts_per_batch] for _ in range(self.samples)]

    def units(self, name: str, arm: Arm) -> UnitStore:
        """Finished units of an arm; other settings have other units."""
        return UnitStore(Path(self.run_dir) / "units" / name, self.dependencies() | {"arm": describe(arm)})

    def dependencies(self) -> dict:
        return {
            **super().dependencies(),
            "clip": self.networks.clip_fingerprint,
            "steps": self.steps,
            "samples": self.samples,
            "references": self.references,
        }

    def images_stage(self) -> Stage:
        """What makes the images, and the units to make."""
        stores = {name: self.units(name, arm) for name, arm in self.arms.items()}
        progress = Progress("images")
        module = RareConceptModule(
            self.arms, self.networks, stores, progress, steps=self.steps, samples=self.samples, noise_seed=self.seed,
            gradient_checkpointing=self.gradient_checkpointing,
        )  # fmt: skip
        inversions = {name: self._inversion_stage(arm) for name, arm in self.arms.items()}
        data = ConceptDataModule(
            self.chosen,
            stores,
            inversions,
            progress,
            self.claims,
            batch_size=self.concepts_per_batch,
            references=self.references,
            running=Running(self._hits, self.identity, ["accuracy"]),
        )
        return module, data

    @property
    def all_units(self) -> int:
        """How many there are."""
        return len(self.arms) * len(self.chosen)

    def row_of(self, arm: str, bucket: str) -> dict[str, Any] | None:
        """What tells the table's row of an arm and a bucket, or ``total``, from others; None if it has none."""
        return {"method": arm, "bucket": bucket}

    def _hits(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """Whether the judge names each sample of a finished unit rightly, for each row of the table that it counts in.

        A sample that is not finite is wrong, as in the table.
        """
        arm, concept = unit
        tensors, record = self.units(arm, self.arms[arm]).read(concept.key)
        named = iter(classify_images(self.networks.classifier, tensors["images"])[1])
        correct = [sample["finite"] and next(named) == concept.name for sample in record["samples"]]
        for row in (self.row_of(arm, bucket) for bucket in (concept.bucket, "total")):
            yield from ({**row, "accuracy": hit} for hit in correct if row is not None)

    def _inversion_stage(self, arm: Arm) -> InversionStage | None:
        if arm.inverter is None:
            return None
        model, store = self.networks.model, SeedStore(Path(self.run_dir) / "seeds")
        schedule, settings = model.schedule(self.steps), describe(arm.inverter)
        return InversionStage(model, arm.inverter, settings, schedule, arm.guidance, store, self.numerics)

    def report(self, loggers: Sequence[Logger]) -> float:
        """Judges every image and writes the results; returns the last arm's accuracy on the rarest bucket asked for."""
        judged = {name: self._judge(name, arm) for name, arm in self.arms.items()}
        rows = write_report(
            Path(self.run_dir), judged, self._judge_real(), self.dependencies(), loggers, self.seed, self.classifier_ceiling(),
            self.all_units,
        )  # fmt: skip
        return [row["accuracy"] for row in rows if row["bucket"] != "total"][-1]

    def _judge(self, name: str, arm: Arm) -> ClassifiedImages:
        units, progress = self.units(name, arm), Progress(f"judging {name}", every=QUIET)
        records, copy_detections = [], []

        def images() -> Iterator[Tensor]:
            for concept in self.chosen:
                tensors, record = units.read(concept.key)
                records.append(record)
                copy_detections.append(self._resemblance(concept, tensors["images"]))
                yield from tensors["images"]
                progress.finish(1)

        progress.start(len(self.chosen), 0, visible=True)
        features, named = classify_images(self.networks.classifier, images(), extractor=self.extractor)
        progress.close()
        samples, answers = [sample for record in records for sample in record["samples"]], iter(named)
        return ClassifiedImages(
            units=units,
            features=features,
            predictions=[next(answers) if sample["finite"] else None for sample in samples],
            concepts=[concept for concept in self.chosen for _ in range(self.samples)],
            t_init=[record["t_init"] for record in records],
            t_opt=[record["t_opt"] for record in records],
            records=samples,
            extractor=(self.extractor or self.networks.classifier).title,
            copy_detections=copy_detections,
        )

    def classifier_ceiling(self) -> dict[str, float]:
        """What a perfect sampler would score, a bucket and in all."""
        return classifier_ceiling(self.chosen, self.networks.classifier)

    def _resemblance(self, concept: Concept, images: Tensor) -> CopyDetection | None:
        if not len(images):
            return None
        known = self.held_out.get(concept.name)
        others = known.resized(self.networks.model.image_size).head(REAL) if known is not None else []
        real = [torch.from_numpy(own[k]) for own in (concept.references, others) for k in range(len(own))]
        vectors = perceptual_vectors(self.networks.classifier, torch.stack([*images, *real]))
        made, real_vectors = vectors[: len(images)], vectors[len(images) :]
        return detect_copies(made, real_vectors[: len(concept.references)], real_vectors)

    def _judge_real(self) -> Tensor:
        """Features ``float64 [N, D]`` of the real images, which later runs of the folder find there."""
        store, key = SeedStore(Path(self.run_dir) / "real"), self._real_key()
        found = store.get(key)
        if found is None:
            progress = Progress("judging the real images", "image", every=QUIET)
            progress.start(len(self.real), 0, visible=True)
            features = classify_images(
                self.networks.classifier, progress.over(map(torch.from_numpy, self.real)), extractor=self.extractor
            )
            progress.close()
            found = {"features": features[0]}
            store.put(key, found)
        return found["features"]

    def _real_key(self) -> dict[str, Any]:
        """What the real images' features depend on."""
        content = hashlib.sha256()
        for k in range(len(self.real)):
            content.update(self.real.file_stamp(k))
        extractor = fingerprint({"extractor": self.extractor}, {}) if self.extractor else None
        return {
            "classify_images": self.networks.classifier_fingerprint,
            "extractor": extractor,
            "numerics": self.numerics,
            "images": content.hexdigest(),
        }
