"""SeedSelect to watch: a picture an iteration, and the best so far whenever one stops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

import nao
import rnri
from experiments.app.context import Studio
from experiments.app.edits import Seed, described
from experiments.app.uploads import as_pictures
from rnri.api import as_images
from seedselect import Targets

MOST_REFERENCES = 5


@dataclass(frozen=True)
class Progress:
    """One iteration.

    Attributes:
        iteration, iterations: its number (0 is before any update), and how many there are at most.
        loss, best_loss: now, and the least so far.
        picture, best: what the seed gives now, and what the best gave.
        seed: the best.
    """

    iteration: int
    iterations: int
    loss: float
    best_loss: float
    picture: Image.Image
    best: Image.Image
    seed: Seed


def select_live(studio: Studio, prompt: str, references: Sequence[Image.Image]) -> Iterator[Progress]:
    """SeedSelect from the centroid of the references' seeds, an item an iteration; who asks for no more stops it.

    Raises:
        ValueError: one sentence, for an empty prompt or a wrong number of references.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty: name the concept, as in a photo of a spotted quokka.")
    if not 1 <= len(references) <= MOST_REFERENCES:
        raise ValueError(f"{len(references)} references: give one to {MOST_REFERENCES} images of the concept.")
    with studio.lock:
        walk = _walk(studio, prompt, references)
    while True:
        with studio.lock:
            found = next(walk, None)
        if found is None:
            return
        yield found


def _walk(studio: Studio, prompt: str, references: Sequence[Image.Image]) -> Iterator[Progress]:
    model = studio.model
    start, targets = _beginning(studio, prompt, references)
    select = studio.select.with_steps(studio.steps)
    predictor, schedule = model.predictor([prompt], studio.guidance), model.schedule(studio.steps)

    def trajectory(seeds: Tensor, rows: Tensor) -> Sequence[Tensor]:
        return rnri.trajectory(
            seeds, predictor, schedule, keep_last=len(select.step_weights),
            gradient_steps=min(studio.gradient_steps, studio.steps),
        )  # fmt: skip

    walk = select.iterate(start, trajectory=trajectory, decode=model.decode, features=studio.clip, targets=targets)
    for each in walk:
        best = each.selection
        with torch.no_grad():
            now, so_far = as_pictures(model.decode(torch.cat([each.latent, best.latent.to(each.latent)])))
        latents = model.family.pack(best.seed.to(model.dtype)).cpu().clone()
        seed = described(studio, latents, prompt)
        yield Progress(each.number, select.iterations, float(each.loss), float(best.loss), now, so_far, seed)


def _beginning(studio: Studio, prompt: str, references: Sequence[Image.Image]) -> tuple[Tensor, Targets]:
    """The seed to begin with ``[1,C,h,w]``, and what it shall come to resemble."""
    model = studio.model
    inversion = rnri.invert(
        model.pipeline, list(references), prompt, steps=studio.steps, guidance=studio.guidance, method=studio.method
    )
    if not inversion.seed.isfinite().all():
        raise ValueError("the references' inversion overflowed: start the page with model.dtype=float32.")
    start = nao.centroid(inversion.seed.float()).point[None].to(model.device)
    with torch.no_grad():
        features = studio.clip(as_images(list(references)).to(model.device))
        latents = inversion.z0.to(model.device).float()
    return start, Targets(features.mean(0, keepdim=True), latents.mean(0, keepdim=True))
