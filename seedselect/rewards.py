"""What an optimization of seeds may ask for: rewards of images, latents or seeds, one value a sample.

A reward is any function of :class:`Made` that gives ``[B]``, the larger the better, differentiable in the seeds. Those
below are made of simpler ones by :func:`of_images`, :func:`of_latents` and :func:`of_seeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from torch import Tensor

import rnri.validation
from rnri.validation import Dtype, NonEmptyStr
from seedselect.features import ClipFeatures
from seedselect.losses import appearance_loss, semantic_loss


@dataclass(frozen=True)
class Targets:
    """What each sample shall come to resemble.

    Attributes:
        features: mean reference feature ``[B, D]``.
        latent: mean latent of the references ``[B, C, h, w]``.
        text: feature of the prompt in the space of ``features``, ``[B, D]``; None where no reward asks for it.
        prompts: B prompts, for rewards with networks of their own.
    """

    features: Tensor
    latent: Tensor
    text: Tensor | None = None
    prompts: Sequence[str] | None = None

    def select(self, rows: Tensor) -> Targets:
        return Targets(
            self.features[rows],
            self.latent[rows],
            None if self.text is None else self.text[rows],
            None if self.prompts is None else [self.prompts[k] for k in rows.tolist()],
        )


class Made:
    """What B seeds have led to. Images are decoded when a reward first asks for them, and once.

    Attributes:
        seeds: ``[B, C, h, w]``.
        latents: the last of sampling, ``[B, C, h, w]`` each, cleanest last.
        targets: of the B samples.
        decode, features: latents to images in [0, 1], images to features of unit length.
    """

    def __init__(
        self,
        seeds: Tensor,
        latents: Sequence[Tensor],
        targets: Targets,
        decode: Callable[[Tensor], Tensor],
        features: Callable[[Tensor], Tensor],
    ) -> None:
        self.seeds, self.latents, self.targets = seeds, latents, targets
        self.decode, self.features = decode, features
        self._images: Tensor | None = None

    @property
    def images(self) -> Tensor:
        """``[B, 3, H, W]`` of the clean latents."""
        if self._images is None:
            self._images = self.decode(self.latents[-1])
        return self._images


Reward = Callable[[Made], Tensor]
"""One value a sample, ``[B]``, the larger the better."""


def of_images(reward: Callable[[Tensor], Tensor]) -> Reward:
    """A reward of a function of images ``[B, 3, H, W]`` in [0, 1]."""
    return partial(_of_images, reward)


def of_latents(reward: Callable[[Tensor], Tensor]) -> Reward:
    """A reward of a function of clean latents ``[B, C, h, w]``."""
    return partial(_of_latents, reward)


def of_seeds(reward: Callable[[Tensor], Tensor]) -> Reward:
    """A reward of a function of seeds ``[B, C, h, w]``."""
    return partial(_of_seeds, reward)


def _of_images(reward: Callable[[Tensor], Tensor], made: Made) -> Tensor:
    return reward(made.images)


def _of_latents(reward: Callable[[Tensor], Tensor], made: Made) -> Tensor:
    return reward(made.latents[-1])


def _of_seeds(reward: Callable[[Tensor], Tensor], made: Made) -> Tensor:
    return reward(made.seeds)


def negative(penalty: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A penalty as a reward, such as ``of_seeds(negative(nao.norm_penalty))``: ReNO's regularizer, in float64."""
    return partial(_negative, penalty)


def _negative(penalty: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    return -penalty(values)


def likeness(made: Made, step_weights: Sequence[float] = (1.0,)) -> Tensor:
    """SeedSelect's semantic loss as a reward: the images' features beside the references'."""
    latents = made.latents[-len(step_weights) :]
    return -semantic_loss(latents, made.targets.features, step_weights, made.decode, made.features)


def appearance(made: Made) -> Tensor:
    """SeedSelect's appearance loss as a reward: the clean latent beside the references'."""
    return -appearance_loss(made.latents[-1], made.targets.latent)


def text_similarity(made: Made) -> Tensor:
    """Cosine of the images' features and the prompts', in [-1, 1]. It needs no references."""
    if made.targets.text is None:
        raise ValueError(
            "text_similarity needs Targets(text=...): the features of the prompts, such as clip.text gives."
        )
    return (made.features(made.images) * made.targets.text).sum(-1)


@rnri.validation.dataclass(frozen=True)
class ClipReward:
    """Cosine of images and prompts under a reward model of its own: any of ``transformers`` of CLIP's kind, by path.

    PickScore and HPSv2 in transformers' form are of this kind. The model is loaded when it is first asked.

    Args:
        path: a local folder or a hub id.
        dtype: of its weights.
        local_files_only: never download.
    """

    path: NonEmptyStr
    dtype: Dtype = "float32"
    local_files_only: bool = False

    def __call__(self, made: Made) -> Tensor:
        if made.targets.prompts is None:
            raise ValueError(f"the reward of {self.path} needs Targets(prompts=...): one prompt a sample.")
        model = _loaded(self.path, self.dtype, self.local_files_only, str(made.seeds.device))
        return (model(made.images) * model.text(made.targets.prompts)).sum(-1)


@cache
def _loaded(path: str, dtype: str, local_files_only: bool, device: str) -> ClipFeatures:
    return ClipFeatures.from_pretrained(path, device=device, dtype=dtype, local_files_only=local_files_only)
