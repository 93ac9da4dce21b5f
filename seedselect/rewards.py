"""Rewards: functions of a generated image that SeedSelect maximizes if ``SeedSelect.rewards`` is set.

A reward is any function that maps a :class:`~seedselect.problem.Generation` to one value per sample, ``[B]``. Larger
values are better, and the reward must be differentiable with respect to the seeds. :class:`ImageReward`,
:class:`LatentReward` and :class:`SeedReward` build a reward from a function of images, of clean latents, or of seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from pydantic import PositiveFloat
from torch import Tensor

import rnri.validation
from rnri.validation import Dtype, NonEmptyStr
from seedselect.features import ClipFeatures, view_features
from seedselect.losses import appearance_loss, semantic_loss
from seedselect.problem import Generation

Reward = Callable[[Generation], Tensor]
"""A function that returns the reward of each sample, ``[B]``; larger values are better."""


@dataclass(frozen=True)
class ImageReward:
    """Reward that applies ``function`` to the generated images ``[B,3,H,W]`` with values in [0, 1]."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, generation: Generation) -> Tensor:
        return self.function(generation.images)


@dataclass(frozen=True)
class LatentReward:
    """Reward that applies ``function`` to the generated clean latents ``[B,C,h,w]``."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, generation: Generation) -> Tensor:
        return self.function(generation.latents[-1])


@dataclass(frozen=True)
class SeedReward:
    """Reward that applies ``function`` to the seeds ``[B,C,h,w]``."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, generation: Generation) -> Tensor:
        return self.function(generation.seeds)


@dataclass(frozen=True)
class Negated:
    """Converts a penalty (smaller is better) to a reward (larger is better): returns ``-function(values)``.

    Up to a constant, ``SeedReward(Negated(nao.norm_penalty))`` is the regularizer of ReNO (Eyring et al. 2024).
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, values: Tensor) -> Tensor:
        return -self.function(values)


def semantic_reward(generation: Generation, step_weights: Sequence[float] = (1.0,), views: int = 1) -> Tensor:
    """Return minus the semantic loss of SeedSelect, ``[B]``, computed from the last ``len(step_weights)`` latents.

    With ``views`` above 1, the loss uses the mean features of several augmented views of each image
    (:func:`~seedselect.features.view_features`).

    Raises:
        ValueError: ``Targets.features`` is missing.
    """
    latents = generation.latents[-len(step_weights) :]
    target = generation.targets.features
    if target is None:
        raise ValueError(
            "the semantic loss needs Targets(features=...): pass the mean feature of the references, or set "
            "SeedSelect(rewards=...) to rewards without semantic_reward."
        )
    features = partial(view_features, generation.features, views=views)
    return -semantic_loss(latents, target, step_weights, decode=generation.decode, features=features)


def appearance_reward(generation: Generation) -> Tensor:
    """Return minus the appearance loss of SeedSelect, ``[B]``.

    Raises:
        ValueError: ``Targets.latent`` is missing.
    """
    target = generation.targets.latent
    if target is None:
        raise ValueError(
            "the appearance loss needs Targets(latent=...): pass the mean latent of the references, or set "
            "SeedSelect(rewards=...) to rewards without appearance_reward."
        )
    return -appearance_loss(generation.latents[-1], target)


def novelty_reward(generation: Generation, margin: PositiveFloat) -> Tensor:
    """Return a reward ``[B]`` that repels the image from its nearest reference.

    The reward is ``min(distance - margin, 0)``, where ``distance`` is the mean squared difference between the clean
    latents of the image and of the nearest reference. If the distance is at least ``margin``, the reward and its
    gradient are 0.

    Args:
        generation: the generated images; ``generation.targets.references`` must be set.
        margin: smallest distance between the image and its nearest reference at which the reward is 0.

    Raises:
        ValueError: ``Targets.references`` is missing.
    """
    references = generation.targets.references
    if references is None:
        raise ValueError(
            "novelty_reward needs Targets(references=...): pass the latents of the reference images of each sample."
        )
    distances = (generation.latents[-1][:, None] - references).square().flatten(2).mean(2)
    return (distances.amin(1) - margin).clamp_max(0)


def text_similarity(generation: Generation) -> Tensor:
    """Return the cosine similarity in [-1, 1] of image features and prompt features, ``[B]``.

    The text similarity needs no reference images.

    Raises:
        ValueError: ``Targets.text`` is missing.
    """
    if generation.targets.text is None:
        raise ValueError(
            "text_similarity needs Targets(text=...): pass the features of the prompts, such as clip.text(prompts)."
        )
    return (generation.features(generation.images) * generation.targets.text).sum(-1)


@rnri.validation.dataclass(frozen=True)
class ClipReward:
    """Cosine similarity of images and prompts under a CLIP-like reward model, such as PickScore or HPSv2.

    ``transformers`` must be able to load the reward model as a CLIP model. The reward model is loaded on the first
    call.

    Args:
        path: local folder or Hub id of the reward model.
        dtype: dtype of the reward model's weights.
        local_files_only: if True, load the reward model only from local files, without a download.
    """

    path: NonEmptyStr
    dtype: Dtype = "float32"
    local_files_only: bool = False

    def __call__(self, generation: Generation) -> Tensor:
        prompts = generation.targets.prompts
        if prompts is None:
            raise ValueError(f"ClipReward({self.path}) needs Targets(prompts=...): pass one prompt per sample.")
        model = _load_clip(self.path, self.dtype, self.local_files_only, str(generation.seeds.device))
        return (model(generation.images) * model.text(prompts)).sum(-1)


@cache
def _load_clip(path: str, dtype: Dtype, local_files_only: bool, device: str) -> ClipFeatures:
    return ClipFeatures.from_pretrained(path, device=device, dtype=dtype, local_files_only=local_files_only)
