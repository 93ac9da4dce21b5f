"""Gradient-free methods that minimize the loss of SeedSelect: best of N seeds, and a local search.

:class:`BestOf` and :class:`LocalSearch` are called with the same arguments as :class:`seedselect.select.SeedSelect`, so
that the three methods can be compared at an equal number of network evaluations (NFE).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from rnri.validation import HalfOpenUnitInterval, dataclass
from seedselect.history import BestSeedTracker, Selection
from seedselect.problem import Problem
from seedselect.select import OnIteration, SeedSelect, no_callback


@dataclass(frozen=True)
class BestOf:
    """Choose the seed with the smallest loss among several seeds per sample, then optionally optimize this seed.

    Args:
        loss: the ``SeedSelect`` object whose loss ranks the seeds. Other settings of the ``SeedSelect`` object, such as
            ``optimizer``, have no effect.
        candidates: number of seeds per sample.
        refine: the ``SeedSelect`` object that optimizes the best seed; None returns the best seed unchanged.
    """

    loss: SeedSelect
    candidates: PositiveInt
    refine: SeedSelect | None = None

    @property
    def step_weights(self) -> tuple[float, ...]:
        """Weights of the last latents of sampling in the semantic loss; the last weight is for the clean latent."""
        return tuple(self.loss.step_weights)

    @property
    def call_counts(self) -> tuple[int, int]:
        """Maximum number of forward and backward passes through the sampler per sample."""
        forwards, backwards = self.refine.call_counts if self.refine else (0, 0)
        return self.candidates + forwards, backwards

    def with_steps(self, steps: int) -> BestOf:
        """Return a copy for samplers with ``steps`` steps, see :meth:`SeedSelect.with_steps`."""
        refine = self.refine.with_steps(steps) if self.refine else None
        return BestOf(self.loss.with_steps(steps), self.candidates, refine)

    def __call__(
        self,
        seeds: Tensor,
        problem: Problem,
        *,
        on_iteration: OnIteration = no_callback,
        noise: Callable[[int], Tensor] | None = None,
    ) -> Selection:
        """Choose the best of N seeds per sample from ``seeds [B N,C,h,w]``; the N seeds of a sample are consecutive.

        ``on_iteration(k, loss [B])`` is called for k = 0 to N - 1 with the losses of the k-th seed of every sample.
        """
        best = self._select(seeds.detach().unflatten(0, (-1, self.candidates)), problem, on_iteration)
        if self.refine is None:
            return best
        return best.merge(self.refine(best.seed, problem, on_iteration=on_iteration, noise=noise))

    def _select(self, candidates: Tensor, problem: Problem, on_iteration: OnIteration) -> Selection:
        """Return the best seed of each sample from ``candidates [B,N,C,h,w]``."""
        tracker = BestSeedTracker(self.loss.grouped(candidates[:, 0].clone()), self.candidates - 1)
        for k in range(self.candidates):
            loss, _ = _evaluate(self.loss, problem, candidates[:, k], tracker, k)
            on_iteration(k, loss)
        return tracker.selection().ungroup()


@dataclass(frozen=True)
class LocalSearch:
    """Search without gradients: each round replaces the seed by its best neighbor if the neighbor has a smaller loss.

    A neighbor of a seed z is ``sqrt(1 - spread²) z + spread |z| e / |e|``, rescaled to the norm of z, where e is
    Gaussian noise.

    Args:
        loss: the ``SeedSelect`` object whose loss ranks the seeds. Other settings of the ``SeedSelect`` object, such as
            ``optimizer``, have no effect.
        rounds: number of search rounds.
        neighbors: number of neighbors that are evaluated per round.
        spread: weight of the noise in a neighbor, in (0, 1].
    """

    loss: SeedSelect
    rounds: PositiveInt
    neighbors: PositiveInt
    spread: HalfOpenUnitInterval = 0.3
    candidates: ClassVar[PositiveInt] = 1

    @property
    def step_weights(self) -> tuple[float, ...]:
        """Weights of the last latents of sampling in the semantic loss; the last weight is for the clean latent."""
        return tuple(self.loss.step_weights)

    @property
    def call_counts(self) -> tuple[int, int]:
        """Number of forward and backward passes through the sampler per sample."""
        return 1 + self.rounds * self.neighbors, 0

    def with_steps(self, steps: int) -> LocalSearch:
        """Return a copy for samplers with ``steps`` steps, see :meth:`SeedSelect.with_steps`."""
        return LocalSearch(self.loss.with_steps(steps), self.rounds, self.neighbors, self.spread)

    def __call__(
        self,
        seeds: Tensor,
        problem: Problem,
        *,
        noise: Callable[[int], Tensor],
        on_iteration: OnIteration = no_callback,
    ) -> Selection:
        """Search around ``seeds [B,C,h,w]`` and return the best seed of each sample.

        ``noise(k)`` returns the noise ``[B,C,h,w]`` of the k-th neighbor, k >= 1. ``on_iteration(k, loss [B])`` is
        called with the losses of the k-th neighbors of all samples, or of the initial seeds for k = 0.
        """
        forwards, _ = self.call_counts
        tracker = BestSeedTracker(self.loss.grouped(seeds.detach().clone()), forwards - 1)
        loss, initial = _evaluate(self.loss, problem, tracker.seed.flatten(0, 1).clone(), tracker, 0)
        on_iteration(0, loss)
        for start in range(1, forwards, self.neighbors):
            center = tracker.seed.flatten(0, 1).clone()
            for k in range(start, start + self.neighbors):
                neighbor = perturb(center, noise(k), self.spread)
                loss, _ = _evaluate(self.loss, problem, neighbor, tracker, k, initial_latent=initial)
                on_iteration(k, loss)
        return tracker.selection().ungroup()


def perturb(seeds: Tensor, noise: Tensor, spread: float) -> Tensor:
    """Mix seeds ``[...,C,h,w]`` with ``noise`` of weight ``spread`` in [0, 1]; the norms of the seeds do not change."""
    z, e = seeds.cpu().double(), noise.cpu().double()
    norm = z.flatten(-3).norm(dim=-1)[..., None, None, None]
    mixed = (1 - spread**2) ** 0.5 * z + spread * norm * e / e.flatten(-3).norm(dim=-1)[..., None, None, None]
    mixed = mixed * norm / mixed.flatten(-3).norm(dim=-1)[..., None, None, None]
    return mixed.to(seeds.dtype).to(seeds.device)


@torch.no_grad()
def _evaluate(
    objective: SeedSelect,
    problem: Problem,
    seeds: Tensor,
    tracker: BestSeedTracker,
    k: int,
    *,
    initial_latent: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute and record the losses of ``seeds [B,C,h,w]``, the k-th candidates of all samples.

    ``initial_latent [B,C,h,w]`` are the clean latents of the initial seeds; None means that ``seeds`` are the initial
    seeds.

    Returns:
        The losses ``[B]`` and the clean latents ``[B,C,h,w]`` of ``seeds``.
    """
    generation = problem.generate(seeds, torch.arange(len(seeds)))
    latent = generation.latents[-1]
    initial = latent if initial_latent is None else initial_latent
    generation = replace(generation, group_size=objective.group_size, initial_latent=initial)
    loss, criterion = objective.loss_and_criterion(generation)
    rows = torch.arange(len(loss))
    tracker.record(k, rows, objective.grouped(seeds), objective.grouped(latent), loss, criterion=criterion)
    return loss.repeat_interleave(objective.group_size), latent
