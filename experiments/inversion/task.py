"""Experiment that compares the reconstruction quality, the cost and the convergence of inversion methods."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import MinLen
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from pydantic import PositiveInt
from torch import Tensor

from experiments.base import check_method_steps, load_networks, unsupported_methods
from experiments.cache.key import fingerprint_config
from experiments.cache.store import UnitStore
from experiments.data.captions import CaptionedImages
from experiments.data.concepts import Buckets, ConceptSelection, ConceptSource, limit_references, select_concepts
from experiments.evaluation.lpips import MIN_SIDE, ShiftTolerantLpips, load_lpips
from experiments.evaluation.registry import INVERSION
from experiments.inversion.figures import FIGURES
from experiments.inversion.jobs import (
    VAE_BOUND,
    ImagePrompt,
    InversionJob,
    InversionJobData,
    Setting,
    from_captions,
    from_concepts,
    jobs,
    unit_name,
)
from experiments.inversion.module import MAX_SAVED_IMAGES, InversionModule
from experiments.inversion.report import IDENTITY, sample_rows, write_report
from experiments.planning.cost import Cost, StagePlan, inversion_cost, print_cost_estimate
from experiments.runtime.progress import RunProgress
from experiments.runtime.running_means import RunningMeans
from experiments.runtime.unit_queue import ResumableRun, run_stages
from rnri import Inverter, LatentDiffusion
from rnri.models.fingerprint import fingerprint
from rnri.validation import NonEmptyStr, RandomSeed, dataclass
from seedselect import ClipFeatures

RECORD_BYTES = 700  # approximate size in bytes of the stored metrics of one image


@dataclass(kw_only=True)
class InversionExperiment(ResumableRun):
    """The task of all experiments that compare inversion methods.

    The results of one method with one setting on a batch of images are one *unit*. Finished units are on disk, so that
    a resumed run computes only the missing units.

    Args:
        source: data set that the images and prompts are read from.
        concepts, buckets: the concepts whose images are used, see :func:`experiments.data.concepts.select_concepts`.
        model, clip: functions that load the text-to-image model and the CLIP model on the device ``device``. If
            ``clip`` is None, the CLIP score is not computed.
        classifier: folder, Hugging Face Hub id or timm model name of the classifier whose features define the
            perceptual distance. If ``classifier`` is None, the perceptual distance is not computed.
        methods: dict from names to the compared inversion methods.
        settings: the conditions under which the methods are compared, such as number of steps and guidance scale.
        images: maximum number of images, or ``all`` for all images of the data set.
        batch_size: number of images that are computed in one batch.
        figures: names of the figures that are drawn, as keys of ``FIGURES`` in :mod:`experiments.inversion.figures`.
        paper: rows with published results, which tables show below the rows of this experiment.
        stlpips: file with the weights of ST-LPIPS, a second perceptual distance (:mod:`experiments.evaluation.lpips`).
            If ``stlpips`` is None, ST-LPIPS is not computed.
        seed: random seed of the selection of images, of the initial noise and of the bootstrap.
        run_dir: folder that all outputs are written to.
    """

    source: ConceptSource
    concepts: ConceptSelection
    buckets: Buckets
    model: Callable[..., LatentDiffusion]
    clip: Callable[..., ClipFeatures] | None
    classifier: NonEmptyStr | None
    methods: Annotated[Mapping[str, Inverter], MinLen(1)]
    settings: Annotated[Sequence[Setting], MinLen(1)]
    images: PositiveInt | Literal["all"]
    batch_size: PositiveInt
    figures: Sequence[NonEmptyStr]
    paper: Sequence[Mapping[str, Any]]
    seed: RandomSeed
    run_dir: NonEmptyStr
    stlpips: NonEmptyStr | None = None

    def prepare(self, trainer: Trainer) -> None:
        if VAE_BOUND in self.methods:
            raise ValueError(f"task.methods: the name {VAE_BOUND!r} is reserved; choose another name.")
        unknown = [name for name in self.figures if name not in FIGURES]
        if unknown:
            raise ValueError(f"task.figures: must be some of {', '.join(FIGURES)}, got {unknown[0]!r}.")
        select_images = self._image_selection()
        self.networks = load_networks(
            trainer,
            [setting.steps for setting in self.settings],
            model=self.model,
            clip=self.clip,
            classifier=self.classifier,
        )
        self.lpips = self._load_lpips(trainer)
        images = select_images(self.networks.model.image_size, torch.Generator().manual_seed(self.seed))
        if self.images != "all" and len(images) < self.images:
            rank_zero_only(print)(
                f"task.images={self.images}: the data has {len(images)} images; all of them are used."
            )
        all_jobs = jobs(self.methods, self.settings, images, self.batch_size)
        model = self.networks.model
        methods = {job.method: (job.inverter, job.setting.steps) for job in all_jobs if job.inverter is not None}
        self.skipped = unsupported_methods(model, methods)
        self.jobs = [job for job in all_jobs if job.method not in self.skipped]
        for job in self.jobs if any(job.inverter for job in self.jobs) else all_jobs:
            if job.inverter is not None:
                check_method_steps(model, job.method, job.inverter, job.setting.steps)

    @property
    def _max_images(self) -> int | None:
        return None if self.images == "all" else self.images

    def _image_selection(self) -> Callable[[tuple[int, int], torch.Generator], list[ImagePrompt]]:
        """Check the data source, and return a function that selects the images of the experiment.

        The arguments of the returned function are the image size ``(H, W)`` and a random number generator.
        """
        if isinstance(self.source, CaptionedImages):
            pairs = self.source.captioned()

            def captioned_images(size: tuple[int, int], generator: torch.Generator) -> list[ImagePrompt]:
                resized = dataclasses.replace(pairs, images=pairs.images.resized(size))
                return from_captions(resized, self._max_images, generator)

            return captioned_images
        concepts = select_concepts(self.source.concepts(), self.concepts, self.buckets, self.seed)
        concepts = limit_references(concepts, None)

        def references(size: tuple[int, int], generator: torch.Generator) -> list[ImagePrompt]:
            return from_concepts([concept.resized(size) for concept in concepts], self._max_images, generator)

        return references

    def _load_lpips(self, trainer: Trainer) -> ShiftTolerantLpips | None:
        if self.stlpips is None:
            return None
        side = min(self.networks.model.image_size)
        if side < MIN_SIDE:
            raise ValueError(
                f"metrics.stlpips needs images with sides >= {MIN_SIDE} pixels, but this model generates images "
                f"with sides of {side} pixels: set metrics.stlpips=null, or choose another model."
            )
        return load_lpips(self.stlpips, trainer.strategy.root_device)

    def run(self, trainer: Trainer) -> float:
        """Compute all results that are not on disk yet; then write the report in one of the processes.

        Returns the mean PSNR in dB of the last row of the results table.
        """
        units = self.units()
        self._announce(units, trainer.world_size)
        module = InversionModule(self.networks, units, self.seed, lpips=self.lpips)
        running_means = RunningMeans(partial(_unit_rows, units), IDENTITY, INVERSION.live)
        work = InversionJobData(self.jobs, units, RunProgress(), self.leases, running_means=running_means)
        run_stages(trainer, (module, work))
        if not self.writes_report(trainer):
            return 0.0
        rows = write_report(
            Path(self.run_dir),
            [(job, *_read_unit(units, job)) for job in self.jobs],
            self.figures,
            self.paper,
            settings=self.dependencies(),
            loggers=trainer.loggers,
            seed=self.seed,
            classifier=self.networks.classifier.title if self.networks.classifier else None,
            skipped=self.skipped,
        )
        return rows[-1]["psnr"]

    def plan(self, trainer: Trainer) -> list[StagePlan]:
        units = self.units()
        by_store: dict[str, list[InversionJob]] = {}
        for job in self.jobs:
            by_store.setdefault(unit_name(job), []).append(job)
        return [self._plan_method(units[name], group) for name, group in by_store.items()]

    def _plan_method(self, store: UnitStore, group: Sequence[InversionJob]) -> StagePlan:
        """Return the estimated cost of one method with one setting."""
        model, job = self.networks.model, group[0]
        pending = [other for other in group if not store.done(other.key)]
        per_image = job.method_cost
        if job.inverter is not None:
            schedule = model.schedule(job.setting.steps)
            channels = model.latent_shape[0]
            per_image += inversion_cost(job.inverter, schedule, job.setting.guidance, channels, all_steps=True)
        images = sum(len(other.images) for other in group)
        pending_images = sum(len(other.images) for other in pending)
        saved_images = 2 * min(len(job.images), MAX_SAVED_IMAGES)
        size = RECORD_BYTES * images + saved_images * 3 * math.prod(model.image_size)
        return StagePlan(_stage_name(job), len(group), len(group) - len(pending), per_image.times(pending_images), size)

    def prompts(self) -> list[str]:
        """Return the prompts of one batch, with which the duration of a network call is measured."""
        return [self.jobs[0].setting.source(image.prompt) for image in self.jobs[0].images]

    def _announce(self, units: Mapping[str, UnitStore], processes: int) -> None:
        """Print the skipped methods, the number of batches, and the estimated duration of the run."""
        for method, reason in self.skipped.items():
            print(f"Skipped: {method}. {reason}", flush=True)
        pending = [job for job in self.jobs if not units[unit_name(job)].done(job.key)]
        print_cost_estimate(
            sum((job.cost for job in pending), Cost()),
            len(self.jobs),
            len(self.jobs) - len(pending),
            "batch",
            model=self.networks.model,
            prompts=self.prompts(),
            processes=processes,
        )

    def units(self) -> dict[str, UnitStore]:
        """Return a dict from the ``unit_name`` of a job to the store (folder) for the results of the job.

        The function :func:`experiments.inversion.jobs.unit_name` computes the ``unit_name``.
        """
        shared = self.dependencies()
        return {
            unit_name(job): UnitStore(
                Path(self.run_dir) / "units" / job.method,
                shared | {"inverter": fingerprint_config(job.inverter), "setting": fingerprint_config(job.setting)},
            )
            for job in self.jobs
        }

    def dependencies(self) -> dict[str, Any]:
        """Return the settings and network fingerprints on which all results depend.

        The settings and fingerprints are part of the cache key of the results.
        """
        networks = {} if self.lpips is None else {"stlpips": fingerprint({"stlpips": self.lpips}, {})}
        if self.networks.clip is not None:
            networks["clip"] = self.networks.clip_fingerprint
        if self.networks.classifier is not None:
            networks["classifier"] = self.networks.classifier_fingerprint
        return {**self.networks.cache_settings(self.seed), **networks, "batch_size": self.batch_size}


def _unit_rows(units: Mapping[str, UnitStore], job: InversionJob) -> list[dict[str, Any]]:
    """Return the stored metrics of a finished job, one row per image."""
    return sample_rows(job, units[unit_name(job)].record(job.key)["rows"])


def _read_unit(units: Mapping[str, UnitStore], job: InversionJob) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the stored images and metrics of a finished job.

    Images are returned only for the first batch of a method and setting, because figures show only the images of the
    first batch.
    """
    tensors, record = units[unit_name(job)].read(job.key)
    return (tensors if job.first else {}), record


def _stage_name(job: InversionJob) -> str:
    """Return the name of a method with its setting for the output of ``plan=true``."""
    setting = job.setting
    parts = [job.method if job.inverter is None else job.label]
    if setting.nfe is not None:
        parts.append(f"NFE {setting.nfe}")
    if setting.prompt_label != "caption":
        parts.append("empty prompt" if setting.prompt == "empty" else setting.prompt_label)
    if setting.generated:
        parts.append("generated")
    if setting.decoder_iterations:
        parts.append("decoder inversion")
    return ", ".join(parts)
