"""What an inversion study computes: methods under settings, in batches of images, each once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from annotated_types import Len, MinLen
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from experiments.cache.store import content_hash
from experiments.data.captions import Captioned
from experiments.data.concepts import Concept
from experiments.data.images import Images
from experiments.planning.cost import Cost, rows_of
from experiments.runtime.unit_queue import CachedUnitDataModule
from rnri import Inverter
from rnri.validation import GuidanceScale, NonEmptyStr, dataclass

VAE_BOUND = "vae"
"""The method that only encodes and decodes: what no inversion can surpass."""


Edit = Annotated[
    Sequence[NonEmptyStr], Len(2, 2), Field(description="two texts, one in the prompts and what shall stand for it")
]


@dataclass(frozen=True)
class Setting:
    """Under what the methods are compared.

    Args:
        steps, guidance: of inversion and reconstruction alike.
        evaluations: network evaluations a step, for the methods that have a choice (those over a solver); None
            leaves each method its own. A list stands for as many settings.
        methods: names; None stands for all.
        wrong_prompts: give each image the prompt of another concept.
        edit: two texts; the seed is sampled under the prompt in which the second stands for the first, so that what
            returns is an edited image, and is measured against that prompt.
        generated: instead of real images take those that the model itself makes of the images' prompts under this
            setting, each as often as it takes; only then are distances to the true latent known.
        decoder_iterations: of decoder inversion before any method; 0 leaves the encoder's latent.
        images: how many, at most, or exactly if they are generated; None stands for as many as the study has.
    """

    steps: PositiveInt
    guidance: GuidanceScale = 1.0
    nfe: PositiveInt | Annotated[Sequence[PositiveInt], MinLen(1)] | None = None
    methods: Annotated[Sequence[NonEmptyStr], MinLen(1)] | None = None
    wrong_prompts: bool = False
    edit: Edit | None = None
    generated: bool = False
    decoder_iterations: NonNegativeInt = 0
    images: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.edit and self.wrong_prompts:
            raise ValueError("edit and wrong_prompts exclude each other: an edit needs the image's own prompt.")

    @property
    def prompts(self) -> str:
        """``right``, ``wrong``, or the edit."""
        if self.edit:
            return " -> ".join(self.edit)
        return "wrong" if self.wrong_prompts else "right"

    def target(self, prompt: str) -> str:
        """The prompt that a seed is sampled under, of an image inverted under ``prompt``."""
        return prompt.replace(*self.edit) if self.edit else prompt

    def each(self) -> list[Setting]:
        """One setting for each number of evaluations."""
        return [replace(self, nfe=count) for count in self._counts]

    @property
    def _counts(self) -> Sequence[int | None]:
        return self.nfe if isinstance(self.nfe, Sequence) else [self.nfe]


@dataclasses.dataclass(frozen=True)
class ImagePrompt:
    """An image and its prompt; the image is the ``index``-th of ``images`` and ignored where the setting generates."""

    name: str
    concept: str
    prompt: str
    images: Images | np.ndarray
    index: int

    @property
    def image(self) -> Tensor:
        """``uint8 [3, H, W]``, read when it is asked for."""
        return torch.from_numpy(self.images[self.index])

    @cached_property
    def key(self) -> str:
        known = getattr(self.images, "identity", None) is not None
        content = self.images.content_bytes(self.index).decode() if known else content_hash(self.image)
        return f"{self.name}\n{self.prompt}\n{content}"


@dataclasses.dataclass(frozen=True)
class InversionJob:
    """A unit of work: one method under one setting on a batch of images."""

    method: str
    inverter: Inverter | None
    setting: Setting
    images: Sequence[ImagePrompt]
    first: bool = True  # of its method and setting: the batch whose pictures are shown

    @cached_property
    def key(self) -> str:
        return hashlib.sha256("\n".join(image.key for image in self.images).encode()).hexdigest()

    @property
    def cost(self) -> Cost:
        """About what inversion, a measurement of every residual, reconstruction and what goes before them take."""
        a_step = 0.0 if self.inverter is None else self.inverter.nfe_per_step + 2
        walked = Cost(rows_of(self.setting.guidance) * self.setting.steps * a_step)
        return (walked + self.own_cost).times(len(self.images))

    @property
    def own_cost(self) -> Cost:
        """Of one image, without its inversion: generating it, going through the decoder, showing it."""
        setting = self.setting
        made = rows_of(setting.guidance) * setting.steps * setting.generated
        return Cost(made, 1 + setting.generated + setting.decoder_iterations, 0, setting.decoder_iterations)

    @property
    def label(self) -> str:
        return f"{self.method}, {self.setting.steps} steps, guidance {self.setting.guidance:g}"


def from_concepts(concepts: Sequence[Concept], count: int, generator: torch.Generator) -> list[ImagePrompt]:
    """``count`` references of ``concepts`` in an order that takes every concept once before any a second time.

    Raises:
        ValueError: there are fewer, ``count`` is below 1, or an image cannot be read.
    """
    most = max(len(concept.references) for concept in concepts)
    order = [concepts[k] for k in torch.randperm(len(concepts), generator=generator).tolist()]
    places = [(concept, k) for k in range(most) for concept in order if k < len(concept.references)]
    if not 1 <= count <= len(places):
        raise ValueError(f"task.images={count}: the data has 1 to {len(places)} images; choose among them.")
    return [ImagePrompt(f"{c.name}/{k}", c.name, c.prompt, c.references, k) for c, k in places[:count]]


def from_captions(pairs: Captioned, count: int, generator: torch.Generator) -> list[ImagePrompt]:
    """``count`` of the captioned images in a drawn order, their captions being their prompts. ValueError if fewer."""
    if count > len(pairs):
        raise ValueError(f"task.images={count}: the data has 1 to {len(pairs)} images; choose among them.")
    order = torch.randperm(len(pairs), generator=generator)[:count].tolist()
    return [ImagePrompt(pairs.names[k], pairs.names[k], pairs.captions[k], pairs.images, k) for k in order]


def generated_images(images: Sequence[ImagePrompt], count: int) -> list[ImagePrompt]:
    """``count`` images to be generated of the prompts of ``images``, which take turns; each has noise of its own."""
    turns = [images[k % len(images)] for k in range(count)]
    return [replace(image, name=f"{image.name}/{k // len(images)}") for k, image in enumerate(turns)]


def mismatched(images: Sequence[ImagePrompt]) -> list[ImagePrompt]:
    """Each image with the prompt of the next image of another concept."""
    wrong = []
    for k, image in enumerate(images):
        others = (images[(k + step) % len(images)] for step in range(1, len(images)))
        other = next((o for o in others if o.concept != image.concept), None)
        if other is None:
            raise ValueError("wrong prompts need images of at least two concepts.")
        wrong.append(replace(image, prompt=other.prompt))
    return wrong


def jobs(
    methods: Mapping[str, Inverter], settings: Sequence[Setting], images: Sequence[ImagePrompt], batch_size: int
) -> list[InversionJob]:
    """Every method under every setting that names it, and the VAE's ceiling once a set of images.

    Raises:
        ValueError: a setting names an unknown method, or asks for a number of evaluations from a method that has
            no choice.
    """
    found: list[InversionJob] = []
    for setting in (single for given in settings for single in given.each()):
        chosen = generated_images(images, setting.images or len(images)) if setting.generated else images[: setting.images]
        chosen = mismatched(chosen) if setting.wrong_prompts else chosen
        _check_edit(setting, chosen)
        batches = [chosen[k : k + batch_size] for k in range(0, len(chosen), batch_size)]
        ceiling = Setting(
            steps=setting.steps if setting.generated else 1,
            guidance=setting.guidance if setting.generated else 1.0,
            wrong_prompts=setting.wrong_prompts, edit=setting.edit, generated=setting.generated,
            decoder_iterations=setting.decoder_iterations, images=setting.images,
        )  # fmt: skip
        found += [InversionJob(VAE_BOUND, None, ceiling, batch, k == 0) for k, batch in enumerate(batches)]
        for name in setting.methods or methods:
            inverter = _with_nfe(name, _known(methods, name), setting.nfe)
            found += [InversionJob(name, inverter, setting, batch, k == 0) for k, batch in enumerate(batches)]
    distinct = {(job.method, str(job.setting), job.key): job for job in found}
    return list(distinct.values())


def _with_nfe(name: str, inverter: Inverter, nfe: int | None) -> Inverter:
    """``inverter`` with ``nfe`` network evaluations per step; unchanged if ``nfe`` is None."""
    if nfe is None:
        return inverter
    try:
        return inverter.with_nfe(nfe)
    except ValueError as error:
        raise ValueError(f"method {name!r} cannot use nfe={nfe}: {error} Omit nfe, or the method.") from None


def _check_edit(setting: Setting, images: Sequence[ImagePrompt]) -> None:
    for image in images:
        if setting.edit and setting.edit[0] not in image.prompt:
            raise ValueError(f"edit={list(setting.edit)}: the prompt {image.prompt!r} does not hold the first text.")


def _known(methods: Mapping[str, Inverter], name: str) -> Inverter:
    if name not in methods:
        raise ValueError(f"a setting names the method {name!r}: choose from {', '.join(methods)}.")
    return methods[name]


class InversionJobData(CachedUnitDataModule):
    """The jobs that have no finished unit yet."""

    def address(self, unit: InversionJob) -> tuple[str, str]:
        return unit_name(unit), unit.key


def unit_name(job: InversionJob) -> str:
    """Method and setting: what has one folder of units."""
    return f"{job.method}\n{job.setting}"
