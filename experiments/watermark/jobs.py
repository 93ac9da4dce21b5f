"""Jobs of the watermark experiment. A job reads the watermarks of a batch of images, or forges a watermark."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from annotated_types import Gt, Lt, MinLen
from pydantic import NonNegativeInt, PositiveInt

from experiments.planning.cost import Cost, batch_multiplier
from experiments.runtime.unit_queue import CachedUnitDataModule
from rnri import Inverter
from rnri.validation import ConfigError, GuidanceScale, IntAtLeast2, NonEmptyStr, dataclass
from rnri.watermark import GaussianShading, TreeRing, Watermark

Scheme = Literal["gaussian_shading", "tree_ring"]
"""The type of a watermark."""
SCHEMES: tuple[Scheme, ...] = ("gaussian_shading", "tree_ring")


@dataclass(frozen=True)
class ReadingSetting:
    """The conditions under which inversion methods are compared: how images are generated and watermarks are read.

    Args:
        steps: number of sampling steps for generating the images.
        guidance: guidance scale for generating the images; if None, the default of the model is used. Watermarks are
            always read with the empty prompt and without guidance.
        read_steps: number of steps of the inversion that reads the watermarks; if None, ``steps`` is used.
        sampler: scheduler class of diffusers for generating the images, such as DPMSolverMultistepScheduler. If
            ``sampler`` is None, images are generated with the same deterministic sampler whose steps are inverted.
        nfe: number of network evaluations per inversion step, for methods with a solver. If ``nfe`` is None, each
            method uses the number in its config. A list of numbers is expanded to one setting per number.
        methods: names of the inversion methods; if None, all methods are used.
        attacks: names of the attacks; if None, all attacks are used. Watermarks of images without an attack are always
            read.
        images: maximum number of images per type of watermark; if None, all images of the experiment are used.
    """

    steps: PositiveInt
    guidance: GuidanceScale | None = None
    read_steps: PositiveInt | None = None
    sampler: NonEmptyStr | None = None
    nfe: PositiveInt | Annotated[Sequence[PositiveInt], MinLen(1)] | None = None
    methods: Annotated[Sequence[NonEmptyStr], MinLen(1)] | None = None
    attacks: Sequence[NonEmptyStr] | None = None
    images: PositiveInt | None = None

    @property
    def inversion_steps(self) -> int:
        return self.read_steps or self.steps

    def each(self) -> list[ReadingSetting]:
        """Return one setting for each number of network evaluations per step in ``nfe``."""
        counts = self.nfe if isinstance(self.nfe, Sequence) else [self.nfe]
        return [replace(self, nfe=count) for count in counts]


@dataclass(frozen=True)
class ForgerySetting:
    """How a watermark is forged without its key, from several images with the same watermark.

    The images are inverted, and the inverted seeds are averaged. Random noise is added to the average, so that the sum
    has variance 1. An image with another prompt is generated from the sum.

    Args:
        keys: number of keys whose watermarks are forged.
        images: numbers of images whose seeds are averaged, in increasing order. For each key, one image is forged for
            each of these numbers.
        steps: number of steps for generating images and for inverting images.
        guidance: guidance scale for generating the images; if None, the default of the model is used.
    """

    keys: PositiveInt
    images: Annotated[Sequence[PositiveInt], MinLen(1)]
    steps: PositiveInt
    guidance: GuidanceScale | None = None

    def __post_init__(self) -> None:
        if list(self.images) != sorted(set(self.images)):
            raise ConfigError("images", f"must be increasing numbers without repetitions, got {list(self.images)}.")


@dataclass(frozen=True)
class WatermarkSettings:
    """Settings of the watermarks of the experiment.

    Each image has its own key, which is never written to disk. The keys are not secret, because they are derived from
    the random seed of the experiment: use :func:`rnri.watermark.new_key` for images that are published.

    Args:
        message_bytes: length of the message of Gaussian Shading, in bytes.
        ring_radius: radius of the Tree-Ring watermark in Fourier space, as a fraction of the smaller side of a latent,
            above 0 and below 0.5.
        ring_channel: index of the latent channel that contains the Tree-Ring watermark.
        other_keys: number of wrong keys with which each image is also read, to measure the rate of false positives.
    """

    message_bytes: PositiveInt = 8
    ring_radius: Annotated[float, Gt(0), Lt(0.5)] = 10 / 64
    ring_channel: NonNegativeInt = 0
    other_keys: IntAtLeast2 = 100

    def mark(self, scheme: Scheme, name: str, seed: int) -> Watermark:
        """Return the watermark of the image ``name``, with a key that is derived from ``name`` and ``seed``."""
        key = derived_key(f"key\n{name}", seed)
        if scheme == "tree_ring":
            return TreeRing(key=key, radius=self.ring_radius, channel=self.ring_channel)
        return GaussianShading(key=key, message=_shake(f"message\n{name}", seed, self.message_bytes))


def derived_key(name: str, seed: int) -> bytes:
    """Return a key of 32 bytes that is derived from ``name`` and from the random seed of the experiment."""
    return _shake(name, seed, 32)


def _shake(name: str, seed: int, count: int) -> bytes:
    return hashlib.shake_256(f"watermark\n{seed}\n{name}".encode()).digest(count)


@dataclasses.dataclass(frozen=True)
class NamedPrompt:
    """A prompt, and the unique name of the image that is generated from the prompt."""

    name: str
    prompt: str


@dataclasses.dataclass(frozen=True)
class ReadingJob:
    """A job that reads watermarks with one inversion method and one setting, for a batch of prompts.

    The results of a job are stored together.

    Attributes:
        method: name of the inversion method.
        inverter: the inversion method.
        setting: the conditions under which images are generated and watermarks are read.
        prompts: prompts of the images. One image per prompt and type of watermark is generated.
        attacks: names of the attacks. The first name stands for images without an attack.
        guidance: guidance scale for generating the images.
        first: whether the job has the first batch of its method and setting.
    """

    method: str
    inverter: Inverter
    setting: ReadingSetting
    prompts: Sequence[NamedPrompt]
    attacks: Sequence[str]
    guidance: float
    first: bool = True

    @property
    def store(self) -> str:
        return f"{self.method}\n{self.setting}"

    @property
    def key(self) -> str:
        return _digest(self.prompts)

    @property
    def label(self) -> str:
        setting = self.setting
        parts = [self.method, f"{setting.steps} steps"]
        if setting.sampler:
            parts.append(setting.sampler)
        if setting.inversion_steps != setting.steps:
            parts.append(f"read with {setting.inversion_steps} steps")
        if setting.nfe is not None:
            parts.append(f"NFE {setting.nfe}")
        return ", ".join(parts)

    @property
    def readings(self) -> int:
        """Number of images that are inverted to read their watermarks."""
        return len(SCHEMES) * len(self.attacks) * len(self.prompts)

    @property
    def generation_cost(self) -> Cost:
        """Cost of generating the images of the job. Other inversion methods with the same setting reuse the images."""
        images = len(SCHEMES) * len(self.prompts)
        return Cost(batch_multiplier(self.guidance) * self.setting.steps * images, 2 * images)

    @property
    def cost(self) -> Cost:
        """Estimated cost of generating and inverting the images of the job."""
        return Cost(self.setting.inversion_steps * self.inverter.nfe_per_step * self.readings) + self.generation_cost


@dataclasses.dataclass(frozen=True)
class ForgeryJob:
    """A job that forges the watermark of one key. The results of the job are stored together.

    Attributes:
        scheme: type of the watermark.
        inverter: the inversion method.
        setting: how the watermark is forged.
        number: index of the key.
        prompts: prompts of the images with the genuine watermark, followed by one prompt for the forged images.
        guidance: guidance scale for generating the images.
    """

    scheme: Scheme
    inverter: Inverter
    setting: ForgerySetting
    number: int
    prompts: Sequence[NamedPrompt]
    guidance: float

    @property
    def store(self) -> str:
        return "forgery"

    @property
    def key(self) -> str:
        return f"{self.scheme}\n{self.number}\n{_digest(self.prompts)}"

    @property
    def label(self) -> str:
        return "forgery"

    @property
    def cost(self) -> Cost:
        images = len(self.prompts) - 1 + len(self.setting.images)
        per_step = batch_multiplier(self.guidance) + self.inverter.nfe_per_step
        return Cost(images * self.setting.steps * per_step, images)


def _digest(prompts: Sequence[NamedPrompt]) -> str:
    return hashlib.sha256("\n".join(f"{each.name}\n{each.prompt}" for each in prompts).encode()).hexdigest()


def numbered(prompts: Sequence[NamedPrompt], count: int) -> list[NamedPrompt]:
    """Return ``count`` prompts with unique names.

    The list ``prompts`` is repeated until there are ``count`` prompts. The number of the repetition is appended to each
    name.
    """
    return [
        NamedPrompt(f"{prompts[k % len(prompts)].name}/{k // len(prompts)}", prompts[k % len(prompts)].prompt)
        for k in range(count)
    ]


def reading_jobs(
    methods: Mapping[str, Inverter],
    settings: Sequence[ReadingSetting],
    prompts: Sequence[NamedPrompt],
    *,
    attacks: Sequence[str],
    batch_size: int,
    default_guidance: float,
) -> list[ReadingJob]:
    """Return the jobs that read watermarks. Each method is run with each setting that includes the method.

    Raises:
        ConfigError: a setting contains the name of an unknown method or attack, or sets ``nfe`` for a method whose
            number of network evaluations is fixed.
    """
    jobs: list[ReadingJob] = []
    for k, original in enumerate(settings):
        for name in original.attacks or ():
            if name not in attacks:
                raise ConfigError(
                    f"task.settings.{k}.attacks", f"must be some of {', '.join(attacks[1:])}, got {name!r}."
                )
        for setting in original.each():
            chosen = attacks if setting.attacks is None else (attacks[0], *setting.attacks)
            used = [attack for attack in attacks if attack in chosen]
            guidance = default_guidance if setting.guidance is None else setting.guidance
            selected = prompts[: setting.images]
            batches = [selected[i : i + batch_size] for i in range(0, len(selected), batch_size)]
            for name in setting.methods or methods:
                inverter = _with_nfe(methods, name, setting.nfe, f"task.settings.{k}")
                jobs += [
                    ReadingJob(name, inverter, setting, batch, used, guidance, first=batch is batches[0])
                    for batch in batches
                ]
    return list({(job.store, job.key): job for job in jobs}.values())


def _with_nfe(methods: Mapping[str, Inverter], name: str, nfe: int | None, key: str) -> Inverter:
    if name not in methods:
        raise ConfigError(f"{key}.methods", f"must be some of {', '.join(methods)}, got {name!r}.")
    try:
        return methods[name] if nfe is None else methods[name].with_nfe(nfe)
    except ValueError as error:
        raise ConfigError(f"{key}.nfe", f"must be a number that {name} supports, got {nfe}: {error}") from error


def forgery_jobs(
    setting: ForgerySetting, inverter: Inverter, prompts: Sequence[NamedPrompt], default_guidance: float
) -> Iterator[ForgeryJob]:
    """Yield the jobs that forge a watermark, one per type of watermark and key."""
    guidance = default_guidance if setting.guidance is None else setting.guidance
    count = max(setting.images) + 1
    all_prompts = numbered(prompts, count * setting.keys)
    for scheme in SCHEMES:
        for number in range(setting.keys):
            yield ForgeryJob(scheme, inverter, setting, number, all_prompts[number :: setting.keys], guidance)


class WatermarkJobData(CachedUnitDataModule):
    """Lightning data module with the jobs whose results are not on disk yet."""

    unit_noun = "batch"

    def part(self, unit: ReadingJob | ForgeryJob) -> str:
        return unit.label

    def cost(self, unit: ReadingJob | ForgeryJob) -> float:
        return unit.cost.nfe + unit.cost.decoded

    def address(self, unit: ReadingJob | ForgeryJob) -> tuple[str, str]:
        return unit.store, unit.key
