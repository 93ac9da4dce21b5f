"""``invert(pipe, images, prompts)`` computes the seeds with which a diffusers pipeline regenerates images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from PIL import Image
from torch import Tensor

from rnri.images import to_rgba
from rnri.inversion import Inversion, Inverter, check_schedule
from rnri.methods import METHODS
from rnri.models.diffusion import LatentDiffusion

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Images = Image.Image | Tensor | Sequence[Image.Image] | Sequence[Tensor]
StepCallback = Callable[["DiffusionPipeline", int, int | float, dict[str, Tensor]], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineInversion(Inversion):
    """An ``Inversion`` with the arguments of the pipeline call that regenerates the images.

    ``pipe(**inversion.pipe_kwargs)`` regenerates the images.

    Attributes:
        latents: the seeds in the layout of the pipeline's ``latents=`` argument and in the dtype of the network:
            ``[B,C,h,w]``, or ``[B,hw/4,4C]`` for FLUX.
        prompts: one prompt per image.
        negative_prompts: one negative prompt per image.
        steps: the number of sampler steps that was passed to ``invert``.
        guidance: the guidance scale that was passed to ``invert``.
        image_size: height and width of the images in pixels.
        timesteps: ``[N]``, the sampler's timesteps, from noisy to clean.
    """

    latents: Tensor
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    steps: int
    guidance: float
    image_size: tuple[int, int]
    timesteps: Tensor

    @property
    def pipe_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline call that regenerates the images.

        The pipeline must use the scheduler ``scheduler_for(pipe)``.
        """
        height, width = self.image_size
        pipe_kwargs = {
            "prompt": list(self.prompts),
            "latents": self.latents,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "height": height,
            "width": width,
        }
        if any(self.negative_prompts):
            pipe_kwargs["negative_prompt"] = list(self.negative_prompts)
        return pipe_kwargs


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
    """Return the seeds with which ``pipe`` generates ``images`` from ``prompts``.

    ::

        inversion = rnri.invert(pipe, image, "a photo of a cat", steps=4)
        pipe.scheduler = rnri.scheduler_for(pipe)
        regenerated = pipe(**inversion.pipe_kwargs).images[0]

    ``invert`` restores the scheduler, the attention processors, the dtypes, the training modes and the gradients of
    ``pipe``, also after an exception. ``pipe`` may use CPU offload. The images are inverted as one batch; the seed of
    an image does not depend on the other images of the batch.

    Args:
        pipe: a diffusers text-to-image pipeline of a supported family: Stable Diffusion 1.x, 2.x, XL, turbo, LCM, 3,
            3.5 or FLUX.1, with any loaded LoRAs and textual inversions.
        images: a PIL image, a list of PIL images, or float tensors ``[3,H,W]`` or ``[B,3,H,W]`` in [0, 1]. All images
            must have the same size. PIL images are converted by :func:`rnri.images.to_rgba`; transparent images are
            rejected, because their background is undefined.
        prompts: a list with one prompt per image, or one string for all images.
        steps: number of sampler steps.
        guidance: classifier-free guidance scale; 1 disables guidance. For LCM and FLUX.1 dev the scale is an input of
            the network.
        negative_prompt: a list with one negative prompt per image, or one string for all images.
        method: name of a method in ``METHODS``, or a seed-only ``Inverter``.
        callback_on_step_end: called as ``callback(pipe, step, timestep, {"latents": latents})`` after each inversion
            step, from clean to noisy. The latents have the layout of ``PipelineInversion.latents``. The return value of
            the callback is ignored.

    Raises:
        ValueError: an argument is invalid; the error is raised before the network runs.
    """
    _check_callback(callback_on_step_end)
    batch = as_images(images)
    height, width = batch.shape[-2:]
    model = LatentDiffusion(pipe, image_size=(height, width))
    prompts = _as_prompts(prompts, len(batch), "prompts")
    negative_prompts = _as_prompts(negative_prompt, len(batch), "negative_prompt")
    _check_negative_prompts(pipe, negative_prompts)
    inverter = _as_inverter(method)
    schedule = model.schedule(steps)
    check_schedule(inverter, schedule)

    def on_step(k: int, z: Tensor) -> None:
        if callback_on_step_end is not None:
            timestep = schedule.timestep(len(schedule) - 1 - k)
            callback_on_step_end(pipe, k, timestep, {"latents": model.family.pack(z.to(model.dtype))})

    try:
        predictor = model.predictor(prompts, guidance, list(negative_prompts))
        inversion = inverter.invert(model.encode(batch), predictor, schedule, on_step)
    finally:
        pipe.maybe_free_model_hooks()  # moves the models back to the CPU if the pipeline uses CPU offload
    return PipelineInversion(
        **{field.name: getattr(inversion, field.name) for field in dataclasses.fields(Inversion)},
        latents=model.family.pack(inversion.seed.to(model.dtype)),
        prompts=tuple(prompts),
        negative_prompts=tuple(negative_prompts),
        steps=int(steps),
        guidance=float(guidance),
        image_size=model.image_size,
        timesteps=schedule.timesteps,
    )


