"""What one architecture of text-to-image pipeline knows of itself, so that nothing else has to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from rnri.models.predictor import GuidedDenoiser
from rnri.models.schedule import Schedule

SUPPORTED = "Stable Diffusion 1.x, 2.x, XL, turbo and LCM, Stable Diffusion 3 and 3.5, and FLUX.1"


class Family(ABC):
    """The pipelines of one architecture: a network, its conditions, its latents' layout and its schedule.

    Latents are ``[B,C,h,w]`` everywhere but in the pipeline's own ``latents=``, which ``pack`` makes of them.

    Args:
        pipeline: one of ``pipelines``; only read.
    """

    pipelines: ClassVar[tuple[type[DiffusionPipeline], ...]]
    network_name: ClassVar[str]
    """The pipeline's component that predicts."""
    patch: ClassVar[int] = 1
    """The sides of latents are multiples of it."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline

    @classmethod
    def required_components(cls, pipeline: type[DiffusionPipeline]) -> tuple[str, ...]:
        """The parts that a pipeline of that class cannot do without here."""
        return (cls.network_name, "vae", "text_encoder", "tokenizer", "scheduler")

    @property
    def network(self) -> nn.Module:
        return getattr(self.pipeline, self.network_name)

    @property
    @abstractmethod
    def channels(self) -> int:
        """Of the latents."""

    @property
    def latent_size(self) -> tuple[int, int]:
        """``(h, w)`` that the checkpoint was made for; ValueError where it does not say."""
        size = self.network.config.get("sample_size")
        if size is None:
            raise ValueError(
                f"the config.json of the {self.network_name} has no sample_size: set it to the latents' side, or both sides."
            )
        return as_pair(size)

    @abstractmethod
    def check(self) -> None:
        """ValueError, one sentence, for a pipeline that cannot be inverted."""

    @abstractmethod
    def denoiser(
        self, prompts: list[str], guidance: float, negatives: list[str], image_size: tuple[int, int]
    ) -> GuidedDenoiser:
        """The prediction for ``prompts`` of images ``(H, W)``; ValueError where guidance or negatives cannot act."""

    @abstractmethod
    def schedule(self, steps: int, latent_size: tuple[int, int]) -> Schedule:
        """The schedule that the pipeline itself would take for latents of that size."""

    def pack(self, latents: Tensor) -> Tensor:
        """What the pipeline takes as ``latents=``, from ``[B,C,h,w]``."""
        return latents

    def unpack(self, latents: Tensor, latent_size: tuple[int, int]) -> Tensor:
        """``[B,C,h,w]`` from what the pipeline takes as ``latents=``."""
        return latents


def check_embedding_dim(part: str, field: str, expected: int, found: int, of: str) -> None:
    """ValueError where text is ``found`` wide and ``part`` takes ``expected``, as its config's ``field`` says."""
    if expected != found:
        raise ValueError(
            f"{field}={expected} in the config.json of the {part}, but {of} of the pipeline's text encoders is "
            f"{found}: they do not belong together, bring the parts of one checkpoint."
        )


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """``(height, width)`` of a size that is one side, or both."""
    return (size, size) if isinstance(size, int) else tuple(size)


def check_no_negatives(negatives: Sequence[str], network: str) -> None:
    """ValueError for negative prompts given to a network that has its guidance as an input."""
    if any(negatives):
        raise ValueError(
            f"negative_prompt has no effect on a network with embedded guidance ({network}); leave it empty."
        )


def components(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The pipeline's networks by name."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
