"""An arm is one of the compared pipelines: guidance scale, inversion method, seed initialization and optimization."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import PositiveInt
from torch import Tensor

from experiments.planning.cost import BACKWARD_COST, Cost, batch_multiplier
from nao import centroid_seeds
from rnri import Inverter
from rnri.validation import ConfigError, GuidanceScale, HalfOpenUnitInterval, dataclass
from seedselect import BestOf, LocalSearch, SeedSelect
from seedselect.search import perturb


@dataclass(frozen=True)
class Arm:
    """An arm: one of the compared pipelines that generate images of a concept.

    Args:
        guidance: guidance scale of inversion, optimization and sampling; 1 means no guidance.
        inverter: inversion method for the reference images; None: the seeds are standard normal noise.
        seed_init: function that computes n initial seeds ``[G, n, C, h, w]`` for each of G concepts. The arguments of
            the function are the inverted seeds of the R reference images of each concept, ``[G, R, C, h, w]``, and n.
        select: function that optimizes the initial seeds, or that selects the best of several initial seeds for each
            image. None: the images are sampled from the initial seeds without optimization.
        gradient_steps: number of the last sampling steps through which the optimization backpropagates
            (:func:`rnri.models.sampling.trajectory`); None: the optimization backpropagates through all sampling steps.
    """

    guidance: GuidanceScale
    inverter: Inverter | None = None
    seed_init: Callable[[Tensor, int], Tensor] | None = None
    select: SeedSelect | BestOf | LocalSearch | None = None
    gradient_steps: PositiveInt | None = None

    def __post_init__(self) -> None:
        if (self.inverter is None) != (self.seed_init is None):
            raise ValueError("inverter and seed_init of an arm: set both, or set both to null.")
        if self.inverter is not None and not self.inverter.seed_only:
            raise ConfigError(
                "inverter",
                f"{type(self.inverter).__name__} needs more than the seed to reconstruct an image, but NAO and "
                "SeedSelect work on seeds: choose a seed-only method, such as accelerated.",
            )

    @property
    def candidates(self) -> int:
        """Number of initial seeds per generated image."""
        return self.select.candidates if self.select else 1

    def _differentiated_steps(self, steps: int) -> int:
        return min(self.gradient_steps or steps, steps)

    def nfe(self, steps: int, forwards: Tensor, backwards: Tensor) -> Tensor:
        """Return the number of network evaluations per image. A backward pass counts as two evaluations.

        Args:
            forwards, backwards: number of times that each image was sampled, and number of backward passes through the
                sampling of each image.
        """
        per_row = steps * forwards + BACKWARD_COST * self._differentiated_steps(steps) * backwards
        return batch_multiplier(self.guidance) * per_row

    def cost(self, steps: int, samples: int, references: int) -> Cost:
        """Estimate the cost of one concept, including its inversion, if no seed optimization stops early."""
        inversion = references * steps * self.inverter.nfe_per_step if self.inverter is not None else 0.0
        return Cost(batch_multiplier(self.guidance) * inversion) + self.sampling_cost(steps, samples)

    def sampling_cost(self, steps: int, samples: int, *, gradient_checkpointing: bool = False) -> Cost:
        """Return the cost of optimizing and sampling the seeds of one concept, if no seed optimization stops early."""
        cost = Cost(steps, 1)
        if self.select is not None:
            latents = len(self.select.step_weights)  # number of decoded latents per iteration of SeedSelect
            forwards, backwards = self.select.call_counts
            derived = self._differentiated_steps(steps)
            recomputed = gradient_checkpointing * backwards
            cost = (
                Cost(0, 1)
                + Cost(steps, latents).times(forwards)
                + Cost(0, 0, derived, latents).times(backwards)
                + Cost(recomputed * derived, recomputed * latents)
            )
        rows = batch_multiplier(self.guidance)
        return Cost(rows * cost.forward, cost.decodings, rows * cost.backward, cost.decodings_backward).times(samples)


def inverted_seeds(seeds: Tensor, count: PositiveInt) -> Tensor:
    """Return the seeds of the first ``count`` references of each concept, ``[G, count, C, h, w]``.

    This function is the ``seed_init`` of arms without NAO. ``seeds`` are the inverted seeds of R references of each of
    G concepts, ``[G, R, C, h, w]``.

    Raises:
        ValueError: ``count`` is larger than the number R of references.
    """
    if count > seeds.shape[1]:
        raise ValueError(
            f"{count} samples need as many references, but there are only {seeds.shape[1]}: increase task.references, "
            "decrease task.samples, or use an arm with NAO."
        )
    return seeds[:, :count]


def near_references(seeds: Tensor, count: PositiveInt, *, spread: HalfOpenUnitInterval) -> Tensor:
    """Return the seeds of the references, followed by perturbed copies of these seeds, ``[G, count, C, h, w]``.

    The function can be the ``seed_init`` of an arm. ``spread`` is the fraction of noise in a copy
    (:func:`seedselect.search.perturb`).
    """
    references = seeds.shape[1]
    return torch.stack([_perturbed(seeds[:, k % references], k, references, spread) for k in range(count)], 1)


def around_centroid(seeds: Tensor, count: PositiveInt, *, spread: HalfOpenUnitInterval) -> Tensor:
    """Return NAO's centroid of the seeds of each concept, followed by perturbed copies, ``[G, count, C, h, w]``.

    The function can be the ``seed_init`` of an arm. ``spread`` is the fraction of noise in a copy
    (:func:`seedselect.search.perturb`).
    """
    centroid = centroid_seeds(seeds, 1)[:, 0]
    return torch.stack([_perturbed(centroid, k, 1, spread) for k in range(count)], 1)


def _perturbed(seeds: Tensor, k: int, exact: int, spread: float) -> Tensor:
    """Return ``seeds`` if ``k < exact``; otherwise return a copy with added noise that depends only on ``k``."""
    if k < exact:
        return seeds
    noise = torch.randn(seeds.shape[1:], generator=torch.Generator().manual_seed(k))
    return perturb(seeds, noise.expand(seeds.shape), spread)
