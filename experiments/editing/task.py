"""Edits by every inversion method and way of editing, on several models: how well, and how long they take.

A *unit* is one method of one model on a batch of edits, in each of the method's ways; it is on disk before the next
begins.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

import torch
from annotated_types import MinLen
from lightning.pytorch import LightningModule, Trainer
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from experiments.base import Networks as Loaded
from experiments.cache.key import describe
from experiments.cache.store import UnitStore, numerics, synchronize
from experiments.editing import make_benchmark
from experiments.editing.benchmark import KINDS, read_benchmark
from experiments.editing.jobs import (
    ATTENTION,
    NONE,
    TRUE,
    EditResult,
    Job,
    JobData,
    checkpoint_name,
    evenly,
    jobs,
    steps_of,
)
from experiments.editing.report import IDENTITY, SCORES, sample_rows, write_report
from experiments.evaluation import load_classifier
from experiments.evaluation.editing_metrics import Networks, check_labels, measures
from experiments.evaluation.editing_networks import dino_structure, judge_lpips, judge_structure, squeeze_lpips
from experiments.planning.cost import Cost, seconds_of
from experiments.reporting.finite import mask_nonfinite, select_finite
from experiments.runtime.progress import Progress, announce
from experiments.runtime.running_means import Running
from experiments.runtime.unit_queue import ResumableRun, carry_out
from rnri import Inversion, Inverter, LatentDiffusion
from rnri.editing import Editor, Injection, PromptToPrompt, attention_edit, edit_latents
from rnri.validation import GuidanceScale, NonEmptyStr, RandomSeed, dataclass
from seedselect import ClipFeatures

PICTURES = 8  # edits kept a method and way
Shown = tuple[str, Tensor, dict[str, Tensor]]
"""A way, the images ``[B,3,H,W]`` that it makes, and what is known of how they were made."""


class EditingModule(LightningModule):
    """Edits a batch of images in each of a method's ways, measures everything, and writes the unit."""

    def __init__(
        self, networks: Networks, units: Mapping[str, UnitStore], progress: Progress, size: tuple[int, int],
        min_psnr: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.networks, self.units, self.progress = networks, units, progress
        self.size, self.min_psnr = size, min_psnr
        self._warm: set[str] = set()

    @torch.no_grad()
    def predict_step(self, job: Job, _: int) -> str:
        """Writes the unit of a job; returns its label."""
        self.progress.stage(job.label)
        size = self.size if job.model is None else job.model.model.image_size
        originals = torch.stack([edit.picture(size) for edit in job.edits]).to(self.device)
        tensors: dict[str, Tensor] = {}
        rows: dict[str, list[dict[str, float]]] = {}
        for way, images, columns in self._beside(job, size) if job.model is None else self._edits(job, originals):
            columns = columns | measures(images, originals, job.edits, self.networks, self.min_psnr)
            columns["not_finite"] = images.isnan().flatten(1).any(1).double()
            rows[way] = [{name: float(values[k]) for name, values in columns.items()} for k in range(len(images))]
            tensors[way], tensors[f"{way}_finite"] = select_finite(images[:PICTURES])
        self.units[job.unit].write(job.key, tensors, {"rows": rows})
        self.progress.finish(1)
        return job.label

    def _beside(self, job: Job, size: tuple[int, int]) -> Iterator[Shown]:
        """The images themselves, or their true edits."""
        yield NONE, torch.stack([edit.picture(size, target=job.name == TRUE) for edit in job.edits]).to(self.device), {}

    def _edits(self, job: Job, originals: Tensor) -> Iterator[Shown]:
        """What each way makes of the images; an inversion is made once, and its time counted in every way."""
        edited, model = job.model, job.model.model
        self._warm_up(edited, originals)
        with NetworkClock(model, self.device) as first:
            z0 = model.encode(originals)
            inversion = None if isinstance(job.method, Editor) else self._inverted(job, z0)
        for way in job.ways:
            with NetworkClock(model, self.device) as clock:
                z, columns = self._edited(way, job, z0, inversion)
                images = model.decode(z, clamp=False)
            times = {"seconds": first.total + clock.total, "seconds_networks": first.within + clock.within}
            columns |= {name: torch.full((len(z),), seconds / len(z)) for name, seconds in times.items()}
            yield way, mask_nonfinite(images), columns

    def _inverted(self, job: Job, z0: Tensor) -> Inversion:
        edited = job.model
        predictor = edited.model.predictor([edit.source for edit in job.edits], edited.guidance)
        return job.method.invert(z0, predictor, edited.model.schedule(edited.steps))

    def _edited(self, way: str, job: Job, z0: Tensor, inversion: Inversion | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The edited latents, and how far the inversion's reconstruction lies from the image, where that is known."""
        edited, model = job.model, job.model.model
        schedule = model.schedule(edited.steps)
        sources, targets = [edit.source for edit in job.edits], [edit.target for edit in job.edits]
        if inversion is None:
            predictors = zip((sources, targets), job.method.guidances(edited.guidance), strict=True)
            return job.method.edit(z0, *(model.predictor(*each) for each in predictors), schedule).float(), {}
        if way not in ATTENTION.values():
            predictor = model.predictor(targets, edited.guidance)
            return job.method.reconstruct(inversion, predictor, schedule).float(), {}
        again, z = edit_latents(
            model, job.method, inversion, sources, targets, schedule, edited.attention, edited.guidance
        )  # fmt: skip
        return z.float(), {"latent_mse": (again.float() - z0).square().flatten(1).mean(1)}

    def _warm_up(self, edited: EditResult, originals: Tensor) -> None:
        """One call of each network, so that no method's time holds what only the first call takes."""
        if edited.name not in self._warm:
            z = edited.model.encode(originals)
            edited.model.predictor([""] * len(z), edited.guidance)(z, edited.model.schedule(edited.steps).timestep(0))
            edited.model.decode(z)
            self._warm.add(edited.name)


class NetworkClock:
    """Measures, while it is entered, how long a model's networks run: predictor, text encoders, VAE.

    Attributes:
        within: seconds within their calls.
        total: all seconds, known once it is left.
    """

    def __init__(self, model: LatentDiffusion, device: torch.device) -> None:
        self.device, self.within, self.total = device, 0.0, 0.0
        pipe = model.pipeline
        encoders = [part for name, part in pipe.components.items() if name.startswith("text_encoder") and part]
        self._parts: list[nn.Module] = [model.family.network, *encoders, pipe.vae.encoder, pipe.vae.decoder]
        self._handles: list[Any] = []

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def __enter__(self) -> NetworkClock:
        begun: list[float] = []

        def before(*_: Any) -> None:
            begun.append(self._now())

        def after(*_: Any) -> None:
            self.within += self._now() - begun.pop()

        for part in self._parts:
            self._handles += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.total = self._now() - self._start
        for handle in self._handles:
            handle.remove()


@dataclass(kw_only=True)
class EditingExperiment(ResumableRun):
    """The task behind ``experiment=editing``.

    Args:
        model: makes the model, given a device; or several such by name, each of which edits.
        steps: of inversion and sampling: one number, or one by the model's name.
        guidance: of inversion and sampling.
        methods: inverters, whose seeds are sampled under the edited prompt, with and without the source's attention.
        others: what edits in its own way: editors without an inversion, and inverters that are sampled under the edited
            prompt.
        prompt_to_prompt, injection: how attention is edited, in UNets and in transformers.
        benchmark: a folder in PIE-Bench's format; None: the embedded corpus' own, made in ``run_dir``.
        corpus: the corpus that it is made of.
        kinds: of edits, by their names in ``experiments.editing.benchmark.KINDS``.
        count: how many edits, of the kinds in turns; None: all.
        batch_size: edits computed together; changes speed and memory, not results.
        clip, classifier: what scores an edit by its prompt, and what names objects.
        dino: a DINO ViT for the structure distance; None: the judge's features.
        lpips: SqueezeNet's weights for LPIPS; None: the judge's features, without learned weights.
        min_psnr: background PSNR in dB from which on a background counts as kept.
        against: the method that the others are compared to, in pairs.
        seed: of the bootstrap.
        run_dir: where everything is written.
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
    networks: Networks = field(init=False)
    models: list[EditResult] = field(init=False)
    jobs: list[Job] = field(init=False)
    left_out: list[dict[str, str]] = field(init=False)
    hashes: dict[str, dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        for name, method in self.extra_methods.items():
            if not isinstance(method, Inverter | Editor):
                raise ValueError(f"task.extra_methods.{name} neither edits nor inverts: name a class with edit, or invert.")
        if not self.methods and not self.extra_methods:
            raise ValueError("task.methods and task.extra_methods are both empty: give at least one method.")

    def prepare(self, trainer: Trainer) -> None:
        """Loads everything that the run needs; ValueError says what is wrong with it."""
        edits = evenly(read_benchmark(self._benchmark()), self.kinds, self.count)
        device = trainer.strategy.root_device
        self.numerics = numerics(trainer.precision, device)
        self._load(device)
        check_labels(edits, self.networks.judge)
        self.jobs, self.left_out = jobs(self.models, self.methods, self.extra_methods, edits, self.batch_size)

    def _benchmark(self) -> Path:
        if self.benchmark is not None:
            return Path(self.benchmark)
        folder = Path(self.run_dir) / "benchmark"
        if not folder.is_dir():
            temporary = folder.with_name(f".benchmark.{uuid4().hex[:16]}")
            try:
                make_benchmark.write(temporary, self.corpus)
                if not folder.is_dir():  # another process may have been faster
                    temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def _load(self, device: torch.device) -> None:
        judge, clip = load_classifier(self.classifier, device), self.clip(device=device)
        given = self.model if isinstance(self.model, Mapping) else {checkpoint_name(self.model): self.model}
        loaded = {name: Loaded(make(device=device), clip, judge) for name, make in given.items()}
        one = next(iter(loaded.values()))
        sha = one.classifier_fingerprint
        self.networks = Networks(
            clip,
            judge,
            lpips=judge_lpips(judge, sha) if self.lpips is None else squeeze_lpips(self.lpips, device),
            structure=judge_structure(judge, sha) if self.dino is None else dino_structure(self.dino, device),
        )
        for own in loaded.values():
            own.check_weights()
        hows = {PromptToPrompt: self.prompt_to_prompt, Injection: self.injection}
        self.models = [
            EditResult(name, own.model, steps_of(name, self.steps), self.guidance, hows[attention_edit(own.model)])
            for name, own in loaded.items()
        ]
        self.hashes = {name: {"name": name, "sha256": own.model_fingerprint} for name, own in loaded.items()} | {
            "clip": {"name": "CLIP", "sha256": one.clip_fingerprint},
            "judge": {"name": "the judge", "sha256": sha},
            "lpips": {"name": self.networks.lpips.name, "sha256": self.networks.lpips.sha},
            "structure": {"name": self.networks.structure.name, "sha256": self.networks.structure.sha},
        }

    def run(self, trainer: Trainer) -> float:
        """Computes what is not on disk yet; then the first process reports. Returns the last row's CLIP score."""
        units, progress = self.units(), Progress("edits", unit="batch")
        self._announce(units, trainer.world_size)
        size = self.models[0].model.image_size
        module = EditingModule(self.networks, units, progress, size, self.min_psnr)
        running = Running(partial(self._rows, units), IDENTITY, SCORES)
        carry_out(trainer, (module, JobData(self.jobs, units, progress, self.claims, running)))
        if not self.writes_report(trainer):
            return 0.0
        found = [(job, *units[job.unit].read(job.key)) for job in self.jobs]
        rows = write_report(
            Path(self.run_dir), found, baseline=self.baseline, networks=self.hashes, left_out=self.left_out,
            settings=self.dependencies() | {"kinds": list(self.kinds), "guidance": self.guidance},
            loggers=trainer.loggers, seed=self.seed,
        )  # fmt: skip
        return rows[-1]["clip_score"]

    @staticmethod
    def _rows(units: Mapping[str, UnitStore], job: Job) -> list[dict[str, Any]]:
        """What the table's samples say of a finished unit; what an edit has no value for is None."""
        rows = sample_rows(job, units[job.unit].record(job.key)["rows"])
        return [{**row, **{name: None for name in SCORES if math.isnan(row[name])}} for row in rows]

    def _announce(self, units: Mapping[str, UnitStore], processes: int) -> None:
        for each in self.left_out:
            print(f"Left out on {each['model']}: {each['method']}. {each['reason']}", flush=True)
        pending = [job for job in self.jobs if not units[job.unit].done(job.key)]
        costs = [sum((job.cost for job in pending if job.model is model), Cost()) for model in self.models]
        prompts = [edit.source for edit in self.jobs[0].edits]
        seconds = sum(seconds_of(cost, own.model, prompts) for cost, own in zip(costs, self.models, strict=True))
        announce(
            len(self.jobs), sum(cost.nfe for cost in costs), seconds / processes, unit="batch",
            done=len(self.jobs) - len(pending),
        )  # fmt: skip

    def units(self) -> dict[str, UnitStore]:
        """Finished units by ``Job.unit``; other settings have other units."""
        return {
            job.unit: UnitStore(
                Path(self.run_dir) / "units" / job.name.replace(" ", "_"), self.dependencies() | self._of(job.model)
                | {"method": describe(job.method), "name": job.name, "ways": list(job.ways)},
            )
            for job in self.jobs
        }  # fmt: skip

    def _of(self, edited: EditResult | None) -> dict[str, Any]:
        if edited is None:
            return {"size": list(self.models[0].model.image_size)}
        return {
            "model": self.hashes[edited.name]["sha256"], "steps": edited.steps, "guidance": edited.guidance,
            "attention": describe(edited.attention),
        }  # fmt: skip

    def dependencies(self) -> dict[str, Any]:
        """What every unit depends on: it is a batch, and holds what the networks say of its images."""
        scoring = {name: self.hashes[name]["sha256"] for name in ("clip", "judge", "lpips", "structure")}
        return {"numerics": self.numerics, "batch_size": self.batch_size, "min_psnr": self.min_psnr, **scoring}
