"""Rewards of a *group*, the set of images that a user generates from one prompt, for example the diversity of the set.

Letters in tensor shapes: G groups of n images each, ``B = G n`` samples. The n samples of a group are consecutive in
the batch. The result of a group does not depend on the other groups of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import MinLen
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from rnri.validation import IntAtLeast2, OpenUnitInterval, dataclass
from seedselect.history import BestSeedTracker
from seedselect.problem import Generation
from seedselect.rewards import Reward
from seedselect.select import SeedSelect, check_pairs

GroupReward = Callable[[Generation], Tensor]
"""A function that returns the reward of each group of images, ``[G]``; larger values are better."""

MIN_EIGENVALUE = 1e-12
"""Minimum eigenvalue in the Vendi score.

Smaller eigenvalues are replaced by the minimum, because the gradient of the entropy is infinite at eigenvalue 0.
"""


def pairwise_distance(features: Tensor) -> Tensor:
    """Return the mean cosine distance, in [0, 2], over all pairs of features in each set ``[...,n,D]`` of n features.

    A larger distance means more diverse features. The result has the shape ``[...]`` and dtype float64. A single
    outlier can raise the mean distance even if all other features of the set are equal. :func:`vendi_score` and
    :func:`dpp_log_det` are less sensitive to outliers.
    """
    similarity = _cosine_similarity(features)
    count = similarity.shape[-1]
    if count < 2:
        raise ValueError(f"features: a pairwise distance needs at least two features per set, got {count}.")
    off_diagonal = similarity.sum((-2, -1)) - similarity.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 1 - off_diagonal / (count * (count - 1))


def vendi_score(features: Tensor) -> Tensor:
    """Return the Vendi score (Friedman and Dieng 2023), in [1, n], of each set ``[...,n,D]`` of n features.

    The Vendi score is the effective number of different features: 1 if all features are equal, and n if all features
    are orthogonal to each other. The score is the exponential of the entropy of the eigenvalues of ``K / n``, where K
    is the matrix of the cosine similarities. The result has the shape ``[...]`` and dtype float64. The score is NaN if
    a feature of the set is not finite.
    """
    similarity = _cosine_similarity(features)
    finite = similarity.isfinite().all(-1).all(-1)
    identity = torch.eye(similarity.shape[-1], dtype=similarity.dtype)
    usable = torch.where(finite[..., None, None], similarity, identity)  # because eigvalsh raises an error for NaN
    eigenvalues = torch.linalg.eigvalsh(usable / similarity.shape[-1]).clamp_min(MIN_EIGENVALUE)
    return torch.where(finite, torch.special.entr(eigenvalues).sum(-1).exp(), torch.nan)


def dpp_log_det(features: Tensor, jitter: OpenUnitInterval = 1e-3) -> Tensor:
    """Return the log-determinant, <= 0, of the matrix K of cosine similarities of each set ``[...,n,D]`` of n features.

    The log-determinant is the unnormalized log-probability of a determinantal point process (DPP). It is larger for
    more diverse features, and 0 for orthogonal features. K is replaced by ``(1 - jitter) K + jitter I``, so that the
    log-determinant is finite for equal features. The returned tensor has the shape ``[...]`` and dtype float64.
    """
    if not 0 < jitter < 1:
        raise ValueError(f"jitter: must be above 0 and below 1, got {jitter}.")
    similarity = _cosine_similarity(features)
    identity = torch.eye(similarity.shape[-1], dtype=similarity.dtype)
    return torch.linalg.slogdet((1 - jitter) * similarity + jitter * identity).logabsdet


def _cosine_similarity(features: Tensor) -> Tensor:
    """Return the matrices of cosine similarities, ``float64 [...,n,n]``.

    The matrices are on the CPU, because some devices do not support float64.
    """
    unit = F.normalize(features.cpu().double(), dim=-1)
    return unit @ unit.mT


@dataclass(frozen=True)
class ImageDiversity:
    """Group reward: the diversity of the image features of each group.

    Args:
        measure: function that returns the diversity ``[...]`` of sets of features ``[...,n,D]``:
            :func:`pairwise_distance`, :func:`vendi_score` or :func:`dpp_log_det`.
    """

    measure: Callable[[Tensor], Tensor]

    def features(self, generation: Generation) -> Tensor:
        """Return the features ``[B,D]`` of the images."""
        return generation.features(generation.images)

    def __call__(self, generation: Generation) -> Tensor:
        return self.measure(_grouped(self.features(generation), generation))


@dataclass(frozen=True)
class LatentDiversity:
    """Group reward: the diversity of the clean latents of each group, computed without a decoder and an image encoder.

    Args:
        measure: function that returns the diversity ``[...]`` of sets of vectors ``[...,n,D]``, see
            :class:`ImageDiversity`.
    """

    measure: Callable[[Tensor], Tensor]

    def features(self, generation: Generation) -> Tensor:
        """Return the clean latents as vectors ``[B,C h w]``."""
        return generation.latents[-1].flatten(1)

    def __call__(self, generation: Generation) -> Tensor:
        return self.measure(_grouped(self.features(generation), generation))


@dataclass(frozen=True)
class ContrastiveReward:
    """Group reward of Contrastive Noise Optimization (CNO, Kim et al. 2026, arXiv 2510.03813): minus the InfoNCE loss.

    The reward repels the latents of a group from each other and attracts each latent to the latent of its initial seed.
    Two latents are compared patch by patch. Each latent is reduced to ``window`` x ``window`` patches by average
    pooling, and patches at the same position are compared by their cosine similarity. CNO compares one-step
    predictions: the clean latents that the network predicts from the seeds in a single call. For CNO, the
    ``trajectory`` of :class:`~seedselect.problem.Problem` must return these one-step predictions.

    The reward equals the loss in https://github.com/Jecstar66/CNO, commit b54588b, ``latent_diffusion_cno.py``, lines
    106 to 141, except for the sign and a constant of 1e-8 in a denominator. The script of the CNO authors optimizes
    five seeds in three updates of Adam with the learning rate 0.01.

    Args:
        temperature: temperature of the InfoNCE loss, by which all similarities are divided.
        attraction_temperature: factor by which ``temperature`` is multiplied for the attraction to the initial latent,
            called gamma in the paper. None means the paper's value for a group of n images,
            ``1 / (temperature ln(n - 1) + 1)``. In the scripts of the CNO authors, ``attraction_temperature`` is 1.
        window: number of patches per side of a latent. In the scripts of the CNO authors, ``window`` is 16 for latents
            of 64 x 64.
    """

    temperature: PositiveFloat = 0.1
    attraction_temperature: PositiveFloat | None = None
    window: PositiveInt = 16

    def __call__(self, generation: Generation) -> Tensor:
        if generation.initial_latent is None:
            raise ValueError(
                "ContrastiveReward needs Generation(initial_latent=...), the latents of the initial seeds: use the "
                "reward in GroupSelect, which passes these latents."
            )
        current = self._patches(generation.latents[-1], generation)
        initial = self._patches(generation.initial_latent, generation)
        count = generation.group_size
        gamma = self.attraction_temperature or 1 / (self.temperature * math.log(count - 1) + 1)
        attraction = (current * initial).sum(2) / (gamma * self.temperature)  # [G,n,P]
        similarity = torch.einsum("gicp,gjcp->gpij", current, current) / self.temperature
        is_diagonal = torch.eye(count, dtype=torch.bool)
        logits = torch.where(is_diagonal, attraction.mT[..., None], similarity)  # [G,P,n,n]
        return (attraction.mT - logits.logsumexp(-1)).mean((1, 2))

    def _patches(self, latents: Tensor, generation: Generation) -> Tensor:
        """Return the patches of the latents ``[B,C,h,w]`` as unit vectors of C channels, float64 ``[G,n,C,P]``.

        The ``B = G n`` latents are G groups of n latents, and each latent has P patches.
        """
        pooled = F.adaptive_avg_pool2d(latents.cpu().double(), self.window)
        return F.normalize(_grouped(pooled.flatten(2), generation), dim=2)


def _grouped(values: Tensor, generation: Generation) -> Tensor:
    """Reshape values of samples ``[B,...]`` to values of G groups of n samples, ``[G,n,...]``."""
    return values.unflatten(0, (-1, generation.group_size))


@dataclass(frozen=True)
class GroupSelect(SeedSelect):
    """SeedSelect for groups of seeds: the n seeds of a prompt are optimized jointly for rewards of their n images.

    The optimization of all seeds of a group stops at the same iteration, and the returned seeds of a group belong to
    the same iteration. The result, a :class:`~seedselect.history.Selection`, contains one entry per sample. The loss of
    a group is entered for each of its samples. All other arguments are described in
    :class:`~seedselect.select.SeedSelect`.

    Args:
        group_size: number n of consecutive seeds that form a group, at least 2.
        group_rewards: pairs ``(group reward, weight)``, such as ``(ImageDiversity(vendi_score), 1.0)``.
        rewards: pairs ``(reward, weight)`` of rewards of single images (:mod:`seedselect.rewards`); the mean over a
            group is added to the group rewards.
        quality: reward of single images that must not decrease much, such as ``seedselect.text_similarity``. None means
            that the quality is not limited.
        max_quality_loss: the largest accepted decrease of the mean ``quality`` of a group, relative to the initial
            seeds. The optimization of a group stops when the decrease is larger, and seeds with a larger decrease are
            never returned.
    """

    group_size: IntAtLeast2 = 4
    group_rewards: Annotated[Sequence[Sequence[Any]], MinLen(1)] = ((ImageDiversity(vendi_score), 1.0),)
    rewards: Sequence[Sequence[Any]] = ()
    quality: Reward | None = None
    max_quality_loss: NonNegativeFloat = 0.01
    step_weights: Annotated[Sequence[NonNegativeFloat], MinLen(1)] = (1.0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pairs("group_rewards", self.group_rewards)

    def loss_and_criterion(self, generation: Generation) -> tuple[Tensor, Tensor]:
        """Return the loss ``[G]`` of each group, and the criterion ``[G]``, whose minimum selects the best seeds."""
        losses = [-(weight * reward(generation).cpu().double()) for reward, weight in self.group_rewards]
        losses += [-(weight * self._group_mean(reward(generation))) for reward, weight in self.rewards]
        without_penalty = sum(losses[1:], start=losses[0])
        loss = without_penalty + self.penalty_weight * self._group_mean(self.penalty(generation.seeds))
        return loss, loss if self.best_by == "loss" else without_penalty

    def quality_of(self, generation: Generation) -> Tensor | None:
        """Return the mean quality of each group's images, ``[G]``."""
        return None if self.quality is None else self._group_mean(self.quality(generation))

    def _group_mean(self, values: Tensor) -> Tensor:
        """Return the mean of values ``[B]`` over each group, float64 ``[G]`` on the CPU."""
        return values.cpu().double().unflatten(0, (-1, self.group_size)).mean(1)

    def _tracker(self, groups: Tensor) -> BestSeedTracker:
        return BestSeedTracker(
            groups, self.iterations, self.patience, self.improvement, max_quality_loss=self.max_quality_loss
        )
