"""The function ``invert`` computes the initial noise (seeds) from which a diffusers pipeline regenerates images."""

from __future__ import annotations

import dataclasses
import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from rnri.device import synchronize
from rnri.image_batch import Fit, Images, as_images, to_uint8
from rnri.inversion import Inversion, Inverter, check_schedule
from rnri.methods import ALL_METHODS, METHODS
from rnri.methods.forward_steps import ForwardSteps
from rnri.models.checks.inputs import as_guidance
from rnri.models.deterministic import DeterministicScheduler
from rnri.models.diffusers_schedulers import is_flow
from rnri.models.diffusion import LatentDiffusion
from rnri.models.predictor import NoisePredictor
from rnri.models.sampling import sample
from rnri.models.schedule import Schedule
from rnri.pipeline_inversion import PipelineInversion, RoundTrip, psnr

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

StepCallback = Callable[["DiffusionPipeline", int, int | float, dict[str, Tensor]], Any]


def invert(
    pipe: DiffusionPipeline,
    images: Images,
    prompts: str | Sequence[str],
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    negative_prompt: str | Sequence[str] = "",
    method: str | Inverter = "accelerated",
    forward_steps: int = 0,
    fit: Fit = "crop",
    round_trip: bool = True,
    callback_on_step_end: StepCallback | None = None,
) -> PipelineInversion:
    """Return the initial noise latents (seeds) from which ``pipe`` generates ``images`` with ``prompts``.

    ::

        inversion = rnri.invert(pipe, "cat.jpg", "a photo of a cat", num_inference_steps=20)
        print(inversion)                          # PSNR of the reconstruction
        image = inversion.reconstruct(pipe)[0]

    ``invert`` restores the scheduler, the attention processors, the dtypes, the training modes and the gradients of
    ``pipe``, also after an exception. ``pipe`` may use CPU offload. The images are inverted as one batch; the seed of
    an image does not depend on the other images of the batch. The progress bar is configured by
    ``pipe.set_progress_bar_config``.

    Args:
        pipe: a diffusers text-to-image pipeline of a supported family: Stable Diffusion 1.x, 2.x, XL, turbo, LCM, 3,
            3.5, FLUX.1, FLUX.2, Qwen-Image, Z-Image, Chroma, PixArt-Sigma or SANA, with any loaded LoRAs and textual
            inversions.
        images: one image or a list of images; an image is a path, a PIL image, a NumPy array ``[H,W,3]`` (uint8, or
            float in [0, 1]) or a float tensor ``[3,H,W]`` in [0, 1]. Arrays and tensors can also be a batch
            ``[B,...]``. A transparent background is replaced by white, and a message is logged.
        prompts: a list with one prompt per image, or one string for all images.
        num_inference_steps: number of sampler steps; None means the default of the pipeline's ``__call__``.
        guidance_scale: classifier-free guidance scale; 1 disables guidance. For LCM and FLUX.1 dev the scale is an
            input of the network.
        negative_prompt: a list with one negative prompt per image, or one string for all images.
        method: name of a method in ``rnri.METHODS``, or an ``Inverter`` that needs only the seed to reconstruct an
            image.
        forward_steps: number of inversion steps, counted from the clean image, in which random noise is added instead
            of inverting the sampler, as in TABA (:class:`~rnri.methods.forward_steps.ForwardSteps`). ``forward_steps``
            must be less than the number of sampler steps.
        fit: how an image is resized if its size is not the image size of the model: ``crop`` (resize and crop the
            center), ``pad`` (resize and add white borders), ``stretch`` (resize without keeping the aspect ratio), or
            ``exact`` (do not resize: the images are inverted at their own size, which must be the same for all images).
        round_trip: whether to reconstruct the images and to measure the PSNR of the reconstructions.
            ``round_trip=True`` costs one sampling run and two VAE decodings per image.
        callback_on_step_end: called as ``callback(pipe, step, timestep, {"latents": latents})`` after each inversion
            step, from clean to noisy. The latents have the layout of ``PipelineInversion.latents``. The return value of
            the callback is ignored.

    Raises:
        ValueError: an argument is invalid; the error is raised before the network runs.
        FileNotFoundError: an image file does not exist.
    """
    _check_callback(callback_on_step_end)
    _check_numbers(num_inference_steps, guidance_scale)
    inverter = _with_forward_steps(_as_inverter(method), forward_steps)
    if fit == "exact":
        batch = as_images(images, None, fit)
        height, width = batch.shape[-2:]
        model = LatentDiffusion(pipe, image_size=(height, width))
    else:
        model = LatentDiffusion(pipe)
        batch = as_images(images, model.image_size, fit)
    prompts = _as_prompts(prompts, len(batch), "prompts")
    negative_prompts = _as_prompts(negative_prompt, len(batch), "negative_prompt")
    _check_negative_prompts(pipe, negative_prompts)
    if num_inference_steps is None:
        num_inference_steps = inspect.signature(pipe.__call__).parameters["num_inference_steps"].default
    schedule = model.schedule(num_inference_steps)
    if forward_steps >= len(schedule):
        raise ValueError(
            f"forward_steps: must be less than the number of sampler steps ({len(schedule)}), got {forward_steps}."
        )
    check_schedule(inverter, schedule)
    _warn_if_not_deterministic(pipe)
    start = time.perf_counter()
    try:
        predictor = model.predictor(prompts, guidance_scale, list(negative_prompts))
        z0 = model.encode(batch)
        with _progress_bar(pipe, len(schedule)) as bar:

            def on_step(k: int, z: Tensor) -> None:
                bar.update()
                if callback_on_step_end is not None:
                    timestep = schedule.timestep(len(schedule) - 1 - k)
                    latents = model.family.pack(z.to(model.family.latents_dtype))
                    callback_on_step_end(pipe, k, timestep, {"latents": latents})

            inversion = inverter.invert(z0, predictor, schedule, on_step)
        synchronize(inversion.seed.device)
        seconds = time.perf_counter() - start
        measured = (
            _measure_round_trip(model, batch, z0, inversion, predictor=predictor, schedule=schedule)
            if round_trip
            else None
        )
    finally:
        pipe.maybe_free_model_hooks()  # moves the models back to the CPU if the pipeline uses CPU offload
    return PipelineInversion(
        **{field.name: getattr(inversion, field.name) for field in dataclasses.fields(Inversion)},
        latents=model.family.pack(inversion.seed.to(model.family.latents_dtype)),
        prompts=tuple(prompts),
        negative_prompts=tuple(negative_prompts),
        num_inference_steps=int(num_inference_steps),
        guidance_scale=float(guidance_scale),
        family_kwargs=model.family.pipeline_kwargs(float(guidance_scale)),
        image_size=model.image_size,
        timesteps=schedule.timesteps,
        alphas=schedule.alphas,
        prediction_type=pipe.scheduler.config.get("prediction_type"),
        scheduler=type(pipe.scheduler).__name__,
        images=to_uint8(batch),
        round_trip=measured,
        seconds=seconds,
    )


