"""Inversion methods side by side: how well they reconstruct, what they cost, where they converge.

The tasks behind ``experiment=reconstruction``, ``guidance``, ``convergence``, ``editing`` and ``lam`` differ in methods
and settings only. A *unit* is one method under one setting on a batch of images; it is on disk before the next begins.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from lightning.pytorch import LightningModule, Trainer
from pydantic import PositiveInt
from torch import Tensor

from experiments.base import ConceptTask, Networks
from experiments.cache.key import describe
from experiments.cache.store import UnitStore, synchronize
from experiments.data.captions import CaptionedImages
from experiments.evaluation.lpips import SMALLEST, ShiftTolerantLpips, load_lpips
from experiments.evaluation.metrics import perceptual_distance, psnr, ssim
from experiments.inversion.figures import FIGURES, kept_pictures
from experiments.inversion.jobs import VAE_BOUND, InversionJob, InversionJobData, Setting, from_captions, jobs, from_concepts, unit_name
from experiments.inversion.report import IDENTITY, SO_FAR, sample_rows, write_report
from experiments.planning.cost import Cost, Planned, announce_cost, inversion_cost
from experiments.finite import NonFiniteError, is_finite, mask_nonfinite
from experiments.runtime.progress import Progress
from experiments.runtime.running_means import Running
from experiments.runtime.unit_queue import carry_out
from rnri import DecoderInversion, Inverter, check_schedule, with_measured_residuals
from rnri.models.fingerprint import fingerprint
from rnri.validation import NonEmptyStr, dataclass

RECORD = 700  # bytes that a unit keeps of an image
PICTURES = 8  # reconstructions kept a method and setting
MANY = 50  # steps, with which a method that fits a model at all fits it
KEPT = 32  # batches whose latents are kept for other methods: what is kept must not grow with the images


class InversionModule(LightningModule):
    """Inverts and reconstructs a batch of images, measures everything, and writes the unit."""

    def __init__(
        self, networks: Networks, units: Mapping[str, UnitStore], progress: Progress, noise_seed: int,
        lpips: ShiftTolerantLpips | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.lpips = lpips
        self.networks, self.units, self.progress, self.noise_seed = networks, units, progress, noise_seed
        self._known: OrderedDict[tuple, tuple[Tensor, Tensor | None]] = OrderedDict()

    def predict_step(self, job: InversionJob, _: int) -> str:
        """Writes the unit of a job; returns its label.

        An image that is not finite, or is made of latents that are not, is measured as NaN, counted, and not shown.

        Raises:
            NotFinite: the VAE returns none of the first images finite: no method could do better.
        """
        self.progress.stage(job.label)
        model, prompts = self.networks.model, [image.prompt for image in job.images]
        targets = [job.setting.target(prompt) for prompt in prompts]
        images, z0, true = self._clean(job, prompts)
        columns: dict[str, Tensor] = {}
        if job.inverter is None:
            target = z = z0
        else:
            target, z, columns = self._invert(job, z0, prompts, targets)
        with torch.no_grad():
            again = mask_nonfinite(model.decode(z, clamp=False))
            columns |= self._image_columns(images, again, targets)
        store, finite = self.units[unit_name(job)], is_finite(again)
        if job.inverter is None and not finite.any() and store.empty():
            raise NonFiniteError(
                f"the VAE makes no finite image of {', '.join(repr(image.name) for image in job.images)}: its weights "
                "are damaged, or overflow in their precision; try model.dtype=float32 and trainer.precision=32-true."
            )
        columns["not_finite"] = (~finite).double()
        columns["latent_mse"] = (z.float() - z0).square().flatten(1).mean(1)
        if true is not None:
            latents = {"encoded": z0, "adjusted": target, "reconstructed": z}
            columns |= {f"distance_{name}": _distance(latent, true) for name, latent in latents.items()}
        rows = [{name: float(values[k]) for name, values in columns.items()} for k in range(len(images))]
        shown = PICTURES if job.first else 0
        store.write(job.key, kept_pictures(images=images[:shown], reconstructions=again[:shown]), {"rows": rows})
        self.progress.finish(1)
        return job.label

    def _clean(self, job: InversionJob, prompts: list[str]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images ``[B,3,H,W]`` in [0, 1], their latents, and of generated images those that they were decoded from.

        Latents are kept for the other methods: sampling and decoder inversion cost as much as an inversion.
        """
        model, setting = self.networks.model, job.setting
        source = (setting.steps, setting.guidance) if setting.generated else None
        key = (job.key, source, setting.decoder_iterations)
        z0, true = self._known.get(key) or (None, self._generate(job, prompts))
        if true is None:
            images = torch.stack([image.image for image in job.images]).to(self.device).float() / 255
        else:
            with torch.no_grad():
                images = mask_nonfinite(model.decode(true, clamp=False))
        if z0 is None:
            lost = ~is_finite(images).to(images.device).view(-1, 1, 1, 1)
            z0 = DecoderInversion(setting.decoder_iterations)(model, images.masked_fill(lost, 0.5))
            z0 = z0.masked_fill(lost, torch.nan)
            self._known[key] = z0, true
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        return images, z0, true

    def _generate(self, job: InversionJob, prompts: list[str]) -> Tensor | None:
        """Latents that the model makes of the prompts, where the setting asks for them."""
        if not job.setting.generated:
            return None
        model = self.networks.model
        noise = model.noise([image.name for image in job.images], self.noise_seed)
        with torch.no_grad():
            predictor = model.predictor(prompts, job.setting.guidance)
            return model.sample(noise, predictor, model.schedule(job.setting.steps))

    def _invert(
        self, job: InversionJob, z0: Tensor, prompts: list[str], targets: list[str]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The latents that were inverted under ``prompts``, what they became when sampled under ``targets``, and what
        the inversion says by image."""
        model, setting = self.networks.model, job.setting
        schedule, predictor = model.schedule(setting.steps), model.predictor(prompts, setting.guidance)
        path: list[Tensor] = []
        start = self._now()
        inversion = job.inverter.invert(z0, predictor, schedule, lambda _, z: path.append(z))
        seconds = self._now() - start
        sampler = predictor if targets == prompts else model.predictor(targets, setting.guidance)
        z = job.inverter.reconstruct(inversion, sampler, schedule).float()
        found = with_measured_residuals(inversion, path, predictor, schedule, TOLERANCE)
        return (
            inversion.z0,
            z,
            {
                "residual": found.residuals.max(0).values,
                "residual_mean": found.residuals.mean(0),
                "solved": found.solved.double().mean(0),
                "converged": found.converged,
                "nfe_per_step": inversion.nfe.double().mean(0),
                "backward_per_step": inversion.backward.double().mean(0),
                "seconds": torch.full((len(z0),), seconds / len(z0)),
                "stored_bytes": torch.full((len(z0),), inversion.aux_bytes),
                "latent_shift": _distance(inversion.z0, z0),
                "norm": inversion.seed.flatten(1).norm(dim=1) / inversion.seed[0].numel() ** 0.5,
            },
        )

    def _image_columns(self, images: Tensor, again: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        text, clip = self.networks.clip.text(prompts), self.networks.clip(again)
        own = {} if self.lpips is None else {"st_lpips": self.lpips(again.clamp(0, 1), images)}
        return own | {
            "psnr": psnr(again, images),
            "ssim": ssim(again, images),
            "perceptual": perceptual_distance(self.networks.classifier, again, images),
            "clip_score": (text * clip).sum(1),
        }

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


TOLERANCE = 1e-4
"""On a step's residual, to be called solved: the paper's criterion (appendix G)."""


def _described(job: InversionJob) -> str:
    """What a job's row of a plan is called."""
    setting = job.setting
    parts = [job.method if job.inverter is None else job.label]
    if setting.nfe is not None:
        parts.append(f"{setting.nfe} evaluations")
    if setting.prompts != "right":
        parts.append(setting.prompts)
    if setting.generated:
        parts.append("generated")
    if setting.decoder_iterations:
        parts.append("decoder inversion")
    return ", ".join(parts)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of each latent, float64 ``[B]`` on the CPU."""
    return (a.cpu().double() - b.cpu().double()).flatten(1).norm(dim=1)


@dataclass(kw_only=True)
class InversionExperiment(ConceptTask):
    """The task behind the experiments on inversion.

    Args:
        methods: what is compared, by name.
        settings: under what.
        images: how many.
        batch_size: images computed together; changes speed and memory, not results.
        reports: figures beside the table, by name (see :mod:`experiments.inversion.figures`).
        paper: rows of the paper's table, shown below ours.
        stlpips: weights of a perceptual distance beside the judge's (:mod:`experiments.evaluation.lpips`).
    """

    methods: Annotated[Mapping[str, Inverter], MinLen(1)]
    settings: Annotated[Sequence[Setting], MinLen(1)]
    images: PositiveInt
    batch_size: PositiveInt
    reports: Sequence[NonEmptyStr]
    paper: Sequence[Mapping[str, Any]]
    stlpips: NonEmptyStr | None = None
    jobs: list[InversionJob] = field(init=False)
    left_out: dict[str, str] = field(init=False)

    def prepare(self, trainer: Trainer) -> None:
        """Loads everything that the run needs; ValueError says what is wrong with it."""
        if VAE_BOUND in self.methods:
            raise ValueError(f"a method cannot be called {VAE_BOUND!r}: that is the ceiling's name.")
        unknown = [name for name in self.reports if name not in FIGURES]
        if unknown:
            raise ValueError(f"task.reports names {unknown[0]!r}: choose from {', '.join(FIGURES)}.")
        pairs = self.source.from_captions() if isinstance(self.source, CaptionedImages) else None
        if pairs is None:
            self.choose_concepts()
        else:
            self.chosen = []
        self.load_networks(trainer, [setting.steps for setting in self.settings])
        self.lpips = self._load_lpips(trainer)
        generator = torch.Generator().manual_seed(self.seed)
        if pairs is None:
            chosen = from_concepts(self.chosen, self.images, generator)
        else:
            sized = dataclasses.replace(pairs, images=pairs.images.resized(self.networks.model.image_size))
            chosen = from_captions(sized, self.images, generator)
        wanted = jobs(self.methods, self.settings, chosen, self.batch_size)
        self.left_out = self._unfit(wanted)
        self.jobs = [job for job in wanted if job.method not in self.left_out]
        for job in self.jobs if any(job.inverter for job in self.jobs) else wanted:
            self._check_steps(job)

    def _load_lpips(self, trainer: Trainer) -> ShiftTolerantLpips | None:
        if self.stlpips is None:
            return None
        smallest = min(self.networks.model.image_size)
        if smallest < SMALLEST:
            raise ValueError(
                f"metrics.stlpips compares images of at least {SMALLEST} pixels a side, and this model makes "
                f"{smallest}: leave it out, or take another model."
            )
        return load_lpips(self.stlpips, trainer.strategy.root_device)

    def _unfit(self, wanted: Sequence[InversionJob]) -> dict[str, str]:
        """Methods that fit the model with no number of steps, as those of another family of models, and why."""
        found = {}
        for job in {job.method: job for job in wanted if job.inverter is not None}.values():
            try:
                check_schedule(job.inverter, self.networks.model.schedule(max(job.setting.steps, MANY)))
            except ValueError as error:
                found[job.method] = str(error)
        return found

    def _check_steps(self, job: InversionJob) -> None:
        try:
            if job.inverter is not None:
                check_schedule(job.inverter, self.networks.model.schedule(job.setting.steps))
        except ValueError as error:
            raise ValueError(f"task.methods.{job.method} in a setting of {job.setting.steps} steps: {error}") from error

    def run(self, trainer: Trainer) -> float:
        """Computes what is not on disk yet; then the first process reports. Returns the last method's mean PSNR."""
        units, progress = self.units(), Progress("inversions", unit="batch")
        self._announce(units, trainer.world_size)
        module = InversionModule(self.networks, units, progress, self.seed, self.lpips)
        running = Running(partial(self._rows, units), IDENTITY, SO_FAR)
        carry_out(trainer, (module, InversionJobData(self.jobs, units, progress, self.claims, running)))
        if not self.writes_report(trainer):
            return 0.0
        found = [(job, *self._read(units, job)) for job in self.jobs]
        rows = write_report(
            Path(self.run_dir), found, self.reports, self.paper, self.dependencies(), trainer.loggers, self.seed,
            self.networks.classifier.title, self.left_out,
        )  # fmt: skip
        return rows[-1]["psnr"]

    def plan(self) -> list[Planned]:
        """What each method would take under each setting."""
        units, model, stages = self.units(), self.networks.model, []
        pixels = 3 * math.prod(model.image_size)
        named: dict[str, list[InversionJob]] = {}
        for job in self.jobs:
            named.setdefault(unit_name(job), []).append(job)
        for name, own in named.items():
            job, pending = own[0], [j for j in own if not units[name].done(j.key)]
            schedule = model.schedule(job.setting.steps)
            each = Cost()
            if job.inverter is not None:
                each = inversion_cost(
                    job.inverter, schedule, job.setting.guidance, model.latent_shape[0], whole=True
                )  # fmt: skip
            images = sum(len(j.images) for j in pending)
            shown = min(len(job.images), PICTURES)
            size = RECORD * sum(len(j.images) for j in own) + 2 * shown * pixels
            stages.append(
                Planned(_described(job), len(own), len(own) - len(pending), (each + job.own_cost).times(images), size)
            )
        return stages

    def prompts(self) -> list[str]:
        """Those of one batch."""
        return [image.prompt for image in self.jobs[0].images]

    @staticmethod
    def _rows(units: Mapping[str, UnitStore], job: InversionJob) -> list[dict[str, Any]]:
        """What the table's samples say of a finished unit."""
        return sample_rows(job, units[unit_name(job)].record(job.key)["rows"])

    @staticmethod
    def _read(units: Mapping[str, UnitStore], job: InversionJob) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A finished unit; of its pictures those of the first batch alone are shown, and kept in memory."""
        tensors, record = units[unit_name(job)].read(job.key)
        return (tensors if job.first else {}), record

    def _announce(self, units: Mapping[str, UnitStore], processes: int) -> None:
        for method, reason in self.left_out.items():
            print(f"Left out: {method}. {reason}", flush=True)
        pending = [job for job in self.jobs if not units[unit_name(job)].done(job.key)]
        announce_cost(
            sum((job.cost for job in pending), Cost()), len(self.jobs), len(self.jobs) - len(pending), "batch",
            model=self.networks.model, prompts=self.prompts(), processes=processes,
        )  # fmt: skip

    def units(self) -> dict[str, UnitStore]:
        """Finished units by :func:`experiments.inversion.jobs.unit_name`; other settings have other units."""
        shared = self.dependencies()
        return {
            unit_name(job): UnitStore(
                Path(self.run_dir) / "units" / job.method,
                shared | {"inverter": describe(job.inverter), "setting": describe(job.setting)},
            )
            for job in self.jobs
        }

    def dependencies(self) -> dict[str, Any]:
        """A unit is a batch, and holds what CLIP, the classifier and LPIPS say of its images."""
        lpips = {} if self.lpips is None else {"stlpips": fingerprint({"stlpips": self.lpips}, {})}
        own = {
            "batch_size": self.batch_size,
            "clip": self.networks.clip_fingerprint,
            "classifier": self.networks.classifier_fingerprint,
        }
        return super().dependencies() | lpips | own
