"""Group objectives: rewards of the *set* of images that a user generates from one prompt, such as their diversity.

Letters in tensor shapes: G groups of n images each, ``B = G n`` samples. The n samples of a group are consecutive. The
results of a group do not depend on the other groups of a batch.
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
"""Smallest eigenvalue in the gradient of the Vendi score, whose slope at 0 is infinite."""


def pairwise_distance(features: Tensor) -> Tensor:
    """Return the mean cosine distance, in [0, 2], of the pairs of each set of n features ``[...,n,D]``.

    The result has the shape ``[...]`` and dtype float64. A single outlier can raise this mean while all other features
    of the set are equal; :func:`vendi_score` and :func:`dpp_log_det` are less sensitive to outliers.
    """
    similarity = _cosine_similarity(features)
    count = similarity.shape[-1]
    off_diagonal = similarity.sum((-2, -1)) - similarity.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 1 - off_diagonal / (count * (count - 1))


def vendi_score(features: Tensor) -> Tensor:
    """Return the Vendi score (Friedman and Dieng 2023), in [1, n], of each set of n features ``[...,n,D]``.

    The score is the effective number of different features: 1 for equal features, n for orthogonal features. It is the
    exponential of the entropy of the eigenvalues of ``K / n``, where K is the matrix of the cosine similarities. The
    result has the shape ``[...]`` and dtype float64; it is NaN for a set with NaN or infinity.
    """
    similarity = _cosine_similarity(features)
    finite = similarity.isfinite().all(-1).all(-1)
    identity = torch.eye(similarity.shape[-1], dtype=similarity.dtype)
    usable = torch.where(finite[..., None, None], similarity, identity)  # eigvalsh raises an error for NaN
    eigenvalues = torch.linalg.eigvalsh(usable / similarity.shape[-1]).clamp_min(MIN_EIGENVALUE)
    return torch.where(finite, torch.special.entr(eigenvalues).sum(-1).exp(), torch.nan)


def dpp_log_det(features: Tensor, jitter: OpenUnitInterval = 1e-3) -> Tensor:
    """Return the log-determinant, <= 0, of the cosine similarities K of each set of n features ``[...,n,D]``.

    The log-determinant is the unnormalized log-probability of a determinantal point process (DPP). It is 0 for
    orthogonal features. The matrix is ``(1 - jitter) K + jitter I``, so that the result is finite for equal features.
    The result has the shape ``[...]`` and dtype float64.
    """
    similarity = _cosine_similarity(features)
    identity = torch.eye(similarity.shape[-1], dtype=similarity.dtype)
    return torch.linalg.slogdet((1 - jitter) * similarity + jitter * identity).logabsdet


def _cosine_similarity(features: Tensor) -> Tensor:
    """Return the matrices ``float64 [...,n,n]`` on the CPU, because some devices do not support float64."""
    unit = F.normalize(features.cpu().double(), dim=-1)
    return unit @ unit.mT


@dataclass(frozen=True)
class ImageDiversity:
    """Group reward: a measure of the features of each group's images.

    Args:
        measure: function from sets of features ``[...,n,D]`` to values ``[...]``: :func:`pairwise_distance`,
            :func:`vendi_score` or :func:`dpp_log_det`.
    """

    measure: Callable[[Tensor], Tensor]

    def features(self, generation: Generation) -> Tensor:
        """Return the features ``[B,D]`` of the images."""
        return generation.features(generation.images)

    def __call__(self, generation: Generation) -> Tensor:
        return self.measure(_grouped(self.features(generation), generation))


@dataclass(frozen=True)
class LatentDiversity:
    """Group reward: a measure of each group's clean latents, which needs neither a decoder nor an image encoder.

    Args:
        measure: function from sets of vectors ``[...,n,D]`` to values ``[...]``, see :class:`ImageDiversity`.
    """

    measure: Callable[[Tensor], Tensor]

    def features(self, generation: Generation) -> Tensor:
        """Return the latents as vectors ``[B,C h w]``."""
        return generation.latents[-1].flatten(1)

    def __call__(self, generation: Generation) -> Tensor:
        return self.measure(_grouped(self.features(generation), generation))


@dataclass(frozen=True)
class ContrastiveReward:
    """Group reward of Contrastive Noise Optimization (CNO, Kim et al. 2026, arXiv 2510.03813): negative InfoNCE loss.

    The reward repels the latents of a group from each other and attracts each latent to the latent of its initial seed.
    Latents are compared patch by patch: each latent is averaged over ``window`` x ``window`` patches, and patches at
    the same position are compared by their cosine similarity. In CNO the latents are one-step predictions of the clean
    latent from the seed, so :class:`~seedselect.problem.Problem` needs a ``trajectory`` that returns these predictions.

    The reward equals the loss in https://github.com/Jecstar66/CNO, commit b54588b, ``latent_diffusion_cno.py``, lines
    106 to 141, up to the sign and the constant 1e-8 in a denominator. The authors' script optimizes five seeds in three
    updates of Adam with the learning rate 0.01.

    Args:
        temperature: temperature of the similarities.
        attraction_temperature: factor gamma on the temperature of the attraction; None: ``1 / (temperature ln(n - 1) +
            1)``, the value of the paper for a group of n images. The authors' scripts use 1.
        window: number of patches per side. The authors' scripts use 16 for latents of 64 x 64.
    """

    temperature: PositiveFloat = 0.1
    attraction_temperature: PositiveFloat | None = None
    window: PositiveInt = 16

    def __call__(self, generation: Generation) -> Tensor:
        if generation.initial_latent is None:
            raise ValueError(
                "ContrastiveReward needs Generation(initial_latent=...), the latents of the initial seeds: use the "
                "reward in GroupSelect, which passes them."
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
        """Return the patches of the latents ``[B,C,h,w]`` as unit vectors over the channels, float64 ``[G,n,C,P]``."""
        pooled = F.adaptive_avg_pool2d(latents.cpu().double(), self.window)
        return F.normalize(_grouped(pooled.flatten(2), generation), dim=2)


def _grouped(values: Tensor, generation: Generation) -> Tensor:
    """Return values ``[B,...]`` as ``[G,n,...]``."""
    return values.unflatten(0, (-1, generation.group_size))


@dataclass(frozen=True)
class GroupSelect(SeedSelect):
    """SeedSelect for groups of seeds: optimizes the seeds of a prompt jointly for rewards of the set of their images.

    The seeds of a group stop together, and the returned seeds of a group belong to the same iteration. The entries of a
    :class:`~seedselect.history.Selection` are per sample; the samples of a group have equal losses. The arguments that
    are not described here have the same meaning as in :class:`~seedselect.select.SeedSelect`.

    Args:
        group_size: number n of consecutive seeds that form a group, at least 2.
        group_rewards: pairs ``(group reward, weight)``, such as ``(ImageDiversity(vendi_score), 1.0)``.
        rewards: pairs ``(reward, weight)`` of single images (:mod:`seedselect.rewards`), averaged over a group.
        quality: reward of single images that must not fall, such as ``seedselect.text_similarity``; None: no limit.
        max_quality_loss: the optimization of a group stops when the mean ``quality`` of its images is more than
            ``max_quality_loss`` below the value of the initial seeds. Seeds below this limit are never returned.
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
        """Return the loss ``[G]`` and the criterion ``[G]`` of each group."""
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