@torch.no_grad()
def _measure_round_trip(
    model: LatentDiffusion,
    images: Tensor,
    z0: Tensor,
    inversion: Inversion,
    *,
    predictor: NoisePredictor,
    schedule: Schedule,
) -> RoundTrip:
    """Reconstruct ``images [B,3,H,W]`` from the seeds, in the dtype of the network, and measure the PSNR.

    The images are decoded one after the other, so that the VAE needs no more memory than in a pipeline call for one
    image.
    """
    latents = sample(inversion.seed.to(model.family.latents_dtype), predictor, schedule)
    decoded = []
    scores = []
    for image, latent, clean in zip(images, latents, z0, strict=True):
        reconstruction = model.decode(latent[None].float())
        vae_image = model.decode(clean[None])
        decoded.append(to_uint8(reconstruction))
        scores.append(torch.cat([psnr(reconstruction, image[None]), psnr(vae_image, image[None])]))
    image_psnr, vae_psnr = torch.stack(scores, dim=1)
    return RoundTrip(images=torch.cat(decoded), psnr=image_psnr, vae_psnr=vae_psnr)


@contextmanager
def _progress_bar(pipe: DiffusionPipeline, steps: int) -> Iterator[Any]:
    """Show the pipeline's progress bar for ``steps`` steps, without changing the attributes of ``pipe``."""
    is_configured = hasattr(pipe, "_progress_bar_config")
    try:
        with pipe.progress_bar(total=steps) as bar:
            yield bar
    finally:
        if not is_configured:
            del pipe._progress_bar_config