def _check_callback(callback: StepCallback | None) -> None:
    """Raise ValueError if ``callback`` is a ``PipelineCallback`` of diffusers that changes the embeddings of prompts."""
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        missing = [name for name in callback.tensor_inputs if name != "latents"]
        if missing:
            raise ValueError(
                f"callback_on_step_end: must need latents only, got {type(callback).__name__}, which needs "
                f"{', '.join(missing)}; inversion has a fixed guidance scale."
            )


def as_images(images: Images) -> Tensor:
    """Convert the ``images`` argument of ``invert`` to a float32 tensor ``[B,3,H,W]`` in [0, 1].

    Raises:
        ValueError: the images have an unsupported type, different sizes, values outside [0, 1], gray levels whose
            maximum is unknown, or are transparent or damaged.
    """
    if isinstance(images, Tensor):
        batch = images if images.ndim == 4 else images[None]
    elif isinstance(images, Image.Image):
        batch = _pil_to_tensor(images)[None]
    else:
        tensors = [image if isinstance(image, Tensor) else _pil_to_tensor(image) for image in _as_list(images)]
        shapes = {tuple(tensor.shape) for tensor in tensors}
        if len(shapes) != 1:
            raise ValueError(
                f"images: must have the same shape, got {', '.join(map(str, sorted(shapes)))}; resize or crop them."
            )
        batch = torch.stack(tensors)
    if batch.ndim != 4 or batch.shape[1] != 3 or not len(batch):
        raise ValueError(f"images: must have shape [3,H,W] or [B,3,H,W], got {tuple(batch.shape)}.")
    if not batch.is_floating_point() or not ((batch >= 0) & (batch <= 1)).all():
        raise ValueError("images: must be floating point with values in [0, 1]; divide uint8 images by 255.")
    return batch.float()


def _as_list(images: object) -> list:
    if not isinstance(images, list | tuple) or not images:
        raise ValueError(f"images: must be a PIL image, a tensor, or a list of either, got {type(images).__name__}.")
    return list(images)


def _pil_to_tensor(image: Image.Image) -> Tensor:
    """Convert a PIL image to float32 ``[3,H,W]`` in [0, 1]."""
    if not isinstance(image, Image.Image):
        raise ValueError(f"images: must be PIL images or tensors, got {type(image).__name__}.")
    try:
        pixels = np.asarray(to_rgba(image))
    except Exception as error:  # for damaged files, decoders raise many types of errors
        raise ValueError(f"images: a PIL image of mode {image.mode} cannot be converted ({error}).") from None
    if pixels[..., 3].min() < 255:
        raise ValueError("images: must not be transparent; paste the image on an opaque background.")
    return torch.from_numpy(pixels[..., :3].astype(np.float32) / 255).permute(2, 0, 1)


def _as_prompts(prompts: str | Sequence[str], batch_size: int, name: str) -> list[str]:
    """Return a list with one prompt per image.

    Args:
        prompts: a list with one prompt per image, or one string for all images.
        batch_size: number of images.
        name: name of the argument in the error message.

    Raises:
        ValueError: the number of prompts differs from the number of images, or a prompt is not a string.
    """
    values = [prompts] * batch_size if isinstance(prompts, str) else prompts
    is_list = isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)
    if not is_list or len(values) != batch_size:
        raise ValueError(f"{name}: must be a string or a list of {batch_size} strings, one per image, got {prompts!r}.")
    return list(values)


def _check_negative_prompts(pipe: DiffusionPipeline, negative_prompts: list[str]) -> None:
    """Raise ValueError if the pipeline does not support that only some images of a batch have a negative prompt.

    Without any negative prompt, some pipelines (SDXL) use zeros as the negative embedding. If at least one image has a
    negative prompt, these pipelines encode the empty strings of the other images instead.
    """
    if pipe.config.get("force_zeros_for_empty_prompt") and any(negative_prompts) and not all(negative_prompts):
        raise ValueError(
            f"negative_prompt: must be given for every image or for none, got {negative_prompts!r}; "
            f"{type(pipe).__name__} encodes an empty string as a prompt if another image has a negative prompt."
        )


def _as_inverter(method: str | Inverter) -> Inverter:
    choices = ", ".join(METHODS)
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    if not isinstance(method, Inverter):
        raise ValueError(f"method: must be one of {choices}, or an Inverter, got {method!r}.")
    if not method.seed_only:
        raise ValueError(
            f"method: must be seed-only, got {type(method).__name__}, whose reconstruction needs more tensors than a "
            "pipeline call takes; use its own invert and reconstruct."
        )
    return method
