"""Computations of the tab Seeds: paths between two seeds, averages of several seeds, and the images of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import nao
import rnri
from experiments.app.context import AppContext
from experiments.app.uploads import to_pil
from nao.norm import seed_norm

NUM_POINTS = 9
"""Number of points on a path, including both ends."""
MAX_IMAGES = 8


@dataclass(frozen=True)
class SeedPaths:
    """Paths between two seeds and averages of all seeds.

    Attributes:
        images: images of the points of NAO's path from the first seed to the second.
        norms: norms of the points of each path, by the name of the path. The first path is NAO's path.
        typical_norm: the most likely norm of a seed from the normal distribution.
        averages: name, norm and image of each average of all seeds.
    """

    images: list[Image.Image]
    norms: dict[str, list[float]]
    typical_norm: float
    averages: list[tuple[str, float, Image.Image]]


def invert_images(context: AppContext, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
    """Return the seeds ``[n,C,h,w]`` of ``images`` under ``prompts``, on the CPU.

    Raises:
        ValueError: the number of images is not allowed, a seed is not finite, or ``rnri.invert`` raised an error.
    """
    if not 2 <= len(images) <= MAX_IMAGES:
        raise ValueError(f"got {len(images)} images: choose 2 to {MAX_IMAGES} images.")
    with context.lock:
        inversion = rnri.invert(
            context.model.pipeline,
            list(images),
            list(prompts),
            num_inference_steps=context.steps,
            guidance_scale=context.guidance,
            method=context.method,
            round_trip=False,
        )
    if not inversion.seed.isfinite().all():
        raise ValueError("the seeds are not finite: start the page with model.dtype=float32.")
    return inversion.seed.float().cpu()


def add_prompt_lines(text: str, count: int, prompts: Sequence[str]) -> str:
    """Add the prompts of new images to ``text``, which has one line per image.

    An image without a prompt has an empty line, so that every prompt stays in the line of its image.

    Args:
        text: the lines of the first ``count`` images; further lines were written before their images were added.
        count: number of images before the new images.
        prompts: prompts of the new images; all are empty for uploaded images.
    """
    lines = text.split("\n") if text else []
    lines += [""] * (count - len(lines))
    if any(prompts):
        lines[count:count] = prompts
    lines += [""] * (count + len(prompts) - len(lines))
    return "\n".join(lines)


def broadcast_prompts(text: str, count: int) -> list[str]:
    """Split ``text`` into ``count`` prompts, one per line. A single line is the prompt of all images.

    Raises:
        ValueError: the number of lines is neither 1 nor ``count``, or an image has an empty line.
    """
    lines = [line.strip() for line in text.split("\n")]
    while len(lines) > count and not lines[-1]:
        lines.pop()
    if len(lines) == 1 and lines[0]:
        return lines * count
    if len(lines) != count or not all(lines):
        written = sum(map(bool, lines))
        without = "" if all(lines) else f" (line {lines.index('') + 1} is empty)"
        raise ValueError(
            f"{written} prompt{'' if written == 1 else 's'} for {count} images{without}: write one line per image, or "
            "a single line, without empty lines, for all images."
        )
    return lines


def explore(context: AppContext, seeds: Tensor, prompt: str) -> SeedPaths:
    """Compute paths between the first two of n seeds and averages of all seeds, and generate their images.

    Args:
        context: the model and the settings of the page.
        seeds: ``[n,C,h,w]``.
        prompt: prompt of all generated images.
    """
    a, b = seeds[0], seeds[1]
    paths = {
        "NAO": nao.interpolate(a, b, NUM_POINTS).points,
        "linear": nao.lerp(a, b, NUM_POINTS),
        "spherical": nao.slerp(a, b, NUM_POINTS),
    }
    averages = {
        "NAO centroid": nao.centroid(seeds).point,
        "mean": nao.mean(seeds),
        "mean, typical norm": nao.normalized_mean(seeds),
        "spherical mean": nao.spherical_mean(seeds),
    }
    average_seeds = torch.stack(list(averages.values()))
    images = sample_images(context, torch.cat([paths["NAO"], average_seeds]), prompt)
    return SeedPaths(
        images=images[:NUM_POINTS],
        norms={name: seed_norm(path).tolist() for name, path in paths.items()},
        typical_norm=nao.typical_norm(a.numel()),
        averages=list(zip(averages, seed_norm(average_seeds).tolist(), images[NUM_POINTS:], strict=True)),
    )


@torch.no_grad()
def sample_images(context: AppContext, seeds: Tensor, prompt: str) -> list[Image.Image]:
    """Generate the images of ``seeds [n,C,h,w]`` under ``prompt``."""
    model = context.model
    with context.lock:
        predictor = model.predictor([prompt] * len(seeds), context.guidance)
        latents = model.sample(seeds.to(model.device), predictor, model.schedule(context.steps))
        images = model.decode(latents)
    return to_pil(images)


def norm_figure(paths: SeedPaths, index: int) -> Figure:
    """Plot the norm of the seed at each point of the paths. A marker shows the point ``index`` of NAO's path."""
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axis = figure.subplots()
    for (name, norms), style in zip(paths.norms.items(), ("-", ":", "--"), strict=True):
        axis.plot(range(1, len(norms) + 1), norms, style, label=name)
    axis.axhline(paths.typical_norm, color="gray", linewidth=0.8, label="typical")
    axis.plot(index + 1, paths.norms["NAO"][index], "o", color="C0")
    axis.set(xlabel="point of the path", ylabel="norm of the seed", xticks=range(1, NUM_POINTS + 1))
    axis.legend(fontsize=8, frameon=False)
    return figure
