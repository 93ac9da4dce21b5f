"""Interface of a model family (the pipelines of one architecture), and the registry of all model families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from rnri.models.predictor import GuidedDenoiser
from rnri.models.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

    from rnri.models.attention.editor import AttentionEditor

FamilyClass = TypeVar("FamilyClass", bound="type[Family]")

_FAMILIES: dict[type[DiffusionPipeline], type[Family]] = {}
"""Registry: maps each supported pipeline class to its model family."""


class Family(ABC):
    """Base class of model families; a family implements everything that depends on the model's architecture.

    A family defines the network, its conditions, its latents and its schedule. Latents have the shape ``[B,C,h,w]`` in
    all methods; ``pack`` converts them to the layout of the pipeline's ``latents=`` argument. The decorator
    :func:`register_family` registers subclasses.

    Args:
        pipeline: an instance of a class in ``pipelines``; the pipeline is not modified.
    """

    pipelines: ClassVar[tuple[type[DiffusionPipeline], ...]]
    """Pipeline classes that the family supports."""
    network_name: ClassVar[str]
    """Name of the pipeline component that predicts noise or velocity, such as ``unet``."""
    supported: ClassVar[str]
    """Names of the models that the family supports, for error messages."""
    batch_independent: ClassVar[bool] = True
    """Whether a pipeline call for several images returns the same images as one call per image."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline

    @classmethod
    def required_components(cls, pipeline_class: type[DiffusionPipeline]) -> tuple[str, ...]:
        """Return the names of the components that a pipeline of the class ``pipeline_class`` must have."""
        return (cls.network_name, "vae", "text_encoder", "tokenizer", "scheduler")

    @property
    def network(self) -> ModelMixin:
        return getattr(self.pipeline, self.network_name)

    @property
    def patch(self) -> int:
        """Height and width of the latents must be multiples of ``patch``."""
        return 1

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of channels of the latents."""

    @property
    def latent_size(self) -> tuple[int, int]:
        """Default height and width ``(h, w)`` of the latents.

        Raises:
            ValueError: the network's config has no ``sample_size``.
        """
        size = self.network.config.get("sample_size")
        if size is None:
            raise ValueError(
                f"the config.json of the {self.network_name} has no sample_size: set sample_size to the side of the "
                "latents, or to [height, width]."
            )
        return as_pair(size)

    @property
    def pixels_per_latent(self) -> int:
        """Side, in pixels, of the image patch that one spatial element of the latents represents."""
        return 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)

    @property
    def default_guidance(self) -> float:
        """Guidance scale that the architecture's authors recommend; 1 disables guidance."""
        return 1.0

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError if images cannot be inverted with the pipeline."""

    @abstractmethod
    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> GuidedDenoiser:
        """Return the denoiser for a batch of ``prompts`` and images of ``image_size`` ``(H, W)`` in pixels.

        Raises:
            ValueError: ``guidance`` or ``negatives`` (the negative prompts) would have no effect on the network.
        """

    @abstractmethod
    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        """Return the schedule that the pipeline uses for latents of size ``(h, w)`` and ``steps`` sampling steps."""

    def latent_statistics(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Return the mean and the standard deviation that normalize the VAE's latents, on the device of ``latents``.

        A latent ``z`` of the network corresponds to the VAE's latent ``std z + mean``.
        """
        config = self.pipeline.vae.config
        mean = config.get("latents_mean")
        std = config.get("latents_std")
        if mean is None or std is None:
            return config.get("shift_factor") or 0.0, 1 / config.scaling_factor
        mean = latents.new_tensor(mean).view(1, -1, 1, 1)
        std = latents.new_tensor(std).view(1, -1, 1, 1)
        return mean, std / config.get("scaling_factor", 1.0)

    def vae_mean(self, vae: ModelMixin, pixels: Tensor) -> Tensor:
        """Return the mean ``[B,C,h,w]`` of the posterior distribution of ``vae``, without scaling to unit variance.

        Args:
            vae: the pipeline's VAE, or a float32 copy of the VAE.
            pixels: images ``[B,3,H,W]`` in [-1, 1].
        """
        return vae.encode(pixels).latent_dist.mode()

    def vae_decode(self, vae: ModelMixin, latents: Tensor) -> Tensor:
        """Return the images ``[B,3,H,W]``, with values of about [-1, 1], that ``vae`` decodes.

        Args:
            vae: the pipeline's VAE, or a float32 copy of the VAE.
            latents: latents ``[B,C,h,w]`` without normalization to unit variance, as ``vae_mean`` returns them.
        """
        return vae.decode(latents, return_dict=False)[0]

    @property
    def latents_dtype(self) -> torch.dtype:
        """Dtype of the pipeline's latents during sampling; by default the dtype of the network."""
        return self.network.dtype

    def pipeline_kwargs(self, guidance: float) -> dict[str, Any]:
        """Return the keyword arguments with which a pipeline call samples with the guidance scale ``guidance``.

        Args:
            guidance: scale of classifier-free guidance; 1 means no guidance.

        Returns:
            The arguments by name. If ``negative_prompt`` is among the arguments, a pipeline call must pass one negative
            prompt per image, even if all negative prompts are empty.
        """
        return {"guidance_scale": guidance}

    def pack(self, latents: Tensor) -> Tensor:
        """Convert ``latents [B,C,h,w]`` to the layout of the pipeline's ``latents=`` argument."""
        return latents

    def unpack(self, latents: Tensor, latent_size: tuple[int, int]) -> Tensor:
        """Convert ``latents`` from the layout of the pipeline's ``latents=`` argument to ``[B,C,h,w]``.

        ``latent_size`` is ``(h, w)``.
        """
        return latents

    def attention_editor(self) -> AttentionEditor:
        """Return the attention editor with which ``rnri.editing`` edits images of this model family."""
        raise ValueError(
            f"{type(self).__name__} has no attention editor, so {type(self.pipeline).__name__} cannot edit images by "
            "attention: use FlowEdit (flow matching) or PseudoGuidance of rnri.editing."
        )


