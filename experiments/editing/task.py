"""Editing experiment: measures the quality and the duration of edits by several methods with several models.

The results of one method with one model on a batch of edits are one *unit*. Finished units are on disk, so that a
resumed run computes only the missing units.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

import torch
from annotated_types import MinLen
from lightning.pytorch import Trainer
from pydantic import PositiveFloat, PositiveInt

from experiments.base import Networks
from experiments.cache.key import fingerprint_config
from experiments.cache.store import UnitStore
from experiments.data.images import check_images
from experiments.editing import make_benchmark
from experiments.editing.benchmark import KINDS, BenchmarkEdit, read_benchmark
from experiments.editing.jobs import (
    NONE,
    EditingModel,
    EditJob,
    EditJobDataModule,
    checkpoint_name,
    make_jobs,
    select_edits,
    steps_for,
)
from experiments.editing.module import MAX_SAVED_IMAGES, EditingModule
from experiments.editing.report import IDENTITY, sample_rows, write_report
from experiments.evaluation.classifier import Classifier, load_classifier
from experiments.evaluation.editing_metrics import EditingNetworks
from experiments.evaluation.editing_networks import (
    classifier_perceptual,
    classifier_structure,
    dino_structure,
    squeeze_lpips,
)
from experiments.evaluation.registry import EDITING
from experiments.planning.cost import Cost, StagePlan, estimate_seconds
from experiments.runtime.device import numerics
from experiments.runtime.progress import RunProgress, print_estimate
from experiments.runtime.running_means import RunningMeans
from experiments.runtime.unit_queue import ResumableRun, run_stages
from rnri import Inverter, LatentDiffusion
from rnri.editing import Editor, Injection, PromptToPrompt, edit_config_class
from rnri.validation import ConfigError, GuidanceScale, NonEmptyStr, RandomSeed, dataclass
from seedselect import ClipFeatures

BYTES_PER_RECORD = 1400  # approximate size in bytes of the stored metrics of one edited image


@dataclass(kw_only=True)
class EditingExperiment(ResumableRun):
    """The task of ``experiment=editing``, which compares methods for editing images with prompts.

    Args:
        model: function that loads a text-to-image model on the device ``device``, or a mapping from names to such
            functions. Every model is used for every edit.
        steps: number of steps of both inversion and sampling: one number for all models, or a dict from model names to
            numbers.
        guidance: guidance scale of inversion and sampling.
        methods: dict from names to inversion methods. From each inverted seed, two edited images are sampled with the
            target prompt: one without and one with attention of the source image.
        extra_methods: dict from names to additional methods, which do not use attention of the source image. Editors
            (:class:`~rnri.editing.inversion_free.Editor`) edit without inversion. Inversion methods sample from the
            inverted seed with the target prompt.
        prompt_to_prompt: edit method that reuses attention of the source image, for models with a U-Net.
        injection: edit method that reuses attention of the source image, for models with a transformer.
        benchmark: folder of a benchmark in PIE-Bench's format; if None, a benchmark is created from ``corpus`` in the
            folder ``run_dir``.
        corpus: folder of the emoji corpus, which is used if ``benchmark`` is None.
        kinds: kinds of edits to select, from ``experiments.editing.benchmark.KINDS``.
        count: number of edits to select, taken from each kind in turn; if None, all edits are selected.
        batch_size: number of edits that are computed in one batch. The batch size changes speed and memory consumption,
            but not the quality of the edits.
        clip: function that loads the CLIP model for the CLIP score on the device ``device``.
        classifier: folder or name of the evaluation classifier, which predicts the object that an edited image shows.
        dino: checkpoint of the DINO ViT for the structure distance; if None, the structure distance uses features of
            the classifier.
        lpips: file with the weights of SqueezeNet for LPIPS; if None, the perceptual distance uses features of the
            classifier without learned weights.
        min_psnr: the background of an edited image counts as preserved if its PSNR in dB is at least this value.
        baseline: name of the method with which every other method is compared on the same edits.
        seed: random seed of the bootstrap confidence intervals.
        run_dir: folder to which all outputs are written.
    """

    model: Callable[..., LatentDiffusion] | Annotated[Mapping[str, Callable[..., LatentDiffusion]], MinLen(1)]
    steps: PositiveInt | Mapping[str, PositiveInt]
    guidance: GuidanceScale
    methods: Mapping[str, Inverter]
    extra_methods: Mapping[str, Any]
    prompt_to_prompt: PromptToPrompt
    injection: Injection
    benchmark: NonEmptyStr | None
    corpus: NonEmptyStr
    kinds: Annotated[Sequence[Literal[KINDS]], MinLen(1)]
    count: PositiveInt | None
    batch_size: PositiveInt
    clip: Callable[..., ClipFeatures]
    classifier: NonEmptyStr
    dino: NonEmptyStr | None
    lpips: NonEmptyStr | None
    min_psnr: PositiveFloat
    baseline: NonEmptyStr
    seed: RandomSeed
    run_dir: NonEmptyStr
    networks: EditingNetworks = field(init=False)
    models: list[EditingModel] = field(init=False)
    jobs: list[EditJob] = field(init=False)
    skipped: list[dict[str, str]] = field(init=False)
    hashes: dict[str, dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        for name, method in self.extra_methods.items():
            if not isinstance(method, Inverter | Editor):
                raise ConfigError(
                    f"extra_methods.{name}", f"must be an inverter or an editor, got {type(method).__name__}."
                )
        if not self.methods and not self.extra_methods:
            raise ValueError("task.methods and task.extra_methods are both empty: add at least one method.")

    def prepare(self, trainer: Trainer) -> None:
        """Load the benchmark and all networks, and create the list of jobs.

        Raises:
            ValueError: the benchmark, a network or a setting is invalid.
        """
        edits = select_edits(read_benchmark(self._benchmark_folder()), self.kinds, self.count)
        files = [file for edit in edits for file in (edit.image, edit.target_image) if file is not None]
        check_images(files, "checking images of the benchmark")
        device = trainer.strategy.root_device
        self.numerics = numerics(trainer.precision, device)
        self._load(device)
        _check_labels(edits, self.networks.classifier)
        self.jobs, self.skipped = make_jobs(
            self.models, self.methods, self.extra_methods, edits, batch_size=self.batch_size
        )
        if all(job.model is None for job in self.jobs):
            first = next(each for each in self.skipped if each["model"] != NONE)
            raise ValueError(
                f"task.methods: no method supports any model; {first['method']} on {first['model']}: {first['reason']}"
            )

    def _benchmark_folder(self) -> Path:
        """Return the folder of the benchmark. If ``benchmark`` is None, create a benchmark in ``run_dir`` first."""
        if self.benchmark is not None:
            return Path(self.benchmark)
        folder = Path(self.run_dir) / "benchmark"
        if not folder.is_dir():
            temporary = folder.with_name(f".benchmark.{uuid4().hex[:16]}")
            try:
                make_benchmark.write(temporary, self.corpus)
                if not folder.is_dir():  # another process may have created the benchmark
                    temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def _load(self, device: torch.device) -> None:
        classifier = load_classifier(self.classifier, device)
        clip = self.clip(device=device)
        constructors = self.model if isinstance(self.model, Mapping) else {checkpoint_name(self.model): self.model}
        networks = {name: Networks(create(device=device), clip, classifier) for name, create in constructors.items()}
        for each in networks.values():
            each.check_weights()
        shared = next(iter(networks.values()))
        fingerprint = shared.classifier_fingerprint
        self.networks = EditingNetworks(
            clip,
            classifier,
            lpips=squeeze_lpips(self.lpips, device) if self.lpips else classifier_perceptual(classifier, fingerprint),
            structure=dino_structure(self.dino, device) if self.dino else classifier_structure(classifier, fingerprint),
        )
        attention = {PromptToPrompt: self.prompt_to_prompt, Injection: self.injection}
        self.models = [
            EditingModel(
                name, each.model, steps_for(name, self.steps), self.guidance, attention[edit_config_class(each.model)]
            )
            for name, each in networks.items()
        ]
        for each in self.models:
            try:
                each.model.schedule(each.steps)
            except ValueError as error:
                raise ValueError(f"task.steps: the model {each.name}: {error}") from None
        self.hashes = {name: {"name": name, "sha256": each.model_fingerprint} for name, each in networks.items()}
        self.hashes |= {
            "clip": {"name": "CLIP", "sha256": shared.clip_fingerprint},
            "classifier": {"name": classifier.title, "sha256": fingerprint},
            "lpips": {"name": self.networks.lpips.name, "sha256": self.networks.lpips.fingerprint},
            "structure": {"name": self.networks.structure.name, "sha256": self.networks.structure.fingerprint},
        }

    def run(self, trainer: Trainer) -> float:
        """Compute all results that are not on disk yet; then write the report in one of the processes.

        Returns the CLIP score in the last row of the results table.
        """
        units = self.units()
        self._announce(units, trainer.world_size)
        size = self.models[0].model.image_size
        module = EditingModule(self.networks, units, size=size, min_psnr=self.min_psnr)
        running_means = RunningMeans(partial(self._sample_rows, units), IDENTITY, EDITING.live)
        work = EditJobDataModule(self.jobs, units, RunProgress(), self.leases, running_means=running_means)
        run_stages(trainer, (module, work))
        if not self.writes_report(trainer):
            return 0.0
        finished = [(job, *units[job.folder_key].read(job.key)) for job in self.jobs]
        rows = write_report(
            Path(self.run_dir),
            finished,
            baseline=self.baseline,
            networks=self.hashes,
            skipped=self.skipped,
            settings=self.dependencies() | {"kinds": list(self.kinds), "guidance": self.guidance},
            loggers=trainer.loggers,
            seed=self.seed,
        )
        return rows[-1]["clip_score"]

    def plan(self, trainer: Trainer) -> list[StagePlan]:
        """Return the cost and the disk space of each method with each model, without running the methods."""
        units = self.units()
        by_label: dict[str, list[EditJob]] = {}
        for job in self.jobs:
            by_label.setdefault(job.label, []).append(job)
        return [self._stage(label, jobs, units[jobs[0].folder_key]) for label, jobs in by_label.items()]

    def _stage(self, label: str, jobs: Sequence[EditJob], store: UnitStore) -> StagePlan:
        pending = [job for job in jobs if not store.done(job.key)]
        cost = sum((job.cost for job in pending), Cost())
        image_bytes = 3 * math.prod(self.models[0].model.image_size)
        images = sum(min(len(job.edits), MAX_SAVED_IMAGES) * len(job.edit_methods) for job in jobs)
        records = sum(len(job.edits) * len(job.edit_methods) for job in jobs)
        size = image_bytes * images + BYTES_PER_RECORD * records
        return StagePlan(label, len(jobs), len(jobs) - len(pending), cost, size)

    @staticmethod
    def _sample_rows(units: Mapping[str, UnitStore], job: EditJob) -> list[dict[str, Any]]:
        """Return the stored metrics of a finished job, with one row per edit and edit method.

        NaN is replaced by None.
        """
        rows = sample_rows(job, units[job.folder_key].record(job.key)["rows"])
        return [{**row, **{name: None for name in EDITING.live if math.isnan(row[name])}} for row in rows]

    def _announce(self, units: Mapping[str, UnitStore], processes: int) -> None:
        """Print the skipped combinations of method and model, the number of batches, and the estimated duration."""
        for each in self.skipped:
            where = "" if each["model"] == NONE else f" on {each['model']}"
            print(f"Skipped{where}: {each['method']}. {each['reason']}", flush=True)
        pending = [job for job in self.jobs if not units[job.folder_key].done(job.key)]
        costs = [sum((job.cost for job in pending if job.model is model), Cost()) for model in self.models]
        prompts = [edit.source for edit in self.jobs[0].edits]
        seconds = sum(
            estimate_seconds(cost, each.model, prompts) for cost, each in zip(costs, self.models, strict=True)
        )
        nfe = sum(cost.nfe for cost in costs)
        print_estimate(len(self.jobs), nfe, seconds / processes, unit="batch", done=len(self.jobs) - len(pending))

    def units(self) -> dict[str, UnitStore]:
        """Return a dict from the ``folder_key`` of a job to the store (folder) for the results of the job.

        Runs with different settings use different stores, so that the results of the runs are not mixed.
        """
        return {
            job.folder_key: UnitStore(
                Path(self.run_dir) / "units" / job.name.replace(" ", "_"),
                self.dependencies()
                | self._model_settings(job.model)
                | {"method": fingerprint_config(job.method), "name": job.name, "edit_methods": list(job.edit_methods)},
            )
            for job in self.jobs
        }

    def _model_settings(self, model: EditingModel | None) -> dict[str, Any]:
        """Return the settings on which the results of ``model`` depend, as a part of the cache key of the results.

        If ``model`` is None, the results are those of a reference method, which depend only on the image size.
        """
        if model is None:
            return {"size": list(self.models[0].model.image_size)}
        return {
            "model": self.hashes[model.name]["sha256"],
            "steps": model.steps,
            "guidance": model.guidance,
            "attention": fingerprint_config(model.attention),
        }

    def dependencies(self) -> dict[str, Any]:
        """Return the settings on which all results depend, as a part of the cache key of the results.

        The batch size is included, because the results of one batch are stored together.
        """
        networks = {name: self.hashes[name]["sha256"] for name in ("clip", "classifier", "lpips", "structure")}
        return {"numerics": self.numerics, "batch_size": self.batch_size, "min_psnr": self.min_psnr, **networks}


def _check_labels(edits: Sequence[BenchmarkEdit], classifier: Classifier) -> None:
    """Raise ValueError if an edit should show an object for which the classifier has no label."""
    labels = set(classifier.labels)
    for edit in edits:
        if edit.expected_label is not None and edit.expected_label not in labels:
            raise ValueError(
                f"task.classifier: the classifier has no label {edit.concept!r}, but the edit {edit.key} should show "
                "this object; set task.classifier to a classifier that was trained on the concepts of the benchmark."
            )
