"""Computations of the tab Edit: the inversion of an image, and edits of the image."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import rnri
from experiments.app.context import AppContext
from experiments.app.uploads import to_pil
from rnri.editing import Injection, PromptToPrompt, edit
from rnri.models.family import Family

LOW_VAE_PSNR_DB = 20.0
"""If the VAE alone, without inversion, reproduces an image with a PSNR in dB below this, the page reports the PSNR."""
EDIT_CONTROLS: Mapping[type, tuple[str, ...]] = {
    PromptToPrompt: ("cross", "self_attention", "weights", "blend"),
    Injection: ("share",),
}
"""Names of the edit settings that the page offers, by the class of the editing method."""
WEIGHT = re.compile(r"(?P<word>[^=,]+)=(?P<weight>[^=,]+)")


@dataclass(frozen=True)
class Seed:
    """A seed and all arguments with which the pipeline generates its image.

    ``rnri.editing.edit`` accepts a ``Seed`` in place of an inversion.

    Attributes:
        latents: values of the seed, ``[1,...]`` on the CPU, in the layout of the pipeline's argument ``latents``.
        prompt: prompt with which the image was inverted.
        steps, guidance: number of steps and guidance scale of sampling.
        image_size: height and width of the image in pixels.
        fingerprint: fingerprint of the model's checkpoint; None if the seed file does not contain a fingerprint.
        scheduler: name of the class of the pipeline's scheduler.
        negative_prompt: negative prompt with which the image was inverted; may be empty.
        inversion: the inversion that computed the seed, on the CPU; None if the seed was optimized.
    """

    latents: Tensor
    prompt: str
    steps: int
    guidance: float
    image_size: tuple[int, int]
    fingerprint: str | None
    scheduler: str
    negative_prompt: str = ""
    inversion: rnri.PipelineInversion | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of the seed, as a tuple with one element."""
        return (self.prompt,)

    @property
    def pipe_kwargs(self) -> dict[str, Any]:
        """Arguments of the pipeline call that generates the image, as in ``rnri.PipelineInversion.pipe_kwargs``."""
        height, width = self.image_size
        negative_prompt = {"negative_prompt": [self.negative_prompt]} if self.negative_prompt else {}
        return {
            "prompt": [self.prompt],
            "latents": self.latents,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "height": height,
            "width": width,
        } | negative_prompt

    @property
    def digest(self) -> str:
        """SHA-256 hash of the shape and the float32 values of the seed."""
        values = self.latents.float().contiguous()
        return hashlib.sha256(f"{tuple(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()

    @property
    def norm(self) -> float:
        """Euclidean norm of the seed."""
        return float(self.latents.double().norm())

    @property
    def summary(self) -> str:
        """Digest, norm and shape of the seed as one line of text for the page."""
        shape = " x ".join(map(str, self.latents.shape[1:]))
        gaussian_norm = math.sqrt(self.latents[0].numel() - 1)
        return f"seed {self.digest[:16]}, norm {self.norm:.2f} (typical {gaussian_norm:.2f}), shape {shape}"


def no_progress(done: int, steps: int) -> None:
    """Default progress callback of :func:`invert_image`, which does nothing."""


def invert_image(
    context: AppContext, image: Image.Image, prompt: str, *, on_step: Callable[[int, int], Any] = no_progress
) -> Seed:
    """Invert ``image`` with ``prompt`` and return the seed.

    After each inversion step, ``on_step(done, steps)`` is called with the number of finished steps and of all steps.

    Raises:
        ValueError: the prompt is empty, the seed is not finite, or ``rnri.invert`` raised an error.
    """
    _check_prompt(prompt)
    with context.lock, warnings.catch_warnings():
        # rnri.invert warns that a pipeline call with the pipeline's own scheduler does not regenerate the image. The
        # warning does not apply, because edit_image replaces the scheduler.
        warnings.filterwarnings("ignore", message="a plain call of the pipeline with its scheduler")
        inversion = rnri.invert(
            context.model.pipeline,
            image,
            prompt,
            num_inference_steps=context.steps,
            guidance_scale=context.guidance,
            method=context.method,
            callback_on_step_end=lambda pipe, step, timestep, tensors: on_step(step + 1, context.steps),
        )
    if not inversion.latents.isfinite().all():
        raise ValueError("the seed is not finite: start the page with model.dtype=float32.")
    on_cpu = {name: getattr(inversion, name).cpu() for name in ("latents", "seed", "z0")}
    inversion = dataclasses.replace(inversion, **on_cpu)
    return dataclasses.replace(make_seed(context, inversion.latents, inversion.prompts[0]), inversion=inversion)


def quality(inversion: rnri.PipelineInversion) -> str:
    """Return one or two sentences about the quality of the reconstruction.

    The second sentence is added if the VAE alone, without inversion, reproduces the image with a PSNR below
    ``LOW_VAE_PSNR_DB``.
    """
    sentence = f"Reconstruction: {inversion.quality}."
    vae_psnr = float(inversion.vae_psnr[0])
    if vae_psnr < LOW_VAE_PSNR_DB:
        sentence += f" The VAE alone reproduces this image with a PSNR of only {vae_psnr:.1f} dB."
    return sentence


def make_seed(context: AppContext, latents: Tensor, prompt: str) -> Seed:
    """Create a :class:`Seed` from ``latents`` with the sampling settings of the page."""
    return Seed(
        latents=latents,
        prompt=prompt,
        steps=context.steps,
        guidance=context.guidance,
        image_size=context.model.image_size,
        fingerprint=context.fingerprint,
        scheduler=type(context.model.pipeline.scheduler).__name__,
    )


def edit_controls(family: Family) -> tuple[str, ...]:
    """Return the names of the edit settings that the page offers for models of ``family``."""
    return EDIT_CONTROLS[_config_class(family)]


def edit_config(
    family: Family, *, cross: float, self_attention: float, weights: str, blend: str, share: float
) -> PromptToPrompt | Injection:
    """Create the editing method for models of ``family`` from the values of the edit settings."""
    if _config_class(family) is PromptToPrompt:
        return PromptToPrompt(
            cross=cross, self_attention=self_attention, weights=parse_weights(weights), blend=parse_words(blend)
        )
    return Injection(share=share)


def _config_class(family: Family) -> type:
    """Return the class of the editing method for models of ``family``.

    For a family without an attention editor, ``Injection`` is returned, so that the page opens. An edit with a model of
    such a family raises an error.
    """
    try:
        return family.attention_editor().config_class
    except ValueError:
        return Injection


def parse_weights(text: str) -> dict[str, float]:
    """Parse word weights such as ``"red=2, dog=0.5"`` to a dict that maps words to weights.

    Raises:
        ValueError: ``text`` is not a list of pairs ``word=number``.
    """
    weights = {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = WEIGHT.fullmatch(part)
        try:
            number = float(match["weight"]) if match else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"word weights: {part!r} is not a pair word=number; write word weights as red=2, dog=0.5.")
        weights[match["word"].strip()] = number
    return weights


def parse_words(text: str) -> tuple[str, ...]:
    """Split a string of words that are separated by commas, such as ``"camel, llama"``."""
    return tuple(filter(None, map(str.strip, text.split(","))))


@torch.no_grad()
def edit_image(
    context: AppContext, seed: Seed, prompt: str, config: PromptToPrompt | Injection
) -> tuple[Image.Image, Image.Image]:
    """Generate two images from ``seed`` in one pipeline call: one with the prompt of the seed, one with ``prompt``.

    Returns:
        The reconstruction (with the prompt of the seed) and the edited image (with ``prompt``).

    Raises:
        ValueError: the prompt is empty, ``rnri.editing.edit`` raised an error, or the pipeline's safety checker
            replaced an image.
    """
    _check_prompt(prompt)
    with context.lock:
        on_device = dataclasses.replace(seed, latents=seed.latents.to(context.model.device))
        result = edit(context.model.pipeline, on_device, prompt, config, output_type="pt")
    if any(result.images_replaced + result.reconstructions_replaced):
        name = "edited image" if any(result.images_replaced) else "reconstruction"
        raise ValueError(f"the model's safety checker replaced the {name} by a black image: change the prompt.")
    reconstruction, edited = to_pil(torch.cat([result.reconstructions, result.images]))
    return reconstruction, edited


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise ValueError("the prompt is empty: describe the image.")
