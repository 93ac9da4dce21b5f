"""Invert once, edit often: what the tab does, without the tab."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import rnri
from experiments.app.context import Studio
from experiments.app.uploads import as_pictures
from rnri.editing import Injection, PromptToPrompt, edit
from rnri.models.family import Family

WEIGHT = re.compile(r"(?P<word>[^=,]+)=(?P<weight>[^=,]+)")


@dataclass(frozen=True)
class Seed:
    """A seed and all that makes its image again; ``rnri.editing.edit`` takes it as an inversion.

    Attributes:
        latents: ``[1,...]`` on the CPU, as the pipeline takes them.
        prompt: under which it was inverted.
        steps, guidance: of the sampler.
        image_size: pixels (H, W).
        fingerprint: of the checkpoint.
        scheduler: the name of the pipeline's.
    """

    latents: Tensor
    prompt: str
    steps: int
    guidance: float
    image_size: tuple[int, int]
    fingerprint: str
    scheduler: str

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.prompt,)

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of the pipeline's call that gives the image back, as ``rnri.PipelineInversion.call``."""
        height, width = self.image_size
        return {
            "prompt": [self.prompt], "latents": self.latents, "num_inference_steps": self.steps,
            "guidance_scale": self.guidance, "height": height, "width": width,
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """SHA-256 of its shape and values, as float32."""
        values = self.latents.float().contiguous()
        return hashlib.sha256(f"{tuple(values.shape)}".encode() + values.numpy().tobytes()).hexdigest()

    @property
    def norm(self) -> float:
        return float(self.latents.double().norm())

    @property
    def words(self) -> str:
        """What the page says of it, to be copied."""
        shape = " x ".join(map(str, self.latents.shape[1:]))
        typical = math.sqrt(self.latents[0].numel() - 1)
        return f"seed {self.digest[:16]}, norm {self.norm:.2f} (typical {typical:.2f}), shape {shape}"


@dataclass(frozen=True)
class Inverted:
    """A seed, and in words how well it gives the image back."""

    seed: Seed
    words: str


def invert_picture(
    studio: Studio, picture: Image.Image, prompt: str, on_step: Callable[[int, int], Any] = lambda done, all: None
) -> Inverted:
    """The seed of ``picture`` under ``prompt``; ``on_step`` is told how many steps of how many are done.

    Raises:
        ValueError: one sentence, for an empty prompt and whatever ``rnri.api`` refuses.
    """
    _check_prompt(prompt)
    with studio.lock:
        inversion = rnri.invert(
            studio.model.pipeline, picture, prompt, steps=studio.steps, guidance=studio.guidance, method=studio.method,
            callback_on_step_end=lambda pipe, step, timestep, tensors: on_step(step + 1, studio.steps),
        )  # fmt: skip
    if not inversion.latents.isfinite().all():
        raise ValueError("the inversion overflowed, its seed is not finite: start the page with model.dtype=float32.")
    return Inverted(seed_of(studio, inversion), said_of(inversion))


def seed_of(studio: Studio, inversion: rnri.PipelineInversion) -> Seed:
    """The seed of the one image of ``inversion``."""
    return described(studio, inversion.latents.cpu(), inversion.prompts[0])


def described(studio: Studio, latents: Tensor, prompt: str) -> Seed:
    """``latents`` with what the studio samples with."""
    scheduler = type(studio.model.pipeline.scheduler).__name__
    return Seed(latents, prompt, studio.steps, studio.guidance, studio.model.image_size, studio.fingerprint, scheduler)


def said_of(inversion: rnri.PipelineInversion) -> str:
    """Residual and convergence of the one image of ``inversion``, in words."""
    solved, steps = int(inversion.solved.sum()), len(inversion.solved)
    residual, nfe = float(inversion.residual[0]), int(inversion.nfe.sum())
    if inversion.converged.all():
        begin = f"Converged: all {steps} steps are solved"
    else:
        begin = f"Not converged: {solved} of {steps} steps are solved, so that the reconstruction may differ"
    if math.isnan(residual):
        return f"{begin}; this method has no residual ({nfe} evaluations of the network)."
    return f"{begin}; the largest residual is {residual:.1e} ({nfe} evaluations of the network)."


def controls(family: Family) -> tuple[str, ...]:
    """The settings of an edit that act on a network of this family."""
    if family.attention_editor().config_class is PromptToPrompt:
        return ("cross", "self_attention", "weights", "blend")
    return ("share",)


def how_to_edit(
    family: Family, *, cross: float, self_attention: float, weights: str, blend: str, share: float
) -> PromptToPrompt | Injection:
    """What the sliders and boxes say, for a network of this family."""
    if family.attention_editor().config_class is PromptToPrompt:
        return PromptToPrompt(
            cross=cross, self_attention=self_attention, weights=as_weights(weights), blend=as_words(blend)
        )
    return Injection(share=share)


def as_weights(text: str) -> dict[str, float]:
    """``red=2, dog=0.5`` as numbers a word.

    Raises:
        ValueError: one sentence for what cannot be read so.
    """
    found = {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = WEIGHT.fullmatch(part)
        try:
            number = float(match["weight"]) if match else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"word weights: {part!r} cannot be read; write them as red=2, dog=0.5.")
        found[match["word"].strip()] = number
    return found


def as_words(text: str) -> tuple[str, ...]:
    """``camel, llama`` as words."""
    return tuple(filter(None, map(str.strip, text.split(","))))


@torch.no_grad()
def edited_picture(
    studio: Studio, seed: Seed, prompt: str, how: PromptToPrompt | Injection
) -> tuple[Image.Image, Image.Image]:
    """What ``seed`` gives under its own prompt, and under ``prompt``: one call of the pipeline, no inversion.

    Raises:
        ValueError: one sentence, for an empty prompt and whatever ``rnri.editing.edit`` refuses.
    """
    _check_prompt(prompt)
    with studio.lock:
        moved = dataclasses.replace(seed, latents=seed.latents.to(studio.model.device))
        made = edit(studio.model.pipeline, moved, prompt, how, output_type="pt")
    before, after = as_pictures(torch.cat([made.reconstructions, made.images]))
    return before, after


def _check_prompt(prompt: str) -> None:
    if not prompt.strip():
        raise ValueError("the prompt is empty: say what the image shows.")
