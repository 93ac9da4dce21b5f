"""Computations of the tab Seeds: paths between two seeds, averages of several seeds, and images of these seeds."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import nao
import rnri
from experiments.app.context import AppContext
from experiments.app.uploads import enlarge, to_pil
from nao.norm import seed_norm
from rnri import LatentDiffusion, NoisePredictor
from rnri.models.predictor import Condition

NUM_POINTS = 9
"""Number of points on a path, including both ends."""
MAX_IMAGES = 8
DESCRIPTIONS = {
    "Mean": "The seeds averaged element by element.",
    "Spherical mean": "The mean direction of the seeds, with the mean of their norms.",
    "NAO centroid": "The seed with the smallest sum of NAO distances to all seeds.",
}
"""Descriptions of the averages of seeds, by name."""
FRAME_MS = 150
"""Time in milliseconds for which an animation shows the image at each inner point of the path."""
END_FRAME_MS = 900
"""Time in milliseconds for which an animation shows the image at each end of the path."""
VIDEO_FPS = 20
"""Frames per second of a video. ``FRAME_MS`` and ``END_FRAME_MS`` must be multiples of the time of a frame."""


@dataclass(frozen=True)
class Average:
    """An average of seeds: its name, a description, its norm, and the image that is generated from it."""

    name: str
    description: str
    norm: float
    image: Image.Image


@dataclass(frozen=True)
class SeedPaths:
    """Paths between two seeds and averages of all seeds.

    Attributes:
        images: images that are generated from the points of NAO's path from the first seed to the second seed.
        norms: dict that maps the name of a path to the norms of the path's points. The first path is NAO's path.
        typical_norm: the most likely norm of a standard Gaussian seed.
        averages: the averages of all seeds.
    """

    images: list[Image.Image]
    norms: dict[str, list[float]]
    typical_norm: float
    averages: list[Average]

    @property
    def summary(self) -> str:
        """One line of text with the smallest norm on NAO's path and on the path of linear interpolation."""
        nao_norm = min(self.norms["NAO"])
        linear_norm = min(self.norms["linear"])
        return (
            f"The smallest norm on the path is {nao_norm:.1f} with NAO and {linear_norm:.1f} with linear "
            f"interpolation; the typical norm of noise is {self.typical_norm:.1f}."
        )


