"""SeedSelect with intermediate results: the computations of the tab Rare concept."""

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
from rnri.api import as_images
from seedselect import Problem, Targets

MAX_REFERENCES = 5


@dataclass(frozen=True)
class SelectionProgress:
    """State after one iteration of SeedSelect.

    Attributes:
        iteration: index of the iteration; 0 is before any update.
        iterations: maximum number of iterations.
        loss, best_loss: loss of this iteration, and the lowest so far.
        image, best_image: image of the current seed, and of the best seed.
        seed: the best seed.
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
    """Optimize a seed, starting from the NAO centroid of the references' seeds; stop iterating to stop.

    The model is locked only while an iteration is computed.

    Raises:
        ValueError: an empty prompt, a wrong number of references, or seeds that are not finite.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty; name the concept, such as: a photo of a spotted quokka.")
    if not 1 <= len(references) <= MAX_REFERENCES:
        raise ValueError(f"{len(references)} references: choose one to {MAX_REFERENCES} images of the concept.")
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
    """The NAO centroid ``[1,C,h,w]`` of the references' seeds, and the targets of SeedSelect."""
    model = context.model
    inversion = rnri.invert(
        model.pipeline,
        list(references),
        prompt,
        steps=context.steps,
        guidance=context.guidance,
        method=context.method,
    )
    if not inversion.seed.isfinite().all():
        raise ValueError("the references' seeds are not finite; start the page with model.dtype=float32.")
    initial = nao.centroid(inversion.seed.float()).point[None].to(model.device)
    with torch.no_grad():
        features = context.clip(as_images(list(references)).to(model.device))
        latents = inversion.z0.to(model.device).float()
    return initial, Targets(features.mean(0, keepdim=True), latents.mean(0, keepdim=True))
