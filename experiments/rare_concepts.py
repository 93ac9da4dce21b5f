"""Rare concepts, Table 3 of the paper: inversion -> NAO -> SeedSelect -> samples, judged by a classifier.

A *unit* is one concept under one arm. It is on disk before the next begins, so a killed run loses at most the
units in progress, and a finished one is never computed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from experiments.classifier import load_classifier
from experiments.concept_data import ConceptBatch, ConceptData
from experiments.data.concepts import Concept, ConceptSource, choose
from experiments.inversion_stage import InversionStage
from experiments.progress import Progress
from experiments.rare_concepts_report import write_report
from experiments.scoring import JudgedImages, judge
from experiments.settings import describe
from experiments.store import SeedStore, UnitStore, synchronise
from rnri import Inverter, LatentDiffusion
from rnri.checkpoint import fingerprint
from seedselect import ClipFeatures, SeedSelect, Targets
from seedselect.select import Trajectory


@dataclass(frozen=True)
class Arm:
    """One way to make images of a concept.

    Args:
        guidance: of inversion, optimisation and sampling alike.
        inverter: how references become seeds; without one, seeds are drawn from the normal distribution.
        initialise: makes an arm's seeds ``[G, n, C, h, w]`` from the references' ``[G, R, C, h, w]``.
        select: the optimisation of those seeds; without one they are sampled as they are.
    """

    guidance: float
    inverter: Inverter | None = None
    initialise: Callable[[Tensor, int], Tensor] | None = None
    select: SeedSelect | None = None

    def __post_init__(self) -> None:
        if self.guidance < 1:
            raise ValueError(f"guidance={self.guidance} is below 1: 1 is off, Stable Diffusion's default is 7.5.")
        if (self.inverter is None) != (self.initialise is None):
            raise ValueError("an arm needs both an inverter and an initialise function, or neither.")


class RareConceptModule(LightningModule):
    """Seeds, optimisation and samples of one arm; every concept's unit is written when it is finished."""

    def __init__(
        self,
        arm: Arm,
        model: LatentDiffusion,
        clip: ClipFeatures,
        units: UnitStore,
        progress: Progress,
        *,
        steps: int,
        samples: int,
        noise_seed: int,
        checkpoint: bool,
    ) -> None:
        super().__init__()
        self.arm, self.units, self.progress = arm, units, progress
        self.samples, self.noise_seed, self.checkpoint = samples, noise_seed, checkpoint
        self.tools = _Tools(model, clip)
        self.schedule = model.schedule(steps)

    def predict_step(self, batch: ConceptBatch, _: int) -> list[str]:
        """Writes the units of a batch of concepts; returns their names."""
        start = self._now()
        seeds = self._initial(batch)  # [G n, C, h, w]
        initialised = self._now()
        seeds, records = self._optimise(seeds, batch)
        optimised = self._now()
        self.progress.stage("sampling")
        images = (self._images(seeds, batch) * 255).round().byte()
        groups = len(batch.concepts)
        for g, concept in enumerate(batch.concepts):
            rows = slice(g * self.samples, (g + 1) * self.samples)
            record = {
                "t_init": _inversion_seconds(batch, g) + (initialised - start) / groups,
                "t_opt": (optimised - initialised) / groups if self.arm.select else 0.0,
                "samples": records[rows],
            }
            self.units.write(concept.key, {"images": images[rows].cpu(), "seeds": seeds[rows].float().cpu()}, record)
        self.progress.finish(groups)
        return [concept.name for concept in batch.concepts]

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()

    def _initial(self, batch: ConceptBatch) -> Tensor:
        if batch.seeds is None or self.arm.initialise is None:
            names = [f"{concept.name}/{k}" for concept in batch.concepts for k in range(self.samples)]
            return self.tools.model.noise(names, self.noise_seed)
        self.progress.stage("finding centroids")
        seeds = batch.seeds.seed.unflatten(0, (len(batch.concepts), -1))
        return self.arm.initialise(seeds, self.samples).flatten(0, 1)

    def _optimise(self, seeds: Tensor, batch: ConceptBatch) -> tuple[Tensor, list[dict]]:
        """Better seeds, and what the optimisation says of each."""
        if self.arm.select is None:
            return seeds, [{} for _ in seeds]
        selection = self.arm.select(
            seeds.float(),
            trajectory=self._trajectory(batch),
            decode=self.tools.model.decode,
            features=self.tools.clip,
            targets=self._targets(batch),
            on_iteration=lambda k, loss: self.progress.stage(
                f"optimising, iteration {k} of {self.arm.select.iterations}, loss {loss.mean():.3f}"
            ),
        )
        names = ("initial_loss", "loss", "iterations", "converged")
        columns = [getattr(selection, name).tolist() for name in names]
        return selection.seed, [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def _trajectory(self, batch: ConceptBatch) -> Trajectory:
        predictor = self.tools.model.predictor(self._prompts(batch), self.arm.guidance)
        last = len(self.arm.select.step_weights)

        def run(seeds: Tensor, rows: Tensor) -> list[Tensor]:
            chosen = predictor.select(rows)
            return self.tools.model.trajectory(seeds, chosen, self.schedule, keep_last=last, checkpoint=self.checkpoint)

        return run

    def _images(self, seeds: Tensor, batch: ConceptBatch) -> Tensor:
        with torch.no_grad():
            predictor = self.tools.model.predictor(self._prompts(batch), self.arm.guidance)
            return self.tools.model.decode(self.tools.model.sample(seeds, predictor, self.schedule))

    def _targets(self, batch: ConceptBatch) -> Targets:
        """Mean CLIP feature and mean latent of each concept's references, for each of its seeds."""
        references = batch.references.flatten(0, 1)
        with torch.no_grad():
            features = self.tools.clip(references)
            latents = batch.seeds.z0 if batch.seeds else self.tools.model.encode(references)
        means = (value.unflatten(0, (len(batch.concepts), -1)).mean(1) for value in (features, latents))
        return Targets(*(value.repeat_interleave(self.samples, 0) for value in means))

    def _prompts(self, batch: ConceptBatch) -> list[str]:
        return [concept.prompt for concept in batch.concepts for _ in range(self.samples)]


def _inversion_seconds(batch: ConceptBatch, group: int) -> float:
    """Time that the inversion of one concept's references took."""
    return batch.seeds.seconds.view(len(batch.concepts), -1)[group].sum().item() if batch.seeds else 0.0


@dataclass(frozen=True)
class _Tools:
    """Networks that a Lightning module uses but must not own: neither its checkpoints nor its state hold them."""

    model: LatentDiffusion
    clip: ClipFeatures


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
        self.judge = load_classifier(self.classifier)
        unknown = [concept.name for concept in self.chosen if concept.name not in self.judge.labels]
        if unknown:
            raise ValueError(
                f"the classifier in {self.classifier} has no label {unknown[0]!r}: train it on these concepts."
            )
        device = trainer.strategy.root_device
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
        real, _ = judge(self.judge, torch.from_numpy(self.source.real_images()))
        rows = write_report(Path(self.run_dir), judged, real, self._settings(), loggers, self.seed)
        return [row["accuracy"] for row in rows if row["bucket"] != "total"][-1]

    def _judge(self, name: str, arm: Arm) -> JudgedImages:
        units = self.units(name, arm)
        found = [units.read(concept.key) for concept in self.chosen]
        images = torch.cat([tensors["images"] for tensors, _ in found])
        features, predictions = judge(self.judge, images)
        return JudgedImages(
            images=images,
            features=features,
            predictions=predictions,
            concepts=[concept for concept in self.chosen for _ in range(self.samples)],
            t_init=[record["t_init"] for _, record in found],
            t_opt=[record["t_opt"] for _, record in found],
            records=[record for _, unit in found for record in unit["samples"]],
        )
