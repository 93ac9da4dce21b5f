"""``invert(pipe, images, prompts)``: from a pipeline and pictures to seeds that the pipeline itself takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from rnri.inversion import ImplicitInverter, Inversion, Inverter, anderson_inverter, check_schedule
from rnri.methods.round_trip_corrected import RoundTripCorrected
from rnri.models.diffusion import LatentDiffusion
from rnri.solvers.anderson import Anderson
from rnri.solvers.gradient import ForwardStep, GradientDescent
from rnri.solvers.iterative import AveragedFixedPoint, FixedPoint
from rnri.solvers.newton import RNRIMeanSign, RNRIMinimumNorm, RNRIPaper, RNRISign
from rnri.solvers.newton_krylov import NewtonKrylov
from rnri.solvers.renoise import ReNoise

METHODS: dict[str, Callable[[], Inverter]] = {
    "accelerated": anderson_inverter,
    "ddim": lambda: ImplicitInverter(FixedPoint(iterations=1)),
    "aidi": lambda: ImplicitInverter(FixedPoint()),
    "aidi_a": lambda: ImplicitInverter(Anderson()),
    "corrected": lambda: RoundTripCorrected(anderson_inverter(12)),
    "aidi_e": lambda: ImplicitInverter(AveragedFixedPoint()),
    "exact_dpm": lambda: ImplicitInverter(ForwardStep()),
    "gradient_descent": lambda: ImplicitInverter(GradientDescent()),
    "newton_krylov": lambda: ImplicitInverter(NewtonKrylov()),
    "renoise": lambda: ImplicitInverter(ReNoise()),
    "rnri_mean_sign": lambda: ImplicitInverter(RNRIMeanSign()),
    "rnri_minimum_norm": lambda: ImplicitInverter(RNRIMinimumNorm()),
    "rnri_paper": lambda: ImplicitInverter(RNRIPaper()),
    "rnri_sign": lambda: ImplicitInverter(RNRISign()),
}
"""Methods whose seed alone gives the image back, with their default settings; others as objects."""

Images = Image.Image | Tensor | Sequence[Image.Image] | Sequence[Tensor]
StepCallback = Callable[[DiffusionPipeline, int, int | float, dict[str, Tensor]], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineInversion(Inversion):
    """An ``Inversion`` with what the pipeline needs to make the images again: ``pipe(**inversion.call)``.

    Attributes:
        latents: what the pipeline takes as ``latents=``, in its network's dtype: ``[B,C,h,w]``, or FLUX's packed
            ``[B,hw/4,4C]``.
        prompts, negative_prompts: one an image.
        steps, guidance: as given.
        image_size: ``(H, W)`` in pixels.
        timesteps: ``[N]``, noisy to clean, at which the network ran.
    """

    latents: Tensor
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    steps: int
    guidance: float
    image_size: tuple[int, int]
    timesteps: Tensor

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of the pipeline call that gives the images back, once ``scheduler_for(pipe)`` is set."""
        height, width = self.image_size
        arguments = {
            "prompt": list(self.prompts), "latents": self.latents, "num_inference_steps": self.steps,
            "guidance_scale": self.guidance, "height": height, "width": width,
        }  # fmt: skip
        if any(self.negative_prompts):
            arguments["negative_prompt"] = list(self.negative_prompts)
        return arguments


