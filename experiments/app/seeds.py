"""What lies between seeds and in their middle: images along NAO's path, the centroid beside the other averages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import nao
import rnri
from experiments.app.context import Studio
from experiments.app.uploads import as_pictures
from nao.norm import seed_norm

POINTS = 9
"""Of a path, ends included."""
MOST = 8
"""Images at a time."""


@dataclass(frozen=True)
class Between:
    """A path with its images, and averages with theirs.

    Attributes:
        pictures: of the points on NAO's path from the first seed to the second.
        norms: of points a path, by its name; NAO's first.
        typical: the norm of a fresh seed.
        averages: name, norm and image of each.
    """

    pictures: list[Image.Image]
    norms: dict[str, list[float]]
    typical: float
    averages: list[tuple[str, float, Image.Image]]


def invert_several(studio: Studio, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
    """The seeds ``[n,C,h,w]`` of ``pictures`` under ``prompts``, on the CPU.

    Raises:
        ValueError: one sentence, for a wrong number of images or whatever ``rnri.api`` refuses.
    """
    if not 2 <= len(pictures) <= MOST:
        raise ValueError(f"{len(pictures)} images: choose two to {MOST}.")
    with studio.lock:
        inversion = rnri.invert(
            studio.model.pipeline, list(pictures), list(prompts), steps=studio.steps, guidance=studio.guidance,
            method=studio.method,
        )  # fmt: skip
    if not inversion.seed.isfinite().all():
        raise ValueError("the inversion overflowed, its seeds are not finite: start the page with model.dtype=float32.")
    return inversion.seed.float().cpu()


def one_each(text: str, count: int) -> list[str]:
    """A prompt for each of ``count`` images, from lines of text; one line serves all.

    Raises:
        ValueError: another number of lines.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) not in (1, count):
        raise ValueError(f"{len(lines)} descriptions for {count} images: write one line each, or one for all.")
    return lines * count if len(lines) == 1 else lines


def between(studio: Studio, seeds: Tensor, prompt: str) -> Between:
    """What ``prompt`` makes of NAO's path between the first two ``seeds [n,C,h,w]``, and of averages of all."""
    a, b = seeds[0], seeds[1]
    paths = {
        "NAO": nao.interpolate(a, b, POINTS).points, "straight line": nao.lerp(a, b, POINTS),
        "great circle": nao.slerp(a, b, POINTS),
    }  # fmt: skip
    averages = {
        "NAO centroid": nao.centroid(seeds).point, "mean": nao.mean(seeds),
        "mean, typical norm": nao.normalized_mean(seeds), "spherical mean": nao.spherical_mean(seeds),
    }  # fmt: skip
    points, middles = paths["NAO"], torch.stack(list(averages.values()))
    pictures = sampled(studio, torch.cat([points, middles]), prompt)
    return Between(
        pictures=pictures[:POINTS],
        norms={name: seed_norm(path).tolist() for name, path in paths.items()},
        typical=nao.typical_norm(a.numel()),
        averages=list(zip(averages, seed_norm(middles).tolist(), pictures[POINTS:], strict=True)),
    )


@torch.no_grad()
def sampled(studio: Studio, seeds: Tensor, prompt: str) -> list[Image.Image]:
    """What ``prompt`` makes of each of ``seeds [n,C,h,w]``."""
    model = studio.model
    with studio.lock:
        predictor = model.predictor([prompt] * len(seeds), studio.guidance)
        latents = model.sample(seeds.to(model.device), predictor, model.schedule(studio.steps))
        images = model.decode(latents)
    return as_pictures(images)


def norm_figure(found: Between, place: int) -> Figure:
    """Norms along the paths, with a mark at the point ``place`` of NAO's."""
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axis = figure.subplots()
    for (name, norms), style in zip(found.norms.items(), ("-", ":", "--"), strict=True):
        axis.plot(range(1, len(norms) + 1), norms, style, label=name)
    axis.axhline(found.typical, color="gray", linewidth=0.8, label="typical")
    axis.plot(place + 1, found.norms["NAO"][place], "o", color="C0")
    axis.set(xlabel="point of the path", ylabel="norm of the seed", xticks=range(1, POINTS + 1))
    axis.legend(fontsize=8, frameon=False)
    return figure
