"""Jobs of an inversion experiment: a job applies one method with one setting to a batch of images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Len, MinLen
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from experiments.cache.store import content_hash
from experiments.data.captions import Captioned
from experiments.data.concepts import Concept
from experiments.data.images import Images
from experiments.planning.cost import Cost, batch_multiplier
from experiments.runtime.unit_queue import CachedUnitDataModule
from rnri import Inverter
from rnri.validation import ConfigError, GuidanceScale, NonEmptyStr, dataclass
from rnri.words import find_phrase, replace_phrase

VAE_BOUND = "vae"
"""Name of the reference method that only encodes and decodes an image with the VAE.

The PSNR of this method is an upper bound for the PSNR of inversion methods, because inversion methods also encode and
decode images with the VAE.
"""

RESIDUAL_NFE_PER_STEP = 2  # one network evaluation per step for the reconstruction, and one for the residual


Edit = Annotated[
    Sequence[NonEmptyStr],
    Len(2, 2),
    Field(description="two strings: a word or phrase of the prompts and its replacement"),
]

PromptSource = Literal["caption", "empty", "wrong"]
"""The prompt with which an image is inverted: its caption, the empty prompt, or the prompt of another concept."""


@dataclass(frozen=True)
class Setting:
    """The conditions under which inversion methods are compared, such as number of steps and guidance scale.

    Args:
        steps, guidance: number of sampling steps and guidance scale of inversion and reconstruction.
        nfe: number of network evaluations per inversion step, for methods with a solver. If ``nfe`` is None, each
            method uses the number in its config. A list of numbers is expanded to one setting per number.
        methods: names of the methods that are run with this setting; if None, all methods are run.
        prompt: the prompt of inversion and reconstruction. ``caption`` is the image's own prompt, ``empty`` is the
            empty prompt (only with guidance scale 1), and ``wrong`` is the prompt of another concept. If ``prompt`` is
            ``empty``, the CLIP score still compares the image with its caption. A list of prompts is expanded to one
            setting per prompt.
        edit: a phrase of the prompts and the string that replaces the phrase (:func:`rnri.words.replace_phrase`). If
            ``edit`` is not None, the image is sampled from the inverted seed with the edited prompt, and the CLIP score
            compares the sampled image with the edited prompt.
        generated: whether to invert images that the model generates from the prompts, instead of real images. Only for
            generated images, the true latents are known, so that the distance of inverted latents to the true latents
            can be measured.
        decoder_iterations: number of gradient steps of decoder inversion, which optimizes the latent of an image so
            that the VAE decodes the latent to the image. If the number is 0, the latent is the output of the VAE's
            encoder.
        images: maximum number of real images, or exact number of generated images. If ``images`` is None, all images of
            the experiment are used.
    """

    steps: PositiveInt
    guidance: GuidanceScale = 1.0
    nfe: PositiveInt | Annotated[Sequence[PositiveInt], MinLen(1)] | None = None
    methods: Annotated[Sequence[NonEmptyStr], MinLen(1)] | None = None
    prompt: PromptSource | Annotated[Sequence[PromptSource], MinLen(1)] = "caption"
    edit: Edit | None = None
    generated: bool = False
    decoder_iterations: NonNegativeInt = 0
    images: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.edit and self.prompt != "caption":
            raise ConfigError("prompt", f"must be caption with an edit, got {self.prompt}; remove edit or prompt.")
        if "empty" in self._prompts and self.guidance != 1:
            raise ConfigError(
                "guidance",
                f"must be 1 with prompt=empty, got {self.guidance:g}; set guidance=1, or prompt=caption.",
            )

    @property
    def _prompts(self) -> Sequence[PromptSource]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def prompt_label(self) -> str:
        """Value of the column ``prompt`` of the results: ``caption``, ``empty``, ``wrong`` or the edit ``A -> B``."""
        return " -> ".join(self.edit) if self.edit else ", ".join(self._prompts)

    def source(self, caption: str) -> str:
        """Return the prompt for the inversion: an empty prompt if ``self.prompt`` is ``empty``, else ``caption``."""
        return "" if self.prompt == "empty" else caption

    def target(self, caption: str) -> str:
        """Return the prompt for sampling from the inverted seed.

        If the setting has an edit, the prompt is the edited ``caption``. Otherwise, the prompt is the result of
        :meth:`source`, the prompt for the inversion. ``caption`` is the prompt of the inverted image.
        """
        return replace_phrase(*self.edit, caption) if self.edit else self.source(caption)

    def scored(self, caption: str) -> str:
        """Return the prompt that the CLIP score compares with the sampled image.

        This prompt is the result of :meth:`target`. If the result is empty, ``caption`` is returned, the prompt of the
        inverted image.
        """
        return self.target(caption) or caption

    def each(self) -> list[Setting]:
        """Return one setting for each combination of a prompt in ``prompt`` and a number in ``nfe``."""
        counts = self.nfe if isinstance(self.nfe, Sequence) else [self.nfe]
        return [replace(self, prompt=prompt, nfe=count) for prompt, count in product(self._prompts, counts)]

    def vae_bound(self) -> Setting:
        """Return this setting for the reference method that only encodes and decodes images (:data:`VAE_BOUND`).

        The number of steps and the guidance scale are copied only if the model generates the images, because they have
        no effect on encoding and decoding.
        """
        generation = {"steps": self.steps, "guidance": self.guidance} if self.generated else {"steps": 1}
        return Setting(
            **generation,
            prompt=self.prompt,
            edit=self.edit,
            generated=self.generated,
            decoder_iterations=self.decoder_iterations,
            images=self.images,
        )


@dataclasses.dataclass(frozen=True)
class ImagePrompt:
    """An image and its prompt. If the model generates the images (``generated=True``), only the prompt is used.

    Attributes:
        name: unique name of the image.
        concept: name of the concept that the image shows.
        prompt: prompt of the image.
        images: data set that contains the image.
        index: index of the image in ``images``.
    """

    name: str
    concept: str
    prompt: str
    images: Images | np.ndarray
    index: int

    @property
    def image(self) -> Tensor:
        """The image as a tensor ``uint8 [3, H, W]``, which is read from disk at each access."""
        return torch.from_numpy(self.images[self.index])

    @cached_property
    def key(self) -> str:
        has_identity = getattr(self.images, "identity", None) is not None
        content = self.images.content_bytes(self.index).decode() if has_identity else content_hash(self.image)
        return f"{self.name}\n{self.prompt}\n{content}"


@dataclasses.dataclass(frozen=True)
class InversionJob:
    """One method that is run with one setting on a batch of images. The results of a job are stored together.

    Attributes:
        method: name of the method.
        inverter: inversion method; None if the images are only encoded and decoded (:data:`VAE_BOUND`).
        setting: the conditions of the comparison, such as number of steps and guidance scale.
        images: the images with their prompts.
        first: whether the job has the first batch of its method and setting. Figures show only the images of the first
            batch.
    """

    method: str
    inverter: Inverter | None
    setting: Setting
    images: Sequence[ImagePrompt]
    first: bool = True

    @cached_property
    def key(self) -> str:
        return hashlib.sha256("\n".join(image.key for image in self.images).encode()).hexdigest()

    @property
    def cost(self) -> Cost:
        """Estimated cost of inversion, measurement of residuals and reconstruction, plus :attr:`method_cost`."""
        nfe_per_step = 0.0 if self.inverter is None else self.inverter.nfe_per_step + RESIDUAL_NFE_PER_STEP
        inversion = Cost(batch_multiplier(self.setting.guidance) * self.setting.steps * nfe_per_step)
        return (inversion + self.method_cost).times(len(self.images))

    @property
    def method_cost(self) -> Cost:
        """Cost per image of generating the image, decoder inversion and decoding the reconstruction."""
        setting = self.setting
        generation = batch_multiplier(setting.guidance) * setting.steps * setting.generated
        decodings = 1 + setting.generated + setting.decoder_iterations
        return Cost(generation, decodings, 0, setting.decoder_iterations)

    @property
    def label(self) -> str:
        return f"{self.method}, {self.setting.steps} steps, guidance {self.setting.guidance:g}"


def from_concepts(concepts: Sequence[Concept], count: int | None, generator: torch.Generator) -> list[ImagePrompt]:
    """Return at most ``count`` reference images of ``concepts``, or all if ``count`` is None.

    The concepts are in random order. The first image of every concept comes before the second image of any concept.
    """
    max_references = max(len(concept.references) for concept in concepts)
    order = [concepts[k] for k in torch.randperm(len(concepts), generator=generator).tolist()]
    pairs = [(concept, k) for k in range(max_references) for concept in order if k < len(concept.references)]
    return [ImagePrompt(f"{c.name}/{k}", c.name, c.prompt, c.references, k) for c, k in pairs[:count]]


def from_captions(pairs: Captioned, count: int | None, generator: torch.Generator) -> list[ImagePrompt]:
    """Return at most ``count`` of the captioned images in random order, or all if ``count`` is None.

    The caption of an image is its prompt.
    """
    order = torch.randperm(len(pairs), generator=generator)[:count].tolist()
    return [ImagePrompt(pairs.names[k], pairs.names[k], pairs.captions[k], pairs.images, k) for k in order]


def generated_images(images: Sequence[ImagePrompt], count: int) -> list[ImagePrompt]:
    """Return ``count`` prompts for a setting in which the model generates the images to invert (``generated=True``).

    The prompts of ``images`` are repeated in order until there are ``count`` prompts. Prompts that occur several times
    have different names, so that each image is generated from a different noise latent.
    """
    prompts = [images[k % len(images)] for k in range(count)]
    return [replace(image, name=f"{image.name}/{k // len(images)}") for k, image in enumerate(prompts)]


def mismatched(images: Sequence[ImagePrompt]) -> list[ImagePrompt]:
    """Return the images with wrong prompts. An image gets the prompt of the next image that shows another concept."""
    result = []
    for k, image in enumerate(images):
        others = (images[(k + step) % len(images)] for step in range(1, len(images)))
        other = next((o for o in others if o.concept != image.concept), None)
        if other is None:
            raise ValueError("prompt=wrong needs images of two or more concepts, got one: select more concepts.")
        result.append(replace(image, prompt=other.prompt))
    return result


def jobs(
    methods: Mapping[str, Inverter], settings: Sequence[Setting], images: Sequence[ImagePrompt], batch_size: int
) -> list[InversionJob]:
    """Return the jobs of all methods with all settings.

    The list also contains the jobs of the reference method :data:`VAE_BOUND`, which only encodes and decodes images.
    Settings that use the same images share the jobs of this reference method.

    Raises:
        ValueError: a setting contains the name of an unknown method, or sets ``nfe`` for a method whose number of
            network evaluations is fixed.
    """
    all_jobs: list[InversionJob] = []
    for setting in (single for each in settings for single in each.each()):
        batches = _batches(setting, images, batch_size)
        all_jobs += _batch_jobs(VAE_BOUND, None, setting.vae_bound(), batches)
        for name in setting.methods or methods:
            all_jobs += _batch_jobs(name, _inverter(methods, name, setting.nfe), setting, batches)
    distinct = {(job.method, str(job.setting), job.key): job for job in all_jobs}
    return list(distinct.values())


def _batches(setting: Setting, images: Sequence[ImagePrompt], size: int) -> list[Sequence[ImagePrompt]]:
    """Return the images and prompts of ``setting``, split into batches of at most ``size`` images."""
    selected = images[: setting.images]
    if setting.generated:
        selected = generated_images(images, setting.images or len(images))
    if setting.prompt == "wrong":
        selected = mismatched(selected)
    _check_edit(setting, selected)
    return [selected[k : k + size] for k in range(0, len(selected), size)]


def _batch_jobs(
    method: str, inverter: Inverter | None, setting: Setting, batches: Sequence[Sequence[ImagePrompt]]
) -> Iterator[InversionJob]:
    for k, batch in enumerate(batches):
        yield InversionJob(method, inverter, setting, batch, first=k == 0)


def _check_edit(setting: Setting, images: Sequence[ImagePrompt]) -> None:
    for image in images:
        if setting.edit and not find_phrase(setting.edit[0], image.prompt):
            raise ValueError(
                f"edit={list(setting.edit)}: the prompt {image.prompt!r} does not contain {setting.edit[0]!r} as whole "
                "words; select images whose prompts contain it, for example with data.caption_contains."
            )


def _inverter(methods: Mapping[str, Inverter], name: str, nfe: int | None) -> Inverter:
    """Return the inversion method ``name``.

    If ``nfe`` is not None, the method uses ``nfe`` network evaluations per step.
    """
    if name not in methods:
        raise ValueError(
            f"task.settings: the method {name!r} is not in task.methods; choose one of {', '.join(methods)}."
        )
    if nfe is None:
        return methods[name]
    try:
        return methods[name].with_nfe(nfe)
    except ValueError as error:
        raise ValueError(f"nfe={nfe} of the method {name!r}: {error} Remove nfe or the method.") from error


class InversionJobData(CachedUnitDataModule):
    """Lightning data module with the jobs whose results are not on disk yet."""

    unit_noun = "batch"

    def part(self, unit: InversionJob) -> str:
        return unit.method if unit.inverter is None else unit.label

    def cost(self, unit: InversionJob) -> float:
        return unit.cost.nfe + unit.cost.decoded

    def address(self, unit: InversionJob) -> tuple[str, str]:
        return unit_name(unit), unit.key


def unit_name(job: InversionJob) -> str:
    """Return a string that identifies the store (:class:`UnitStore`) for the results of a job.

    Jobs with the same method and setting share a store.
    """
    return f"{job.method}\n{job.setting}"
