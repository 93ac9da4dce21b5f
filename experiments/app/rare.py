"""Computations of the tab Rare concept: plain samples, the iterations of SeedSelect, and distances to references.

Plain samples are images that are generated from random seeds, without SeedSelect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

import nao
import rnri
from experiments.app.context import AppContext
from experiments.app.edits import Seed, make_seed
from experiments.app.seeds import invert_batch, sample_images
from experiments.app.uploads import to_pil
from experiments.evaluation.diversity import detect_copies, perceptual_vectors
from rnri.image_batch import as_images
from seedselect import Problem, SeedSelect, Targets

MAX_REFERENCES = 5
NUM_PLAIN = 3
"""Number of plain samples: images that are generated from random seeds, without SeedSelect."""


@dataclass(frozen=True)
class SelectionProgress:
    """Result of one iteration of SeedSelect.

    Attributes:
        iteration: index of the iteration; iteration 0 computes the loss of the initial seed.
        iterations: maximum number of iterations.
        loss, best_loss: loss of the current seed, and the lowest loss of all iterations so far.
        image, best_image: image of the current seed, and image of the seed with the lowest loss.
        seed: the seed with the lowest loss.
        plain_losses: losses of the plain samples.
    """

    iteration: int
    iterations: int
    loss: float
    best_loss: float
    image: Image.Image
    best_image: Image.Image
    seed: Seed
    plain_losses: list[float]


@dataclass(frozen=True)
class NearestReference:
    """The reference image with the smallest perceptual distance to a generated image.

    Attributes:
        number: number of the reference image, counted from 1.
        distance: perceptual distance to the reference image.
        threshold: if the distance is smaller, the generated image counts as a copy; None if there is only one
            reference.
    """

    number: int
    distance: float
    threshold: float | None

    @property
    def text(self) -> str:
        """Phrase that states whether the generated image is new or a copy, and its nearest reference image."""
        if self.threshold is None:
            return f"distance to the reference {self.distance:.2f}"
        if self.distance < self.threshold:
            return f"copy of reference {self.number} (distance {self.distance:.2f}, copies below {self.threshold:.2f})"
        return (
            f"new; nearest is reference {self.number} (distance {self.distance:.2f}, copies below {self.threshold:.2f})"
        )


def nearest_references(
    context: AppContext, images: Sequence[Image.Image], references: Sequence[Image.Image]
) -> list[NearestReference] | None:
    """Return the nearest reference of each image, or None if the page has no classifier.

    The distance and the threshold are computed as for the column ``copies_concept`` in the result tables of the
    experiments (:mod:`experiments.evaluation.diversity`). The only real images of the concept are ``references``.
    """
    if context.classifier is None:
        return None
    arrays = np.stack([np.moveaxis(np.asarray(image), -1, 0) for image in (*images, *references)])
    vectors = perceptual_vectors(context.classifier, torch.from_numpy(arrays))
    reference_vectors = vectors[len(images) :]
    detection = detect_copies(vectors[: len(images)], reference_vectors, reference_vectors)
    nearest = zip(detection.nearest_index.tolist(), detection.nearest.tolist(), strict=True)
    return [NearestReference(index + 1, distance, detection.threshold) for index, distance in nearest]


def check_inputs(prompt: str, references: Sequence[Image.Image]) -> None:
    """Raise ValueError if the prompt is empty or has several lines, or if the number of references is not allowed."""
    if not prompt.strip():
        raise ValueError("the prompt is empty: name the concept, for example: a photo of a spotted quokka.")
    if "\n" in prompt.strip():
        raise ValueError("the prompt must be one line that names the concept of all images: remove the other lines.")
    if not 1 <= len(references) <= MAX_REFERENCES:
        raise ValueError(
            f"got {len(references)} reference images: choose 1 to {MAX_REFERENCES} reference images of the concept."
        )


def plain_samples(context: AppContext, prompt: str) -> list[Image.Image]:
    """Generate ``NUM_PLAIN`` images of ``prompt`` from random seeds. The seeds are the same in every call."""
    return sample_images(context, _plain_seeds(context), [prompt] * NUM_PLAIN)


def _plain_seeds(context: AppContext) -> Tensor:
    return context.model.noise([f"plain {k}" for k in range(NUM_PLAIN)], 0)


def iterate_seedselect(
    context: AppContext, prompt: str, references: Sequence[Image.Image]
) -> Iterator[SelectionProgress]:
    """Optimize a seed with SeedSelect, starting from the NAO centroid of the seeds of the reference images.

    The generator yields one result per iteration. The optimization ends when the caller does not request the next
    result. The lock of the model is held only while an iteration is computed.

    Raises:
        ValueError: the prompt is empty or has several lines, the number of reference images is not allowed, or a seed
            is not finite.
    """
    check_inputs(prompt, references)
    with context.lock:
        iterations = _iterations(context, prompt, references)
    while True:
        with context.lock:
            progress = next(iterations, None)
        if progress is None:
            return
        yield progress


def _iterations(context: AppContext, prompt: str, references: Sequence[Image.Image]) -> Iterator[SelectionProgress]:
    model = context.model
    initial, targets = _initial_seed_and_targets(context, prompt, references)
    select = context.select.with_steps(context.steps)
    predictor = model.predictor([prompt], context.guidance)
    schedule = model.schedule(context.steps)

    def trajectory(seeds: Tensor, rows: Tensor) -> Sequence[Tensor]:
        return rnri.trajectory(
            seeds,
            predictor,
            schedule,
            keep_last=len(select.step_weights),
            gradient_steps=min(context.gradient_steps, context.steps),
        )

    problem = Problem(trajectory, model.decode, context.clip, targets)
    plain_losses = _plain_losses(context, select, prompt, targets)
    for iteration in select.iterate(initial, problem):
        best = iteration.selection
        with torch.no_grad():
            image, best_image = to_pil(model.decode(torch.cat([iteration.latent, best.latent.to(iteration.latent)])))
        latents = model.family.pack(best.seed.to(model.dtype)).cpu().clone()
        yield SelectionProgress(
            iteration=iteration.number,
            iterations=select.iterations,
            loss=float(iteration.loss),
            best_loss=float(best.loss),
            image=image,
            best_image=best_image,
            seed=make_seed(context, latents, prompt),
            plain_losses=plain_losses,
        )


@torch.no_grad()
def _plain_losses(context: AppContext, select: SeedSelect, prompt: str, targets: Targets) -> list[float]:
    """Return the loss of SeedSelect for each plain sample."""
    model = context.model
    predictor = model.predictor([prompt] * NUM_PLAIN, context.guidance)
    schedule = model.schedule(context.steps)

    def trajectory(seeds: Tensor, rows: Tensor) -> Sequence[Tensor]:
        return rnri.trajectory(seeds, predictor, schedule, keep_last=len(select.step_weights))

    repeated = targets.select(torch.zeros(NUM_PLAIN, dtype=torch.int64))
    generation = Problem(trajectory, model.decode, context.clip, repeated).generate(
        _plain_seeds(context), torch.arange(NUM_PLAIN)
    )
    return select.compute_loss(generation).tolist()


def _initial_seed_and_targets(
    context: AppContext, prompt: str, references: Sequence[Image.Image]
) -> tuple[Tensor, Targets]:
    """Return the NAO centroid ``[1,C,h,w]`` of the seeds of the reference images, and the targets of SeedSelect."""
    model = context.model
    inversion = invert_batch(context, references, [prompt] * len(references))
    initial = nao.centroid(inversion.seed.float()).point[None].to(model.device)
    with torch.no_grad():
        features = context.clip(as_images(list(references), model.image_size).to(model.device))
        latents = inversion.z0.to(model.device).float()
    return initial, Targets(features.mean(0, keepdim=True), latents.mean(0, keepdim=True))


def loss_figure(losses: Sequence[float], plain_losses: Sequence[float], iterations: int) -> Figure:
    """Plot the loss after each update; mark the initial loss, the lowest loss and the losses of the plain samples."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for k, loss in enumerate(plain_losses):
        axis.axhline(loss, color="0.4", linestyle=":", linewidth=1.5, label=None if k else "plain samples")
    axis.plot(range(len(losses)), losses, color="C0")
    axis.plot(0, losses[0], "s", color="C1", label="start")
    best = int(np.argmin(losses))
    if best:
        axis.plot(best, losses[best], "o", color="C0", label="lowest loss")
    axis.set(xlabel="update", ylabel="loss", xlim=(-0.5, iterations + 0.5), ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title("Loss after each update", fontsize=11)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure
