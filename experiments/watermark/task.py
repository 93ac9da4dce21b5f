"""Experiment that compares how well inversion methods read a watermark from attacked images without the prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import MinLen
from lightning.pytorch import Trainer
from pydantic import PositiveInt

from experiments.base import check_method_steps, load_networks, unsupported_methods
from experiments.cache.key import fingerprint_config
from experiments.cache.store import UnitStore
from experiments.data.captions import CaptionedImages
from experiments.data.concepts import Buckets, ConceptSelection, ConceptSource, select_concepts
from experiments.planning.cost import Cost, StagePlan, inversion_cost, print_cost_estimate
from experiments.runtime.progress import RunProgress
from experiments.runtime.running_means import RunningMeans
from experiments.runtime.unit_queue import ResumableRun, run_stages
from experiments.watermark.attacks import NO_ATTACK, Attack
from experiments.watermark.jobs import (
    SCHEMES,
    ForgeryJob,
    ForgerySetting,
    NamedPrompt,
    ReadingJob,
    ReadingSetting,
    WatermarkJobData,
    WatermarkSettings,
    forgery_jobs,
    numbered,
    reading_jobs,
)
from experiments.watermark.module import WatermarkModule
from experiments.watermark.report import IDENTITY, RUNNING, sample_rows, write_report
from rnri import METHODS, Inverter, LatentDiffusion
from rnri.models.adapters import check_scheduler_name, set_scheduler
from rnri.models.diffusers_schedulers import is_flow
from rnri.validation import ConfigError, NonEmptyStr, RandomSeed, dataclass

RECORD_VERSION = 2  # version of the stored rows, which is part of the cache key of the results
ROW_BYTES = 2_500  # approximate size in bytes of the stored results of one inverted image


@dataclass(kw_only=True)
class WatermarkExperiment(ResumableRun):
    """The task of ``experiment=watermark``, which compares how well inversion methods read watermarks from images.

    The model generates images from watermarked seeds. The images are attacked, and every inversion method inverts the
    attacked images with the empty prompt and without guidance. The watermarks are read from the inverted seeds. The
    results of one method with one setting on a batch of images are one *unit*, which a resumed run does not compute
    again.

    Args:
        source: data set that the prompts are read from.
        concepts, buckets: the concepts whose prompts are used, see :func:`experiments.data.concepts.select_concepts`.
        model: function that loads the text-to-image model on the device ``device``.
        methods: dict from names to seed-only inversion methods, which regenerate an image from the seed alone. The
            methods of ``rnri.METHODS`` are added with their default settings, except for methods whose names are in
            ``methods``.
        settings: the conditions under which the methods are compared, such as numbers of steps and sampler.
        attacks: dict from names to attacks. The name ``none`` is reserved for images without an attack.
        watermarks: settings of the watermarks, such as the length of the message.
        forgery: how watermarks are forged without their keys; if None, no watermark is forged.
        forgery_method: inversion method for forging watermarks and for reading watermarks from forged images.
        images: number of images per type of watermark, or ``all`` for one image per prompt.
        batch_size: number of images that are generated or inverted in one batch.
        seed: random seed of the selection of prompts, of the noise, of the keys and of the bootstrap.
        run_dir: folder that all outputs are written to.
    """

    source: ConceptSource
    concepts: ConceptSelection
    buckets: Buckets
    model: Callable[..., LatentDiffusion]
    methods: Mapping[str, Inverter]
    settings: Annotated[Sequence[ReadingSetting], MinLen(1)]
    attacks: Mapping[str, Attack]
    watermarks: WatermarkSettings
    forgery: ForgerySetting | None
    forgery_method: Inverter
    images: PositiveInt | Literal["all"]
    batch_size: PositiveInt
    seed: RandomSeed
    run_dir: NonEmptyStr

    def prepare(self, trainer: Trainer) -> None:
        if NO_ATTACK in self.attacks:
            raise ConfigError("task.attacks", f"must not contain the reserved name {NO_ATTACK!r}; choose another name.")
        for name, method in self.methods.items():
            if not method.seed_only:
                raise ConfigError(
                    f"task.methods.{name}",
                    "must be seed-only (invert an image to a seed and no other tensors), because a published image has "
                    "no auxiliary tensors; remove this method.",
                )
        for k, setting in enumerate(self.settings):
            try:
                check_scheduler_name(setting.sampler)
            except ValueError as error:
                raise ConfigError(
                    f"task.settings.{k}.sampler",
                    f"must be a scheduler class of diffusers, such as EulerDiscreteScheduler, got {setting.sampler!r}.",
                ) from error
        prompts = self._prompts()
        steps = {count for setting in self.settings for count in (setting.steps, setting.inversion_steps)}
        if self.forgery is not None:
            steps.add(self.forgery.steps)
        self.networks = load_networks(trainer, sorted(steps), model=self.model, clip=None, classifier=None)
        model = self.networks.model
        self._check_watermarks()
        self._check_samplers()
        jobs = reading_jobs(
            {name: method() for name, method in METHODS.items()} | dict(self.methods),
            self.settings,
            numbered(prompts, len(prompts) if self.images == "all" else self.images),
            attacks=[NO_ATTACK, *self.attacks],
            batch_size=self.batch_size,
            default_guidance=model.default_guidance,
        )
        methods = {job.method: (job.inverter, job.setting.inversion_steps) for job in jobs}
        self.skipped = unsupported_methods(model, methods)
        self.jobs = [job for job in jobs if job.method not in self.skipped]
        if not self.jobs:
            method, reason = next(iter(self.skipped.items()))
            raise ConfigError("task.methods", f"must contain a method that supports the model, got {method}: {reason}")
        for job in list(self.jobs):
            try:
                check_method_steps(model, job.method, job.inverter, job.setting.inversion_steps)
            except ValueError as error:
                if job.setting.methods is not None:  # the config contains the name of the method
                    raise
                self.jobs.remove(job)
                self.skipped[f"{job.method}, {job.setting.inversion_steps} steps"] = str(error)
        self.forgeries = self._forgeries(prompts)

    def _prompts(self) -> list[NamedPrompt]:
        """Return the prompts of the data source in random order. Each prompt has a unique name."""
        if isinstance(self.source, CaptionedImages):
            pairs = self.source.captioned()
            prompts = [NamedPrompt(*pair) for pair in zip(pairs.names, pairs.captions, strict=True)]
        else:
            concepts = select_concepts(self.source.concepts(), self.concepts, self.buckets, self.seed)
            prompts = [NamedPrompt(concept.name, concept.prompt) for concept in concepts]
        generator = torch.Generator().manual_seed(self.seed)
        return [prompts[k] for k in torch.randperm(len(prompts), generator=generator).tolist()]

    def _forgeries(self, prompts: Sequence[NamedPrompt]) -> list[ForgeryJob]:
        if self.forgery is None:
            return []
        guidance = self.networks.model.default_guidance
        return list(forgery_jobs(self.forgery, self.forgery_method, prompts, guidance))

    def _check_watermarks(self) -> None:
        """Raise ConfigError if a watermark does not fit into the latents of the model."""
        latents = torch.zeros(1, *self.networks.model.latent_shape)
        keys = {"message": "message_bytes", "radius": "ring_radius", "channel": "ring_channel"}
        for scheme in SCHEMES:
            try:
                self.watermarks.mark(scheme, "", self.seed).embed(latents)
            except ConfigError as error:
                raise ConfigError(f"task.watermarks.{keys[error.key]}", error.message) from error

    def _check_samplers(self) -> None:
        """Raise ConfigError if a sampler does not support the model or the number of steps."""
        pipe = self.networks.model.pipeline
        scheduler = pipe.scheduler
        for k, setting in enumerate(self.settings):
            if setting.sampler is None:
                continue
            try:
                set_scheduler(pipe, setting.sampler)
                pipe.scheduler.set_timesteps(setting.steps)
            except (ValueError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"task.settings.{k}.sampler",
                    f"must support the model and {setting.steps} steps, got {setting.sampler!r}: {error}",
                ) from error
            finally:
                sampler, pipe.scheduler = pipe.scheduler, scheduler
            if is_flow(sampler) != is_flow(scheduler):
                other = "FlowMatchHeunDiscreteScheduler" if is_flow(scheduler) else "DPMSolverMultistepScheduler"
                raise ConfigError(
                    f"task.settings.{k}.sampler",
                    f"must match the model's {type(scheduler).__name__}, which is "
                    f"{'' if is_flow(scheduler) else 'not '}a flow-matching scheduler, got {setting.sampler!r}; "
                    f"choose a scheduler such as {other}.",
                )

    def run(self, trainer: Trainer) -> float:
        """Compute all results that are not on disk yet; then write the report in one of the processes.

        Returns the bit accuracy of the last row of the results table that has a bit accuracy.
        """
        units = self.units()
        all_jobs: list[ReadingJob | ForgeryJob] = [*self.jobs, *self.forgeries]
        self._announce(units, all_jobs, trainer.world_size)
        module = WatermarkModule(
            self.networks,
            units,
            self.attacks,
            self.watermarks,
            noise_seed=self.seed,
            batch_size=self.batch_size,
        )
        running_means = RunningMeans(partial(_unit_rows, units), IDENTITY, RUNNING)
        work = WatermarkJobData(all_jobs, units, RunProgress(), self.leases, running_means=running_means)
        run_stages(trainer, (module, work))
        if not self.writes_report(trainer):
            return 0.0
        rows = write_report(
            Path(self.run_dir),
            [(job, *units[job.store].read(job.key)) for job in self.jobs],
            [row for job in self.forgeries for row in units[job.store].record(job.key)["rows"]],
            settings=self.dependencies(),
            loggers=trainer.loggers,
            seed=self.seed,
            skipped=self.skipped,
        )
        return next(row["bit_accuracy"] for row in reversed(rows) if row["bit_accuracy"] is not None)

    def plan(self, trainer: Trainer) -> list[StagePlan]:
        units = self.units()
        by_store: dict[str, list[ReadingJob | ForgeryJob]] = {}
        for job in [*self.jobs, *self.forgeries]:
            by_store.setdefault(job.store, []).append(job)
        generated: set[tuple] = set()
        return [self._plan_store(units[name], group, generated) for name, group in by_store.items()]

    def _plan_store(
        self, store: UnitStore, group: Sequence[ReadingJob | ForgeryJob], generated: set[tuple]
    ) -> StagePlan:
        """Return the estimated cost of the jobs in ``group``.

        All jobs in ``group`` have the same inversion method and setting, or all of them forge watermarks.

        Args:
            generated: keys of the images whose cost of generation is already counted. The images of ``group`` are added
                to the set.
        """
        pending = [job for job in group if not store.done(job.key)]
        cost = sum((self._cost(job, generated) for job in pending), Cost())
        size = sum(ROW_BYTES * job.readings for job in group if isinstance(job, ReadingJob))
        size += sum(
            len(SCHEMES) * len(job.attacks) * 3 * math.prod(self.networks.model.image_size)
            for job in group
            if isinstance(job, ReadingJob) and job.first
        )
        return StagePlan(group[0].label, len(group), len(group) - len(pending), cost, size)

    def _cost(self, job: ReadingJob | ForgeryJob, generated: set[tuple]) -> Cost:
        if isinstance(job, ForgeryJob):
            return job.cost
        model, setting = self.networks.model, job.setting
        schedule = model.schedule(setting.inversion_steps)
        cost = inversion_cost(job.inverter, schedule, 1.0, model.latent_shape[0]).times(job.readings)
        images = (job.key, setting.steps, job.guidance, setting.sampler, tuple(job.attacks))
        if images in generated:
            return cost
        generated.add(images)
        return cost + job.generation_cost

    def prompts(self) -> list[str]:
        """Return the prompts of one batch, with which the duration of a network call is measured."""
        return [each.prompt for each in self.jobs[0].prompts]

    def _announce(
        self, units: Mapping[str, UnitStore], jobs: Sequence[ReadingJob | ForgeryJob], processes: int
    ) -> None:
        """Print the skipped methods, the number of batches, and the estimated duration of the run."""
        for method, reason in self.skipped.items():
            print(f"Skipped: {method}. {reason}", flush=True)
        pending = [job for job in jobs if not units[job.store].done(job.key)]
        generated: set[tuple] = set()
        print_cost_estimate(
            sum((self._cost(job, generated) for job in pending), Cost()),
            len(jobs),
            len(jobs) - len(pending),
            "batch",
            model=self.networks.model,
            prompts=self.prompts(),
            processes=processes,
        )

    def units(self) -> dict[str, UnitStore]:
        """Return a dict from the attribute ``store`` of a job to the store (folder) for the results of the job."""
        shared = self.dependencies()
        stores = {
            job.store: UnitStore(
                Path(self.run_dir) / "units" / job.method,
                shared | {"inverter": fingerprint_config(job.inverter), "setting": fingerprint_config(job.setting)},
            )
            for job in self.jobs
        }
        for job in self.forgeries[:1]:
            settings = {"inverter": fingerprint_config(job.inverter), "setting": fingerprint_config(job.setting)}
            stores[job.store] = UnitStore(Path(self.run_dir) / "units" / "forgery", shared | settings)
        return stores

    def dependencies(self) -> dict[str, Any]:
        """Return the settings on which all results depend, as a part of the cache key of the results."""
        return {
            **self.networks.cache_settings(self.seed),
            "record": RECORD_VERSION,
            "attacks": fingerprint_config(self.attacks),
            "watermarks": fingerprint_config(self.watermarks),
            "batch_size": self.batch_size,
            "default_guidance": self.networks.model.default_guidance,
        }


def _unit_rows(units: Mapping[str, UnitStore], job: ReadingJob | ForgeryJob) -> list[dict[str, Any]]:
    """Return the stored rows of a finished job, whose running means are logged during the run."""
    if isinstance(job, ForgeryJob):
        return []
    return sample_rows(job, units[job.store].record(job.key)["rows"])
