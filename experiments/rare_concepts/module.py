"""The Lightning module that generates the images of all arms (pipelines)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from experiments.cache.store import UnitStore
from experiments.finite import NonFiniteError, select_finite
from experiments.planning.cost import batch_multiplier
from experiments.rare_concepts.arm import Arm
from experiments.rare_concepts.context import RunContext
from experiments.rare_concepts.data import ConceptBatch
from experiments.runtime.device import synchronize
from experiments.runtime.progress import RunProgress
from rnri import NoisePredictor, Schedule
from rnri.models.sampling import to_state_dtype, trajectory
from seedselect import Preview, Problem, Selection, Targets, Trajectory, appearance_loss, semantic_loss

Unit = tuple[dict[str, Tensor], dict[str, Any]]
"""Images and seeds of one concept, generated with one arm (pipeline), and a record that can be stored as JSON."""


class RareConceptModule(LightningModule):
    """Initializes and optimizes the seeds of a batch, samples images from the seeds, and writes one file per concept.

    The file of a concept, called a unit, contains the results of n samples (generated images):

    - ``images``, ``uint8 [m, 3, H, W]``: the m samples without NaN and infinity.
    - ``seeds``, ``float32 [n, C, h, w]``: the seed of each sample. If an image contains NaN or infinity, its seed is
      stored as NaN.
    - a record of durations, with one entry per sample.

    A sample with NaN or infinity does not change the other samples.
    """

    def __init__(self, context: RunContext, stores: Mapping[str, UnitStore], progress: RunProgress) -> None:
        super().__init__()
        self.context = context
        self.stores = stores
        self.progress = progress

    def predict_step(self, batch: ConceptBatch, _: int) -> list[str]:
        """Generate and write the images of a batch of concepts; return the names of the concepts.

        The record of a concept contains two durations in seconds, ``t_init`` and ``t_opt``. The value of ``t_init`` is
        the time to invert the reference images of the concept and to compute the initial seeds. The value of ``t_opt``
        is the time to optimize a seed, averaged over the samples of the concept.

        Raises:
            NonFiniteError: every image of the batch contains NaN or infinity, and the arm has no finished images yet.
                The probable cause is the checkpoint or its precision, so that the other concepts would fail, too.
        """
        finite = batch.has_finite_seeds()
        computed = iter(self._generate(batch.select(finite)) if any(finite) else [])
        units = [next(computed) if ok else self._empty_unit(batch, g) for g, ok in enumerate(finite)]
        store = self.stores[batch.arm]
        if store.empty() and not any(len(tensors["images"]) for tensors, _ in units):
            raise NonFiniteError(_no_image_message(batch, finite))
        for concept, (tensors, record) in zip(batch.concepts, units, strict=True):
            store.write(concept.key, tensors, record)
        return [concept.name for concept in batch.concepts]

    def _generate(self, batch: ConceptBatch) -> list[Unit]:
        """Generate the images of a batch; return one :data:`Unit` (images, seeds and record) per concept."""
        arm = self.context.arms[batch.arm]
        samples = self.context.samples
        start = self._now()
        seeds = self._initial_seeds(batch)  # [G * n * candidates, C, h, w]
        init_seconds = (self._now() - start) / len(batch.concepts)
        targets = self._targets(batch)
        if arm.select:
            seeds, latents, records = self._optimize(seeds, batch, targets)
        else:
            seeds, latents, records = self._sample(seeds, batch, targets)
        with torch.no_grad():
            images = self.context.networks.model.decode(latents, clamp=False)
            losses = self._losses(images, latents, targets)
        prompts_per_call = batch_multiplier(arm.guidance)  # of the inversion
        for k, record in enumerate(records):
            record["nfe"] += prompts_per_call * batch.inversion_nfe(k // samples) / samples
            record |= {name: value for name, value in losses[k].items() if math.isfinite(value)}
        units = []
        for g in range(len(batch.concepts)):
            rows = slice(g * samples, (g + 1) * samples)
            t_init = batch.inversion_seconds(g) + init_seconds
            units.append(_unit(images[rows], seeds[rows], records[rows], t_init))
        return units

    def _empty_unit(self, batch: ConceptBatch, group: int) -> Unit:
        """Return results without images, for a concept with an inverted seed that contains NaN or infinity."""
        model, samples = self.context.networks.model, self.context.samples
        images = torch.empty(0, 3, *model.image_size, dtype=torch.uint8)
        seeds = torch.full((samples, *model.latent_shape), torch.nan)
        record = {
            "t_init": batch.inversion_seconds(group),
            "t_opt": None,
            "samples": [{"finite": False} for _ in range(samples)],
        }
        return {"images": images, "seeds": seeds}, record

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def _initial_seeds(self, batch: ConceptBatch) -> Tensor:
        """Return the initial seeds ``[G * n * candidates, C, h, w]`` of G concepts with n samples per concept.

        The candidates of a sample are the initial seeds among which the arm selects the seed with the lowest loss. For
        each concept, candidate m of sample k is the initial seed with index ``m * n + k``.
        """
        arm = self.context.arms[batch.arm]
        count = self.context.samples * arm.candidates
        if batch.seeds is None or arm.seed_init is None:
            names = [f"{concept.name}/{k}" for concept in batch.concepts for k in range(count)]
            seeds = self.context.networks.model.noise(names, self.context.seed).unflatten(0, (-1, count))
        else:
            self.progress.set_stage("initializing seeds")
            seeds = arm.seed_init(batch.seeds.seed.unflatten(0, (len(batch.concepts), -1)), count)
        return seeds.unflatten(1, (arm.candidates, self.context.samples)).transpose(1, 2).flatten(0, 2)

    def _sample(self, seeds: Tensor, batch: ConceptBatch, targets: Targets) -> tuple[Tensor, Tensor, list[dict]]:
        """Sample from ``seeds`` without optimization; return the seeds, the latents, and one record per sample."""
        self.progress.set_stage("sampling")
        arm = self.context.arms[batch.arm]
        with torch.no_grad():
            start = self._initial_latents(arm, seeds, targets, torch.arange(len(seeds)))
            latents = self.context.networks.model.sample(start, self._predictor(batch), self._schedule(arm))
        nfe = self._nfe(batch, torch.ones(len(seeds)), torch.zeros(len(seeds)))
        return seeds, latents, [{"nfe": count} for count in nfe]

    def _nfe(self, batch: ConceptBatch, forwards: Tensor, backwards: Tensor) -> list[float]:
        return self.context.arms[batch.arm].nfe(len(self.context.schedule), forwards, backwards).double().tolist()

    def _losses(self, images: Tensor, latents: Tensor, targets: Targets) -> list[dict[str, float]]:
        """Return SeedSelect's semantic loss and appearance loss of each generated image."""
        clip = self.context.networks.clip
        semantic = semantic_loss([images.clamp(0, 1)], targets.features, [1.0], decode=_unchanged, features=clip)
        appearance = appearance_loss(latents, targets.latent)
        return [
            {"semantic_loss": a, "appearance_loss": b}
            for a, b in zip(semantic.tolist(), appearance.tolist(), strict=True)
        ]

    def _optimize(self, seeds: Tensor, batch: ConceptBatch, targets: Targets) -> tuple[Tensor, Tensor, list[dict]]:
        """Optimize ``seeds``; return the optimized seeds, the latents sampled from these, and one record per sample."""
        decode = self.context.networks.model.decode
        if self.context.gradient_checkpointing:
            decode = partial(checkpoint, decode, use_reentrant=False)

        def show_loss(k: int, loss: Tensor) -> None:
            self.progress.set_stage(f"optimizing, iteration {k}, loss {loss.mean():.3f}")

        select = self.context.arms[batch.arm].select
        preview = self._preview(batch, targets) if select.previews else None
        selection = select(
            seeds.float(),
            Problem(self._trajectory(batch, targets), decode, self.context.networks.clip, targets, preview),
            on_iteration=show_loss,
            noise=partial(self._neighbor_noise, batch),
        )
        nfe = self._nfe(batch, selection.forwards, selection.backwards)
        records = [{**record, "nfe": count} for record, count in zip(_records(selection), nfe, strict=True)]
        return selection.seed, selection.latent, records

    def _neighbor_noise(self, batch: ConceptBatch, k: int) -> Tensor:
        """Return the noise ``[G * n, C, h, w]`` that a local search adds to each seed to compute neighbor ``k``."""
        samples = range(self.context.samples)
        names = [f"{concept.name}/{sample}/{k}" for concept in batch.concepts for sample in samples]
        return self.context.networks.model.noise(names, self.context.seed)

    def _schedule(self, arm: Arm) -> Schedule:
        schedule = self.context.schedule
        return schedule.tail(arm.sampled_steps(len(schedule)))

    def _initial_latents(self, arm: Arm, seeds: Tensor, targets: Targets, rows: Tensor) -> Tensor:
        """Return the latents before the first sampling step: the seeds, or for SDEdit, references with added noise.

        Args:
            arm: the arm of the batch.
            seeds: the seeds of b samples, ``[b, C, h, w]``.
            targets: the targets of all samples of the batch.
            rows: indices of the b samples in the batch.
        """
        if arm.strength is None:
            return seeds
        alpha, sigma, *_ = self._schedule(arm).alpha_sigma(0)
        rows = rows.to(seeds.device)
        reference = rows % self.context.samples % self.context.references
        return alpha * targets.references[rows, reference] + sigma * seeds

    def _trajectory(self, batch: ConceptBatch, targets: Targets) -> Trajectory:
        """Return the function that samples from seeds and returns the latents of the last steps.

        The arguments of the function are the seeds ``[b, C, h, w]`` of b samples and the indices of these samples in
        the batch.
        """
        arm = self.context.arms[batch.arm]
        predictor = self._predictor(batch)

        def last_latents(seeds: Tensor, rows: Tensor) -> list[Tensor]:
            return trajectory(
                self._initial_latents(arm, seeds, targets, rows),
                predictor.select(rows),
                self._schedule(arm),
                keep_last=len(arm.select.step_weights),
                checkpoint=self.context.gradient_checkpointing,
                gradient_steps=arm.gradient_steps,
            )

        return last_latents

    def _preview(self, batch: ConceptBatch, targets: Targets) -> Preview:
        """Return the functions that sample in two parts, with a preview of the images after the first part."""
        arm = self.context.arms[batch.arm]
        predictor, schedule = self._predictor(batch), self._schedule(arm)

        def start(seeds: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
            latents = [to_state_dtype(self._initial_latents(arm, seeds, targets, rows))]
            latents += trajectory(latents[0], predictor.select(rows), schedule.head(k), keep_last=min(k, 2))
            return latents[-1], schedule.clean_estimate(k - 1, *latents[-2:]).to(seeds.dtype)

        def finish(latents: Tensor, rows: Tensor, k: int) -> list[Tensor]:
            last = trajectory(latents, predictor.select(rows), schedule.tail(len(schedule) - k), keep_last=1)
            return [latent.float() for latent in last]

        return Preview(len(schedule), start, finish)

    def _predictor(self, batch: ConceptBatch) -> NoisePredictor:
        """Return the predictor of the images of a batch, with the guidance scale of sampling."""
        arm = self.context.arms[batch.arm]
        return self.context.networks.model.predictor(self._prompts(batch), arm.guidance_of_sampling)

    def _targets(self, batch: ConceptBatch) -> Targets:
        """Return the targets of SeedSelect's losses for each sample, computed from prompts and reference images.

        The latents of the mirrored reference images are included, because a mirrored copy of a reference image is a
        copy, too.
        """
        networks = self.context.networks
        references = batch.references.flatten(0, 1)
        with torch.no_grad():
            features = networks.clip(references)
            latents = batch.seeds.z0 if batch.seeds else networks.model.encode(references)
            mirrored = networks.model.encode(references.flip(-1))
        text = networks.clip.text([concept.prompt for concept in batch.concepts])

        def per_sample(values: Tensor) -> Tensor:
            return values.repeat_interleave(self.context.samples, 0)

        def per_concept(values: Tensor) -> Tensor:
            return values.unflatten(0, (len(batch.concepts), -1))

        return Targets(
            per_sample(per_concept(features).mean(1)),
            per_sample(per_concept(latents).mean(1)),
            text=per_sample(text),
            prompts=self._prompts(batch),
            references=per_sample(torch.cat([per_concept(latents), per_concept(mirrored)], 1)),
        )

    def _prompts(self, batch: ConceptBatch) -> list[str]:
        return [concept.prompt for concept in batch.concepts for _ in range(self.context.samples)]


def _unchanged(images: Tensor) -> Tensor:
    return images


def _unit(images: Tensor, seeds: Tensor, records: Sequence[Mapping[str, Any]], t_init: float) -> Unit:
    """Return the tensors and the record of one concept, computed from its n samples.

    Args:
        images: the decoded images of the samples, ``[n, 3, H, W]``.
        seeds: the seeds of the samples, ``[n, C, h, w]``.
        records: losses, number of network evaluations and duration of each sample.
        t_init: time in seconds to invert the reference images and to compute the initial seeds.
    """
    finite_images, finite = select_finite(images)
    seeds = seeds.float().cpu()
    seeds[~finite] = torch.nan
    record = {
        "t_init": t_init,
        "t_opt": sum(sample.get("seconds", 0.0) for sample in records) / len(records),
        "samples": [{**sample, "finite": ok} for sample, ok in zip(records, finite.tolist(), strict=True)],
    }
    return {"images": finite_images, "seeds": seeds}, record


def _records(selection: Selection) -> list[dict[str, Any]]:
    """Return one dictionary per sample with the losses, number of iterations and duration of the seed optimization."""
    names = ("initial_loss", "loss", "iterations", "converged", "seconds")
    columns = [getattr(selection, name).tolist() for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _no_image_message(batch: ConceptBatch, finite: Sequence[bool]) -> str:
    result = "image" if any(finite) else "inverted seed"
    names = ", ".join(repr(concept.name) for concept in batch.concepts)
    return (
        f"arm {batch.arm!r}: no {result} of {names} is finite. The checkpoint's weights are damaged, or they overflow "
        "in their precision: try model.dtype=float32 and trainer.precision=32-true."
    )