class TransformerFamily(Family):
    """Base class of the families whose network is a transformer of diffusers."""

    network_name: ClassVar = "transformer"

    @property
    def patch(self) -> int:
        return self.network.config.patch_size

    @property
    def channels(self) -> int:
        return self.network.config.in_channels

    def image_tokens(self, latent_size: tuple[int, int]) -> int:
        """Return the number of image tokens of the transformer for latents of size ``(h, w)``."""
        height, width = latent_size
        return (height // self.patch) * (width // self.patch)

    def dynamic_shift(self, latent_size: tuple[int, int], max_shift: float = 1.15) -> float | None:
        """Return the shift ``mu`` of the scheduler's noise levels, which grows with the number of image tokens.

        If the shift of the scheduler does not depend on the image size, the method returns None.

        Args:
            latent_size: height and width of the latents.
            max_shift: maximum shift if the scheduler's config has none.
        """
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift  # other pipelines contain a copy of it

        config = self.pipeline.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return None
        return calculate_shift(
            self.image_tokens(latent_size),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", max_shift),
        )


class PackedTransformerFamily(TransformerFamily):
    """Base class of the families whose pipelines pack 2 x 2 elements of the latents into one image token."""

    patch: ClassVar = 2

    @property
    def channels(self) -> int:
        return self.network.config.in_channels // 4

    @property
    def latent_size(self) -> tuple[int, int]:
        size = self.pipeline.default_sample_size  # the transformer's config has no size
        return size, size


def register_family(family: FamilyClass) -> FamilyClass:
    """Class decorator that registers a model family, so that ``family_of`` and ``rnri.invert`` can use it.

    Raises:
        ValueError: a pipeline class of ``family`` is already registered by another family.
    """
    for pipeline_class in family.pipelines:
        registered = _FAMILIES.get(pipeline_class)
        if registered is not None:
            raise ValueError(f"{pipeline_class.__name__} is already registered by {registered.__name__}.")
        _FAMILIES[pipeline_class] = family
    return family


def registered_families() -> list[type[Family]]:
    """Return all registered model families, in the order of their registration."""
    return list(dict.fromkeys(_FAMILIES.values()))


def registered_family(pipeline_class: type[DiffusionPipeline]) -> type[Family] | None:
    """Return the model family that is registered for a pipeline class or for its nearest registered base class.

    The function returns None if no family is registered for the class or its base classes.
    """
    return next((_FAMILIES[base] for base in pipeline_class.__mro__ if base in _FAMILIES), None)


def supported_models() -> str:
    """Return the names of all supported models as one string, for error messages."""
    return "; ".join(family.supported for family in registered_families())


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return ``size`` as ``(height, width)``; an integer is the side of a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def components(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """Return the pipeline's networks by name."""
    return {name: value for name, value in pipeline.components.items() if isinstance(value, nn.Module)}