def _warn_if_not_deterministic(pipe: DiffusionPipeline) -> None:
    """Warn if a call of ``pipe`` with its own scheduler does not regenerate images from their seeds."""
    scheduler = pipe.scheduler
    if not (isinstance(scheduler, DDIMScheduler | DeterministicScheduler) or is_flow(scheduler)):
        warnings.warn(
            f"a plain call of the pipeline with its scheduler {type(scheduler).__name__} does not regenerate the "
            "images; use inversion.reconstruct(pipe), or set pipe.scheduler = rnri.scheduler_for(pipe).",
            stacklevel=3,
        )


def _check_numbers(num_inference_steps: int | None, guidance_scale: float) -> None:
    is_integer = isinstance(num_inference_steps, int) and not isinstance(num_inference_steps, bool)
    if num_inference_steps is not None and not (is_integer and num_inference_steps >= 1):
        raise ValueError(f"num_inference_steps: must be an integer >= 1, got {num_inference_steps!r}.")
    try:
        as_guidance(guidance_scale)
    except ValueError:
        raise ValueError(
            f"guidance_scale: must be a finite number >= 1, got {guidance_scale!r}; 1 disables guidance."
        ) from None


def _check_callback(callback: StepCallback | None) -> None:
    """Raise ValueError if ``callback`` is not callable, or is a ``PipelineCallback`` that changes prompt embeddings."""
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end: must be a function or None, got {callback!r}.")
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        missing = [name for name in callback.tensor_inputs if name != "latents"]
        if missing:
            raise ValueError(
                f"callback_on_step_end: must need latents only, got {type(callback).__name__}, which needs "
                f"{', '.join(missing)}; pass a callback that does not change the prompt embeddings, because the "
                "guidance scale of an inversion is fixed."
            )


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
    """Raise ValueError if only some images have a negative prompt and ``pipe`` requires one for all images or none.

    If no image of a batch has a negative prompt, SDXL pipelines use zeros as the negative embeddings. If at least one
    image has a negative prompt, SDXL pipelines encode the empty strings of the other images instead of using zeros.
    """
    if pipe.config.get("force_zeros_for_empty_prompt") and any(negative_prompts) and not all(negative_prompts):
        raise ValueError(
            f"negative_prompt: some images have a negative prompt and others have none, got {negative_prompts!r}; pass "
            f"a negative prompt for every image, because {type(pipe).__name__} uses zeros instead of the embedding of "
            "an empty string only if no image has a negative prompt."
        )


def _with_forward_steps(inverter: Inverter, forward_steps: int) -> Inverter:
    if not isinstance(forward_steps, int) or forward_steps < 0:
        raise ValueError(f"forward_steps: must be an integer >= 0, got {forward_steps!r}.")
    return ForwardSteps(inverter, forward_steps) if forward_steps else inverter


def _as_inverter(method: str | Inverter) -> Inverter:
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    if isinstance(method, str) and method in ALL_METHODS:
        method = ALL_METHODS[method]()
    if not isinstance(method, Inverter):
        raise ValueError(f"method: must be one of {', '.join(METHODS)}, or an Inverter, got {method!r}.")
    if not method.seed_only:
        raise ValueError(
            f"method: must be seed-only, got {type(method).__name__}, whose reconstruction needs more tensors than a "
            "pipeline call takes; call its methods invert and reconstruct instead."
        )
    return method
