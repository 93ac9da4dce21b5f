"""The class ``Arm``, one of the pipelines that an experiment compares, and functions that compute its initial seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from itertools import combinations

import torch
from pydantic import PositiveInt
from torch import Tensor

from experiments.planning.cost import BACKWARD_COST, Cost, batch_multiplier
from nao import centroid_seeds, slerp
from rnri import Inverter
from rnri.models.sampling import steps_for_strength
from rnri.validation import OMIT_DEFAULT, ConfigError, GuidanceScale, HalfOpenUnitInterval, UnitInterval, dataclass
from seedselect import BestOf, LocalSearch, SeedSelect
from seedselect.search import perturb


@dataclass(frozen=True)
class Arm:
    """An arm: one of the compared pipelines that generate images of a concept.

    Args:
        guidance: guidance scale of inversion, optimization and sampling; 1 means no guidance.
        sampling_guidance: guidance scale of optimization and sampling, if it differs from the guidance scale of the
            inversion. An inverted seed regenerates its image only if both guidance scales are equal. None: use
            ``guidance`` for optimization and sampling, too.
        inverter: inversion method for the reference images; None if the seeds are standard normal noise.
        seed_init: function that computes n initial seeds ``[G, n, C, h, w]`` for each of G concepts. The arguments of
            ``seed_init`` are the inverted seeds ``[G, R, C, h, w]`` of the R reference images of each concept, and n.
        select: function that optimizes the initial seeds, or that selects the seed with the lowest loss among several
            initial seeds for each image. None: the images are sampled from the initial seeds without optimization.
        gradient_steps: number of sampling steps, counted from the last step, through which the optimization
            backpropagates (:func:`rnri.models.sampling.trajectory`); None: all sampling steps.
        strength: SDEdit (:class:`rnri.methods.sdedit.SDEdit`) with random seeds: the noise of the seed is added to the
            latent of a reference image, and only this fraction of the sampling steps, in (0, 1], is executed. Sample k
            starts from reference ``k % R``. None: sample from the seeds with all steps.
    """

    guidance: GuidanceScale
    inverter: Inverter | None = None
    seed_init: Callable[[Tensor, int], Tensor] | None = None
    select: SeedSelect | BestOf | LocalSearch | None = None
    gradient_steps: PositiveInt | None = None
    sampling_guidance: GuidanceScale | None = None
    strength: HalfOpenUnitInterval | None = field(default=None, metadata=OMIT_DEFAULT)

    def __post_init__(self) -> None:
        if (self.inverter is None) != (self.seed_init is None):
            raise ValueError("an arm has only one of inverter and seed_init: set both, or set both to null.")
        if self.inverter is not None and not self.inverter.seed_only:
            raise ConfigError(
                "inverter",
                f"{type(self.inverter).__name__} cannot reconstruct an image from the seed alone, but NAO and "
                "SeedSelect use only seeds: choose a seed-only method, such as accelerated.",
            )
        if self.strength is not None and self.inverter is not None:
            raise ConfigError("strength", "must be null with an inverter, because SDEdit samples from random seeds.")

    @property
    def guidance_of_sampling(self) -> float:
        """Guidance scale of optimization and sampling."""
        return self.guidance if self.sampling_guidance is None else self.sampling_guidance

    @property
    def candidates(self) -> int:
        """Number of initial seeds per generated image."""
        return self.select.candidates if self.select else 1

    def sampled_steps(self, steps: int) -> int:
        """Return how many of the ``steps`` steps of the schedule are executed; these are the last steps."""
        return steps if self.strength is None else steps_for_strength(self.strength, steps)

    def _differentiated_steps(self, sampled: int) -> int:
        return min(self.gradient_steps or sampled, sampled)

    def nfe(self, steps: int, forwards: Tensor, backwards: Tensor) -> Tensor:
        """Return the number of network evaluations per image.

        A backward pass counts as two evaluations. With classifier-free guidance, a network call with two prompts counts
        as two evaluations.

        Args:
            steps: number of steps of the schedule.
            forwards: number of times that each image was sampled.
            backwards: number of backward passes through the sampling of each image.
        """
        sampled = self.sampled_steps(steps)
        per_row = sampled * forwards + BACKWARD_COST * self._differentiated_steps(sampled) * backwards
        return batch_multiplier(self.guidance_of_sampling) * per_row

    def cost(self, steps: int, samples: int, references: int) -> Cost:
        """Estimate the cost of inverting, optimizing and sampling one concept, if no seed optimization stops early."""
        inversion = references * steps * self.inverter.nfe_per_step if self.inverter is not None else 0.0
        return Cost(batch_multiplier(self.guidance) * inversion) + self.sampling_cost(steps, samples)

    def sampling_cost(self, steps: int, samples: int, *, gradient_checkpointing: bool = False) -> Cost:
        """Return the cost of optimizing and sampling the seeds of one concept, if no seed optimization stops early."""
        sampled = self.sampled_steps(steps)
        cost = Cost(sampled, 1)
        if self.select is not None:
            latents = len(self.select.step_weights)  # number of decoded latents per full sampling
            forwards, backwards = self.select.call_counts
            derived = self._differentiated_steps(sampled)
            recomputed = gradient_checkpointing * backwards
            cost = (
                Cost(0, 1 + self.select.previews)
                + Cost(sampled, latents).times(forwards)
                + Cost(0, 0, derived, latents).times(backwards)
                + Cost(recomputed * derived, recomputed * latents)
            )
        rows = batch_multiplier(self.guidance_of_sampling)
        return Cost(rows * cost.forward, cost.decodings, rows * cost.backward, cost.decodings_backward).times(samples)


def inverted_seeds(seeds: Tensor, count: PositiveInt) -> Tensor:
    """Return the inverted seeds of the first ``count`` reference images of each concept, ``[G, count, C, h, w]``.

    Args:
        seeds: the inverted seeds of R reference images of each of G concepts, ``[G, R, C, h, w]``.
        count: number of seeds per concept.

    Raises:
        ValueError: ``count`` is larger than the number R of reference images.
    """
    if count > seeds.shape[1]:
        raise ValueError(
            f"{count} initial seeds need {count} reference images, but there are only {seeds.shape[1]}: increase "
            "task.references, decrease task.samples, or use an arm with NAO."
        )
    return seeds[:, :count]


def between_references(seeds: Tensor, count: PositiveInt, *, spread: UnitInterval) -> Tensor:
    """Return seeds half-way between the seeds of two reference images, mixed with noise, ``[G, count, C, h, w]``.

    Seed k is computed from the k-th pair of reference images; if there are fewer than ``count`` pairs, the pairs
    repeat. The middle of a pair is the midpoint of the great circle between the two seeds
    (:func:`~nao.baselines.slerp`). If a concept has only one reference image, the seed of this image replaces the
    middle of a pair.

    Args:
        seeds: the inverted seeds of R reference images of each of G concepts, ``[G, R, C, h, w]``.
        count: number of seeds per concept.
        spread: weight of the noise in [0, 1] (:func:`seedselect.search.perturb`); 0 adds no noise.

    Raises:
        ValueError: ``spread`` is 0, and ``count`` is larger than the number of pairs.
    """
    pairs = list(combinations(range(seeds.shape[1]), 2)) or [(0, 0)]
    if spread == 0 and count > len(pairs):
        raise ValueError(
            f"spread=0 gives one seed per pair of references ({len(pairs)} for task.references={seeds.shape[1]}), but "
            f"the arm needs {count} seeds: set spread above 0, increase task.references, or decrease task.samples."
        )
    middles = torch.stack([torch.stack([slerp(group[i], group[j], 3)[1] for i, j in pairs]) for group in seeds])
    return torch.stack([_perturbed(middles[:, k % len(pairs)], k, 0, spread) for k in range(count)], 1)


def near_references(
    seeds: Tensor, count: PositiveInt, *, spread: HalfOpenUnitInterval, include_references: bool = True
) -> Tensor:
    """Return copies of the seeds of the reference images, mixed with noise, ``[G, count, C, h, w]``.

    Args:
        seeds: the inverted seeds of R reference images of each of G concepts, ``[G, R, C, h, w]``.
        count: number of seeds per concept.
        spread: weight of the noise (:func:`seedselect.search.perturb`).
        include_references: whether the first R seeds are the seeds of the reference images without noise.
    """
    references = seeds.shape[1]
    exact = references if include_references else 0
    return torch.stack([_perturbed(seeds[:, k % references], k, exact, spread) for k in range(count)], 1)


def around_centroid(
    seeds: Tensor, count: PositiveInt, *, spread: HalfOpenUnitInterval, include_centroid: bool = True
) -> Tensor:
    """Return copies of NAO's centroid of the seeds of each concept, mixed with noise, ``[G, count, C, h, w]``.

    Args:
        seeds: the inverted seeds of R reference images of each of G concepts, ``[G, R, C, h, w]``.
        count: number of seeds per concept.
        spread: weight of the noise (:func:`seedselect.search.perturb`).
        include_centroid: whether the first seed is the centroid without noise.
    """
    centroid = centroid_seeds(seeds, 1)[:, 0]
    return torch.stack([_perturbed(centroid, k, int(include_centroid), spread) for k in range(count)], 1)


def _perturbed(seeds: Tensor, k: int, exact: int, spread: float) -> Tensor:
    """Return ``seeds`` unchanged if ``k < exact``, else mixed with noise that depends only on the index ``k``."""
    if k < exact:
        return seeds
    noise = torch.randn(seeds.shape[1:], generator=torch.Generator().manual_seed(k))
    return perturb(seeds, noise.expand(seeds.shape), spread)