def invert(
    pipe: DiffusionPipeline,
    images: Images,
    prompts: str | Sequence[str],
    *,
    steps: int,
    guidance: float = 1.0,
    negative_prompt: str | Sequence[str] = "",
    method: str | Inverter = "accelerated",
    callback_on_step_end: StepCallback | None = None,
) -> PipelineInversion:
    """The seeds that make ``pipe`` generate ``images`` from ``prompts``.

    ::

        inversion = rnri.invert(pipe, image, "a photo of a cat", steps=4)
        pipe.scheduler = rnri.scheduler_for(pipe)
        again = pipe(**inversion.call).images[0]

    ``pipe`` is left as it was found - scheduler, processors, dtypes, modes, gradients - also after an exception, and
    may be under CPU offload. The images of a call are inverted as one batch, each as if alone.

    Args:
        pipe: a diffusers text-to-image pipeline of a known family: Stable Diffusion 1.x, 2.x, XL, turbo, LCM, 3, 3.5
            or FLUX.1; with LoRAs and textual inversions as they are loaded.
        images: a PIL image, a list of them, or float tensors ``[3,H,W]`` or ``[B,3,H,W]`` in [0, 1], all of one size,
            which is that of the inversion. Transparent images are refused: their background is the user's to choose.
        prompts: one an image, or one string for all.
        steps: of the sampler.
        guidance: classifier-free guidance; 1 is off. LCM and FLUX.1 dev have it as an input.
        negative_prompt: one for all or one an image.
        method: a name of ``METHODS``, or an ``Inverter`` whose seed alone gives the image back.
        callback_on_step_end: called with ``(pipe, step, timestep, {"latents": latents})`` after each step of the walk,
            the cleanest first; the latents are as ``PipelineInversion.latents``. What it returns is not used.

    Raises:
        ValueError: one sentence for bad input, before any network runs.
    """
    pictures = as_images(images)
    model = LatentDiffusion(pipe, image_size=tuple(pictures.shape[-2:]))
    texts = _as_texts(prompts, len(pictures), "prompts")
    negatives = _as_texts(negative_prompt, len(pictures), "negative_prompt")
    _check_negatives(pipe, negatives)
    inverter, schedule = _as_inverter(method), model.schedule(steps)
    check_schedule(inverter, schedule)

    def tell(k: int, z: Tensor) -> None:
        if callback_on_step_end is not None:
            t = schedule.timestep(len(schedule) - 1 - k)
            callback_on_step_end(pipe, k, t, {"latents": model.family.pack(z.to(model.dtype))})

    try:
        predictor = model.predictor(texts, guidance, list(negatives))
        inversion = inverter.invert(model.encode(pictures), predictor, schedule, tell)
    finally:
        pipe.maybe_free_model_hooks()  # under CPU offload, as the pipeline's own calls end
    return PipelineInversion(
        **{field.name: getattr(inversion, field.name) for field in dataclasses.fields(Inversion)},
        latents=model.family.pack(inversion.seed.to(model.dtype)),
        prompts=tuple(texts),
        negative_prompts=tuple(negatives),
        steps=int(steps),
        guidance=float(guidance),
        image_size=model.image_size,
        timesteps=schedule.timesteps,
    )


def as_images(images: Images) -> Tensor:
    """``[B,3,H,W]``, float32 in [0, 1], of what ``invert`` takes.

    Raises:
        ValueError: one sentence for anything else, images of different sizes, or transparent ones.
    """
    if isinstance(images, Tensor):
        batch = images if images.ndim == 4 else images[None]
    elif isinstance(images, Image.Image):
        batch = _of_pil(images)[None]
    else:
        each = [picture if isinstance(picture, Tensor) else _of_pil(picture) for picture in _as_list(images)]
        sizes = {tuple(picture.shape) for picture in each}
        if len(sizes) != 1:
            raise ValueError(f"images have different shapes ({', '.join(map(str, sorted(sizes)))}): make them equal.")
        batch = torch.stack(each)
    if batch.ndim != 4 or batch.shape[1] != 3 or not len(batch):
        raise ValueError(f"images of shape {tuple(batch.shape)}: give [3,H,W] or [B,3,H,W].")
    if not batch.is_floating_point() or not ((batch >= 0) & (batch <= 1)).all():
        raise ValueError("images must be floating point with every value in [0, 1]: divide bytes by 255.")
    return batch.float()


def _as_list(images: object) -> list:
    if not isinstance(images, list | tuple) or not images:
        raise ValueError(f"images={type(images).__name__}: give a PIL image, a tensor, or a list of one of them.")
    return list(images)


def _of_pil(image: Image.Image) -> Tensor:
    """``[3,H,W]``, float32 in [0, 1]."""
    if not isinstance(image, Image.Image):
        raise ValueError(f"images hold a {type(image).__name__}: give PIL images or tensors.")
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError("an image is transparent: paste it on the background that it is to have.")
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)


def _as_texts(texts: str | Sequence[str], batch: int, name: str) -> list[str]:
    """One text an image."""
    found = [texts] * batch if isinstance(texts, str) else texts
    if not isinstance(found, list | tuple) or len(found) != batch or not all(isinstance(t, str) for t in found):
        raise ValueError(f"{name}={texts!r} must be a string, or a list of strings, one for each of the {batch} images")
    return list(found)


def _check_negatives(pipe: DiffusionPipeline, negatives: list[str]) -> None:
    """ValueError where a call of the pipeline would read an empty negative prompt as another thing than none."""
    if pipe.config.get("force_zeros_for_empty_prompt") and any(negatives) and not all(negatives):
        raise ValueError(
            f"negative_prompt={negatives!r}: {type(pipe).__name__} reads an empty one beside others as a text of its "
            "own; give every image a negative prompt, or none."
        )


def _as_inverter(method: str | Inverter) -> Inverter:
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method={method!r} is unknown: choose {', '.join(METHODS)}, or give an Inverter.")
        return METHODS[method]()
    if not isinstance(method, Inverter):
        raise ValueError(f"method={method!r} is neither a name nor an Inverter: choose {', '.join(METHODS)}.")
    if not method.seed_only:
        raise ValueError(
            f"{type(method).__name__} needs more than a seed to give the image back, which a call cannot take: "
            "use its own invert and reconstruct."
        )
    return method
