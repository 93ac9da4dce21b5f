"""Gradient-free methods that minimize the loss of SeedSelect: a choice among N seeds, and a local search.

:class:`BestOf` and :class:`LocalSearch` are called with the same arguments as :class:`seedselect.select.SeedSelect`, so
that the three methods can be compared at the same number of network evaluations (NFE).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, replace
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from rnri.validation import OMIT_DEFAULT, ConfigError, HalfOpenUnitInterval, OpenUnitInterval, dataclass
from seedselect.history import BestSeedTracker, Selection
from seedselect.problem import Generation, Problem
from seedselect.select import OnIteration, SeedSelect, no_callback


@dataclass(frozen=True)
class BestOf:
    """Choose the seed with the smallest loss among several seeds per sample, then optionally optimize this seed.

    With ``preview``, the candidates are compared early during sampling, so that more candidates can be compared with
    the same number of network evaluations.

    Args:
        loss: the ``SeedSelect`` object whose loss ranks the seeds. If ``best_by`` of this object is ``rewards``, the
            loss without the penalty ranks the seeds. Other settings of the ``SeedSelect`` object, such as
            ``optimizer``, have no effect.
        candidates: number of seeds per sample.
        refine: the ``SeedSelect`` object that optimizes the chosen seed; None returns the chosen seed unchanged.
        preview: fraction of the sampling steps, in (0, 1), after which the candidates are compared, rounded to full
            steps. The loss of a candidate is computed from the network's estimate of the clean latent, and only the
            candidate with the smallest loss is sampled to the end. With N candidates and the fraction ``p = preview``,
            the candidates need as many network evaluations as ``p N + 1 - p`` candidates without previews. If
            ``preview`` is None, every candidate is sampled to the end.

    Raises:
        ConfigError: ``preview`` is set, and ``loss`` has more than one step weight. A preview is a single latent, which
            has a single step weight.
    """

    loss: SeedSelect
    candidates: PositiveInt
    refine: SeedSelect | None = None
    preview: OpenUnitInterval | None = field(default=None, metadata=OMIT_DEFAULT)

    def __post_init__(self) -> None:
        if self.preview is not None and len(self.loss.step_weights) > 1:
            raise ConfigError(
                "loss.step_weights",
                f"must contain a single weight if preview is set, got {len(self.loss.step_weights)} weights; set one "
                "weight, or set preview to null.",
            )

    @property
    def step_weights(self) -> tuple[float, ...]:
        """Weights, in the semantic loss, of the latents after the last sampling steps.

        The last weight is for the clean latent. If ``refine`` has more step weights than ``loss``, the weights of
        ``refine`` are returned, because the sampler has to return all latents that ``loss`` and ``refine`` need.
        """
        weights = tuple(self.loss.step_weights)
        if self.refine is not None and len(self.refine.step_weights) > len(weights):
            return tuple(self.refine.step_weights)
        return weights

    @property
    def previews(self) -> int:
        """Number of previews that are decoded per sample."""
        return self.candidates if self.preview else 0

    @property
    def call_counts(self) -> tuple[float, int]:
        """Maximum number of forward and backward passes through the sampler per sample."""
        forwards, backwards = self.refine.call_counts if self.refine else (0, 0)
        if self.preview is None:
            return self.candidates + forwards, backwards
        return self.preview * self.candidates + 1 - self.preview + forwards, backwards

    def with_steps(self, steps: int) -> BestOf:
        """Return a copy for samplers with ``steps`` steps, see :meth:`SeedSelect.with_steps`.

        ``preview`` is rounded to a fraction of ``steps``. A sampler with one step has no preview.
        """
        refine = self.refine.with_steps(steps) if self.refine else None
        preview = None
        if self.preview is not None and steps > 1:
            preview = _preview_steps(self.preview, steps) / steps
        return BestOf(self.loss.with_steps(steps), self.candidates, refine, preview)

    def __call__(
        self,
        seeds: Tensor,
        problem: Problem,
        *,
        on_iteration: OnIteration = no_callback,
        noise: Callable[[int], Tensor] | None = None,
    ) -> Selection:
        """Choose, for each of B samples, the seed with the smallest loss among the sample's N candidates.

        ``seeds [B N,C,h,w]`` are the candidates; the N candidates of a sample are consecutive.
        ``on_iteration(k, loss [B])`` is called for k = 0 to N - 1 with the losses of the k-th candidate of every
        sample.
        """
        if len(seeds) % self.candidates:
            raise ValueError(
                f"seeds: the number of seeds must be a multiple of candidates={self.candidates}, got {len(seeds)}; "
                "pass all candidates of every sample."
            )
        problem.check(seeds, len(seeds) // self.candidates)
        candidates = seeds.detach().unflatten(0, (-1, self.candidates))
        if self.preview is None:
            best = self._select(candidates, problem, on_iteration)
        else:
            best = self._select_by_previews(self.preview, candidates, problem, on_iteration)
        if self.refine is None:
            return best
        return best.merge(self.refine(best.seed, problem, on_iteration=on_iteration, noise=noise))

    def _select(self, candidates: Tensor, problem: Problem, on_iteration: OnIteration) -> Selection:
        """Return, for each sample, the seed with the smallest loss among its ``candidates [B,N,C,h,w]``."""
        tracker = BestSeedTracker(self.loss.grouped(candidates[:, 0].clone()), self.candidates - 1)
        for k in range(self.candidates):
            loss, _ = _evaluate(self.loss, problem, candidates[:, k], tracker, k=k)
            on_iteration(k, loss)
        return tracker.selection().ungroup()

    @torch.no_grad()
    def _select_by_previews(
        self, preview: float, candidates: Tensor, problem: Problem, on_iteration: OnIteration
    ) -> Selection:
        """Return, for each sample, the seed whose preview has the smallest loss among its ``candidates [B,N,C,h,w]``.

        ``Selection.trace`` contains the losses of the previews, and ``Selection.loss`` is the loss of the final image.

        Raises:
            ValueError: ``problem.preview`` is None, or the sampler has only one step.
        """
        sampler = problem.preview
        if sampler is None:
            raise ValueError("BestOf with a preview needs Problem(preview=...): pass a Preview of the sampler.")
        if sampler.steps < 2:
            raise ValueError("a sampler with one step has no preview: set BestOf(preview=None), or use more steps.")
        steps = _preview_steps(preview, sampler.steps)
        rows = torch.arange(len(candidates), device=candidates.device)
        latent, clean = sampler.start(candidates[:, 0], rows, steps)
        tracker = BestSeedTracker(self.loss.grouped(candidates[:, 0].to(latent.dtype)), self.candidates - 1)
        for k in range(self.candidates):
            if k > 0:
                latent, clean = sampler.start(candidates[:, k], rows, steps)
            generation = problem.generation(candidates[:, k], [clean], rows)
            on_iteration(k, _record(self.loss, generation, latent, tracker, k=k))
        best = tracker.selection().ungroup()
        seed = best.seed.to(candidates.dtype)
        latents = sampler.finish(best.latent, rows, steps)
        loss, _ = _loss_and_criterion(self.loss, problem.generation(seed, latents, rows))
        loss = loss.cpu().double().repeat_interleave(self.loss.group_size)
        forwards = (best.forwards * steps + sampler.steps - steps).double() / sampler.steps
        return replace(best, seed=seed, latent=latents[-1], loss=loss, forwards=forwards)


@dataclass(frozen=True)
class LocalSearch:
    """Search without gradients: each round replaces the seed by the neighbor with the smallest loss.

    If no neighbor has a smaller loss than the seed, the seed does not change. A neighbor of a seed ``z`` is ``sqrt(1 -
    spread²) z + spread |z| e / |e|``, rescaled to the norm of ``z``. Here ``e`` is Gaussian noise, and ``|z|`` and
    ``|e|`` are Euclidean norms.

    Args:
        loss: the ``SeedSelect`` object whose loss ranks the seeds. If ``best_by`` of this object is ``rewards``, the
            loss without the penalty ranks the seeds. Other settings of the ``SeedSelect`` object, such as
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
    previews: ClassVar[int] = 0

    @property
    def step_weights(self) -> tuple[float, ...]:
        """Weights, in the semantic loss, of the latents after the last sampling steps.

        The last weight is for the clean latent.
        """
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
        """Search around ``seeds [B,C,h,w]``, and return the seed with the smallest loss for each sample.

        ``noise(k)`` returns the noise ``[B,C,h,w]`` of the k-th neighbor, k >= 1. ``on_iteration(k, loss [B])`` is
        called with the losses of the k-th neighbors of all samples, or of the initial seeds for k = 0.
        """
        problem.check(seeds, len(seeds))
        forwards, _ = self.call_counts
        tracker = BestSeedTracker(self.loss.grouped(seeds.detach().clone()), forwards - 1)
        loss, initial = _evaluate(self.loss, problem, tracker.seed.flatten(0, 1).clone(), tracker, k=0)
        on_iteration(0, loss)
        for start in range(1, forwards, self.neighbors):
            center = tracker.seed.flatten(0, 1).clone()
            for k in range(start, start + self.neighbors):
                neighbor = perturb(center, noise(k), self.spread)
                loss, _ = _evaluate(self.loss, problem, neighbor, tracker, k=k, initial_latent=initial)
                on_iteration(k, loss)
        return tracker.selection().ungroup()


