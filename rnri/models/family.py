"""Interface of a model family, the pipelines of one architecture, and the register of all families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from torch import Tensor, nn

from rnri.models.predictor import GuidedDenoiser
from rnri.models.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from rnri.models.attention.editor import AttentionEditor

FamilyClass = TypeVar("FamilyClass", bound="type[Family]")

_FAMILIES: dict[type[DiffusionPipeline], type[Family]] = {}
"""Registered families by pipeline class."""


class Family(ABC):
    """Everything that depends on the architecture: the network, its conditions, its latents and its schedule.

    Latents are ``[B,C,h,w]`` everywhere except in the pipeline's ``latents=`` argument, whose layout is that of
    ``pack``. Subclasses are registered by :func:`register_family`.

    Args:
        pipeline: an instance of one of ``pipelines``; it is not modified.
    """

    pipelines: ClassVar[tuple[type[DiffusionPipeline], ...]]
    """Supported pipeline classes."""
    network_name: ClassVar[str]
    """Name of the component that predicts noise or velocity."""
    supported: ClassVar[str]
    """Names of the supported models, for error messages."""
    patch: ClassVar[int] = 1
    """Height and width of latents are multiples of it."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline

    @classmethod
    def required_components(cls, pipeline_class: type[DiffusionPipeline]) -> tuple[str, ...]:
        """Return the names of the components that a pipeline of this class must have."""
        return (cls.network_name, "vae", "text_encoder", "tokenizer", "scheduler")

    @property
    def network(self) -> nn.Module:
        return getattr(self.pipeline, self.network_name)

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of channels of the latents."""

    @property
    def latent_size(self) -> tuple[int, int]:
        """Default ``(h, w)`` of the latents; ValueError if the config has none."""
        size = self.network.config.get("sample_size")
        if size is None:
            raise ValueError(
                f"the config.json of the {self.network_name} has no sample_size: set it to the side of the latents, or "
                "to [height, width]."
            )
        return as_pair(size)

    @property
    def pixels_per_latent(self) -> int:
        """Side of the image patch that one element of the latents represents, in pixels."""
        return 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)

    @property
    def default_guidance(self) -> float:
        """Guidance scale that the architecture's authors recommend; 1 disables guidance."""
        return 1.0

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError for a pipeline that cannot be inverted."""

    @abstractmethod
    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> GuidedDenoiser:
        """Return the denoiser for ``prompts`` and images ``(H, W)``.

        Raises:
            ValueError: guidance or negative prompts have no effect on the network.
        """

    @abstractmethod
    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        """Return the schedule that the pipeline itself uses for latents ``(h, w)``."""

    def latent_statistics(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return ``(mean, std)``, so that the VAE's latent is ``std z + mean``, on the device of ``latents``."""
        config = self.pipeline.vae.config
        mean = config.get("latents_mean")
        std = config.get("latents_std")
        if mean is None or std is None:
            return config.get("shift_factor") or 0.0, 1 / config.scaling_factor
        mean = latents.new_tensor(mean).view(1, -1, 1, 1)
        std = latents.new_tensor(std).view(1, -1, 1, 1)
        return mean, std / config.scaling_factor

    def pack(self, latents: Tensor) -> Tensor:
        """Convert ``[B,C,h,w]`` to the layout of the pipeline's ``latents=`` argument."""
        return latents

    def unpack(self, latents: Tensor, latent_size: tuple[int, int]) -> Tensor:
        """Convert the layout of the pipeline's ``latents=`` argument to ``[B,C,h,w]``."""
        return latents

    def attention_editor(self) -> AttentionEditor:
        """Return the editor of the network's attention, for ``rnri.editing``."""
        raise ValueError(
            f"{type(self).__name__} has no attention editor, so {type(self.pipeline).__name__} cannot edit images by "
            "attention."
        )


def register_family(family: FamilyClass) -> FamilyClass:
    """Class decorator: make a family known to ``family_of``, and thereby to ``rnri.invert``.

    Raises:
        ValueError: another family has registered one of its pipeline classes.
    """
    for pipeline_class in family.pipelines:
        registered = _FAMILIES.get(pipeline_class)
        if registered is not None:
            raise ValueError(f"{pipeline_class.__name__} is already registered by {registered.__name__}.")
        _FAMILIES[pipeline_class] = family
    return family


def registered_families() -> list[type[Family]]:
    """Return all registered families, in the order of their registration."""
    return list(dict.fromkeys(_FAMILIES.values()))


def registered_family(pipeline_class: type[DiffusionPipeline]) -> type[Family] | None:
    """Return the family of a pipeline class or of its nearest base class; None if there is none."""
    return next((_FAMILIES[base] for base in pipeline_class.__mro__ if base in _FAMILIES), None)


def supported_models() -> str:
    """Return the names of all supported models, for error messages."""
    return "; ".join(family.supported for family in registered_families())


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return ``(height, width)`` of a size that is one side or both."""
    return (size, size) if isinstance(size, int) else tuple(size)


def components(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return the pipeline's networks by name."""
    return {name: value for name, value in pipeline.components.items() if isinstance(value, nn.Module)}
