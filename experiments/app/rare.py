"""Computations of the tab Rare concept: SeedSelect with the results of every iteration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

import nao
import rnri
from experiments.app.context import AppContext
from experiments.app.edits import Seed, make_seed
from experiments.app.uploads import to_pil
from rnri.image_batch import as_images
from seedselect import Problem, Targets

MAX_REFERENCES = 5


@dataclass(frozen=True)
class SelectionProgress:
    """Result of one iteration of SeedSelect.

    Attributes:
        iteration: index of the iteration. Iteration 0 evaluates the initial seed.
        iterations: maximum number of iterations.
        loss, best_loss: loss of this iteration, and the lowest loss so far.
        image, best_image: image of the current seed, and image of the seed with the lowest loss.
        seed: the seed with the lowest loss.
    """

    iteration: int
    iterations: int
    loss: float
    best_loss: float
    image: Image.Image
    best_image: Image.Image
    seed: Seed


def iterate_seedselect(
    context: AppContext, prompt: str, references: Sequence[Image.Image]
) -> Iterator[SelectionProgress]:
    """Optimize a seed with SeedSelect, starting from the NAO centroid of the seeds of the reference images.

    One result is yielded per iteration. The optimization ends when the caller stops iterating. The model is locked only
    while an iteration is computed.

    Raises:
        ValueError: the prompt is empty or has several lines, the number of reference images is not allowed, or a seed
            is not finite.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty: name the concept, for example: a photo of a spotted quokka.")
    if "\n" in prompt.strip():
        raise ValueError("the prompt must be one line, which names the concept of all images: remove the other lines.")
    if not 1 <= len(references) <= MAX_REFERENCES:
        raise ValueError(f"got {len(references)} reference images: choose 1 to {MAX_REFERENCES} images of the concept.")
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
        )


def _initial_seed_and_targets(
    context: AppContext, prompt: str, references: Sequence[Image.Image]
) -> tuple[Tensor, Targets]:
    """Return the NAO centroid ``[1,C,h,w]`` of the seeds of the reference images, and the targets of SeedSelect."""
    model = context.model
    inversion = rnri.invert(
        model.pipeline,
        list(references),
        prompt,
        num_inference_steps=context.steps,
        guidance_scale=context.guidance,
        method=context.method,
        round_trip=False,
    )
    if not inversion.seed.isfinite().all():
        raise ValueError("the seeds of the reference images are not finite: start the page with model.dtype=float32.")
    initial = nao.centroid(inversion.seed.float()).point[None].to(model.device)
    with torch.no_grad():
        features = context.clip(as_images(list(references), model.image_size).to(model.device))
        latents = inversion.z0.to(model.device).float()
    return initial, Targets(features.mean(0, keepdim=True), latents.mean(0, keepdim=True))