def perturb(seeds: Tensor, noise: Tensor, spread: float) -> Tensor:
    """Mix seeds ``[...,C,h,w]`` with ``noise`` of weight ``spread`` in [0, 1]; the norms of the seeds do not change."""
    z, e = seeds.cpu().double(), noise.cpu().double()
    norm = z.flatten(-3).norm(dim=-1)[..., None, None, None]
    mixed = (1 - spread**2) ** 0.5 * z + spread * norm * e / e.flatten(-3).norm(dim=-1)[..., None, None, None]
    mixed = mixed * norm / mixed.flatten(-3).norm(dim=-1)[..., None, None, None]
    return mixed.to(seeds.dtype).to(seeds.device)


def _preview_steps(preview: float, steps: int) -> int:
    """Return ``preview * steps``, rounded to an integer from 1 to ``steps - 1``."""
    return min(max(round(preview * steps), 1), steps - 1)


@torch.no_grad()
def _evaluate(
    objective: SeedSelect,
    problem: Problem,
    seeds: Tensor,
    tracker: BestSeedTracker,
    *,
    k: int,
    initial_latent: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generate images from ``seeds [B,C,h,w]`` (the k-th candidate of each sample), and record the losses.

    ``initial_latent [B,C,h,w]`` are the clean latents of the initial seeds; None means that ``seeds`` are the initial
    seeds.

    Returns:
        The losses ``[B]`` and the clean latents ``[B,C,h,w]`` of ``seeds``.
    """
    generation = problem.generate(seeds, torch.arange(len(seeds)))
    latent = generation.latents[-1]
    return _record(objective, generation, latent, tracker, k=k, initial_latent=initial_latent), latent


def _record(
    objective: SeedSelect,
    generation: Generation,
    latent: Tensor,
    tracker: BestSeedTracker,
    *,
    k: int,
    initial_latent: Tensor | None = None,
) -> Tensor:
    """Record and return the losses ``[B]`` of ``generation``, which contains the k-th candidate of each sample.

    If the criterion of a candidate is the smallest so far, the tracker stores the candidate's latent from
    ``latent [B,C,h,w]``.
    """
    loss, criterion = _loss_and_criterion(objective, generation, initial_latent)
    rows = torch.arange(len(loss))
    seeds = objective.grouped(generation.seeds)
    tracker.record(k, rows, seeds, objective.grouped(latent), loss=loss, criterion=criterion)
    return loss.repeat_interleave(objective.group_size)


def _loss_and_criterion(
    objective: SeedSelect, generation: Generation, initial_latent: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the losses and the criteria of G groups, each ``[G]``, see :meth:`SeedSelect.loss_and_criterion`."""
    initial = generation.latents[-1] if initial_latent is None else initial_latent
    return objective.loss_and_criterion(replace(generation, group_size=objective.group_size, initial_latent=initial))