def invert_images(context: AppContext, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
    """Invert ``images`` with ``prompts``; return the seeds ``[n,C,h,w]`` on the CPU.

    Raises:
        ValueError: the number of images is not allowed, a seed is not finite, or ``rnri.invert`` raised an error.
    """
    if not 2 <= len(images) <= MAX_IMAGES:
        raise ValueError(f"got {len(images)} images: choose 2 to {MAX_IMAGES} images.")
    with context.lock:
        return invert_batch(context, images, prompts).seed.float().cpu()


def invert_batch(context: AppContext, images: Sequence[Image.Image], prompts: Sequence[str]) -> rnri.PipelineInversion:
    """Invert ``images`` with ``prompts`` and the settings of the page. The caller must hold ``context.lock``.

    Raises:
        ValueError: a seed is not finite, or ``rnri.invert`` raised an error.
    """
    with warnings.catch_warnings():
        # rnri.invert warns that a pipeline call with the pipeline's own scheduler does not regenerate the image. The
        # warning does not apply, because the page does not sample with the scheduler of the pipeline.
        warnings.filterwarnings("ignore", message="a plain call of the pipeline with its scheduler")
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
    return inversion


def add_prompt_lines(text: str, count: int, prompts: Sequence[str]) -> str:
    """Add the prompts of new images to ``text``, which has one line per image.

    An image without a prompt has an empty line, so that line k is always the prompt of image k.

    Args:
        text: the prompts so far, one line per image. If ``text`` has more than ``count`` lines, the lines after the
            first ``count`` lines are the prompts of new images.
        count: number of images before the new images.
        prompts: prompts of the new images; the prompt of an uploaded image is empty.
    """
    lines = text.split("\n") if text else []
    lines += [""] * (count - len(lines))
    if any(prompts):
        lines[count:count] = prompts
    lines += [""] * (count + len(prompts) - len(lines))
    return "\n".join(lines)


def broadcast_prompts(text: str, count: int) -> list[str]:
    """Split ``text`` into ``count`` prompts, one per line. If ``text`` has one line, it is the prompt of all images.

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


def explore(context: AppContext, seeds: Tensor, prompts: Sequence[str]) -> SeedPaths:
    """Compute paths between the first two of n seeds and averages of all seeds, and generate the images of these seeds.

    If the first two prompts differ, the text embeddings are interpolated linearly along the path, so that the path ends
    at the second image. The images of the averages are generated with the mean text embedding of all prompts.

    Args:
        context: the model and the settings of the page.
        seeds: seeds of n images, ``[n,C,h,w]``.
        prompts: the n prompts with which the images were inverted.
    """
    a, b = seeds[:2]
    paths = {
        "NAO": nao.interpolate(a, b, NUM_POINTS).points,
        "linear": nao.lerp(a, b, NUM_POINTS),
        "spherical": nao.slerp(a, b, NUM_POINTS),
    }
    averages = {
        "Mean": nao.mean(seeds),
        "Spherical mean": nao.spherical_mean(seeds),
        "NAO centroid": nao.centroid(seeds).point,
    }
    average_seeds = torch.stack(list(averages.values()))
    position = torch.linspace(0, 1, NUM_POINTS)
    weights = torch.zeros(NUM_POINTS + len(averages), len(seeds))
    weights[:NUM_POINTS, 0] = 1 - position
    weights[:NUM_POINTS, 1] = position
    weights[NUM_POINTS:] = 1 / len(seeds)
    images = sample_images(context, torch.cat([paths["NAO"], average_seeds]), prompts, weights)
    typical_norm = nao.typical_norm(a.numel())
    detail = (_detail(images[0]) + _detail(images[NUM_POINTS - 1])) / 2
    return SeedPaths(
        images=images[:NUM_POINTS],
        norms={name: seed_norm(path).tolist() for name, path in paths.items()},
        typical_norm=typical_norm,
        averages=[
            Average(
                name,
                f"{DESCRIPTIONS[name]} Its norm is {_compare(norm, typical_norm)} the typical norm; "
                f"its image has {_compare(_detail(image), detail)} the detail of the images at the ends of the path.",
                norm,
                image,
            )
            for name, norm, image in zip(averages, seed_norm(average_seeds).tolist(), images[NUM_POINTS:], strict=True)
        ],
    )


def _detail(image: Image.Image) -> float:
    """Return the detail of an image: the mean absolute difference between neighboring pixels, in [0, 255]."""
    pixels = np.asarray(image, dtype=np.float64)
    return float((np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean()) / 2)


def _compare(value: float, reference: float) -> str:
    """Return ``value`` as a percentage of ``reference``, for example ``77 % of``.

    If ``reference`` is 0, return ``not comparable with``.
    """
    return f"{100 * value / reference:.0f} % of" if reference else "not comparable with"


@torch.no_grad()
def sample_images(
    context: AppContext, seeds: Tensor, prompts: Sequence[str], weights: Tensor | None = None
) -> list[Image.Image]:
    """Generate one image from each of the m ``seeds [m,C,h,w]``.

    If ``weights`` is None, ``prompts`` contains one prompt per seed. Otherwise ``prompts`` contains n prompts, and row
    k of ``weights [m,n]`` contains the weights with which the text embeddings of the prompts are averaged for image k,
    see :func:`blended_predictor`.
    """
    model = context.model
    with context.lock:
        if weights is None:
            predictor = model.predictor(prompts, context.guidance)
        else:
            predictor = blended_predictor(model, prompts, weights, context.guidance)
        latents = model.sample(seeds.to(model.device), predictor, model.schedule(context.steps))
        images = model.decode(latents)
    return to_pil(images)


def blended_predictor(
    model: LatentDiffusion, prompts: Sequence[str], weights: Tensor, guidance: float
) -> NoisePredictor:
    """Return a noise predictor for m images, which uses for each image a weighted mean of the n prompt embeddings.

    Args:
        model: the diffusion model.
        prompts: n prompts.
        weights: weight of each prompt in each image, ``[m,n]``; the weights of an image add up to 1.
        guidance: guidance scale.
    """
    predictor = model.predictor([prompts[0]] * len(weights), guidance)
    if len(set(prompts)) == 1:
        return predictor
    embeddings = model.predictor(prompts, guidance).denoiser.positive

    def blend(values: Tensor) -> Tensor:
        if values.is_floating_point():
            return torch.tensordot(weights.to(values), values, dims=1)
        used = (weights > 0).float().to(values.device)  # a mask contains the tokens of all used prompts
        return (torch.tensordot(used, values.float(), dims=1) > 0).to(values.dtype)

    positive = Condition(blend(embeddings.text), {name: blend(value) for name, value in embeddings.added.items()})
    return dataclasses.replace(predictor, denoiser=dataclasses.replace(predictor.denoiser, positive=positive))


def write_gif(images: Sequence[Image.Image], path: Path) -> Path:
    """Write a GIF that shows ``images`` forward and backward in an endless loop; return ``path``."""
    frames, durations = _timeline([enlarge(image) for image in images])
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return path


def write_mp4(images: Sequence[Image.Image], path: Path) -> Path:
    """Write an H.264 video that shows ``images`` forward and backward once; return ``path``."""
    frames = [enlarge(image) for image in images]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=VIDEO_FPS, options={"crf": "18"})
        stream.width, stream.height = (side - side % 2 for side in frames[0].size)  # H.264 needs even numbers
        stream.pix_fmt = "yuv420p"  # some browsers do not play other pixel formats
        for image, duration in zip(*_timeline(frames), strict=True):
            frame = av.VideoFrame.from_image(image.crop((0, 0, stream.width, stream.height)))
            for _ in range(duration * VIDEO_FPS // 1000):
                frame.pts = None  # the encoder sets the time of a frame
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _timeline(frames: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """Return the frames of an animation that runs forward and backward, and the duration of each frame in ms."""
    animation = [*frames, *frames[-2:0:-1]]
    durations = [FRAME_MS] * len(animation)
    durations[0] = durations[len(frames) - 1] = END_FRAME_MS
    return animation, durations


def norm_figure(paths: SeedPaths, index: int) -> Figure:
    """Plot the norm of the seed at each point of the paths.

    A marker shows the point with the index ``index`` of NAO's path.
    """
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for (name, norms), style in zip(paths.norms.items(), ("-", ":", "--"), strict=True):
        axis.plot(range(1, len(norms) + 1), norms, style, label=name)
    axis.axhline(paths.typical_norm, color="gray", linewidth=0.8, label="typical norm")
    axis.plot(index + 1, paths.norms["NAO"][index], "o", color="C0")
    axis.set(xlabel="point on the path", ylabel="norm of the seed", xticks=range(1, NUM_POINTS + 1))
    axis.set_title("Norm of the seed along the path", fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure
