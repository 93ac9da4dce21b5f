"""The result of a seed optimization, and the class that records the result during the optimization."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """The selected seed of each of B samples, and the history of the optimization with at most K iterations.

    Attributes:
        seed: for each sample the seed with the smallest criterion, ``[B,C,h,w]``. The criterion is the loss or, if
            ``SeedSelect.best_by`` is ``"rewards"``, the loss without the penalty.
        latent: the clean latent generated from ``seed``, ``[B,C,h,w]``.
        loss: loss of ``seed``, float64 ``[B]``.
        initial_loss: loss of the initial seed, float64 ``[B]``.
        trace: loss after each update, float64 ``[K+1,B]``. Row 0 is the loss before the first update. If the
            optimization of a sample stops early, the remaining entries of the sample are NaN.
        iterations: number of updates of each sample's seed, int64 ``[B]``.
        converged: bool ``[B]``, whether the optimization of a sample stopped because its loss hardly decreased.
        seconds: wall-clock time of each sample's optimization in seconds, float64 ``[B]``. The time of an iteration is
            divided equally among the samples of the iteration.
        forwards: number of forward passes through the sampler for each sample, int64 ``[B]``. With ``BestOf.preview``,
            the counts are float64, because a preview after k of T steps counts as k / T.
        backwards: number of backward passes through the sampler for each sample, int64 ``[B]``.
    """

    seed: Tensor
    latent: Tensor
    loss: Tensor
    initial_loss: Tensor
    trace: Tensor
    iterations: Tensor
    converged: Tensor
    seconds: Tensor
    forwards: Tensor
    backwards: Tensor

    def merge(self, later: Selection) -> Selection:
        """Return the combined result of this run and a ``later`` run that started from the selected seeds of this run.

        The traces are concatenated. The times and the numbers of passes through the sampler are summed.
        """
        return replace(
            later,
            initial_loss=self.initial_loss,
            trace=torch.cat([self.trace, later.trace]),
            seconds=self.seconds + later.seconds,
            forwards=self.forwards + later.forwards,
            backwards=self.backwards + later.backwards,
        )

    def ungroup(self) -> Selection:
        """Convert a result per group, whose seeds are ``[G,n,C,h,w]``, to a result per sample.

        Each sample of a group gets the values of the group, except for the time, which is divided equally among the
        samples of the group.
        """
        size = self.seed.shape[1]
        per_group = ("loss", "initial_loss", "iterations", "converged", "seconds", "forwards", "backwards")
        per_sample = {name: getattr(self, name) for name in per_group} | {"trace": self.trace}
        if size > 1:
            per_sample = {name: values.repeat_interleave(size, -1) for name, values in per_sample.items()}
            per_sample["seconds"] = per_sample["seconds"] / size
        return replace(self, seed=self.seed.flatten(0, 1), latent=self.latent.flatten(0, 1), **per_sample)


class BestSeedTracker:
    """Records the losses and times of each sample, and the seed with the smallest criterion together with its latent.

    In this class, a sample is either one seed or a group of n seeds that are optimized jointly. The seeds of groups
    have the shape ``[G,n,C,h,w]``.

    Seeds and latents stay on their device. All other tensors are on the CPU, because some devices do not support
    float64.

    Args:
        seeds: initial seeds ``[B,C,h,w]``.
        iterations: the maximum number of updates K.
        patience, improvement: a sample has converged when the smallest criterion so far decreased over the last
            ``patience`` iterations by less than ``improvement`` times its absolute value before these iterations.
            ``patience=0`` disables the convergence check.
        max_quality_loss: the optimization of a sample stops when its quality is more than ``max_quality_loss`` below
            its quality in iteration 0.
    """

    def __init__(
        self,
        seeds: Tensor,
        iterations: int,
        patience: int = 0,
        improvement: float = 0.0,
        *,
        max_quality_loss: float = 0.0,
    ) -> None:
        batch = len(seeds)
        self.patience = patience
        self.improvement = improvement
        self.max_quality_loss = max_quality_loss
        self.initial_quality = torch.full((batch,), -torch.inf, dtype=torch.float64)
        self.seed = seeds.clone()
        self.latent = torch.full_like(seeds, torch.nan)
        self.best = torch.full((batch,), torch.inf, dtype=torch.float64)
        self.best_loss = self.best.clone()
        self.trace = torch.full((iterations + 1, batch), torch.nan, dtype=torch.float64)
        self.best_trace = self.trace.clone()
        self.iterations = torch.zeros(batch, dtype=torch.int64)
        self.converged = torch.zeros(batch, dtype=torch.bool)
        self.seconds = torch.zeros(batch, dtype=torch.float64)
        self.forwards = torch.zeros_like(self.iterations)
        self.backwards = torch.zeros_like(self.iterations)
        self.last_time = time.perf_counter()

    def record(
        self,
        k: int,
        rows: Tensor,
        seeds: Tensor,
        latent: Tensor,
        *,
        loss: Tensor,
        criterion: Tensor | None = None,
        quality: Tensor | None = None,
        differentiated: bool = False,
    ) -> Tensor:
        """Record iteration ``k`` of the samples with the indices ``rows [b]``.

        The best seed of a sample is the seed with the smallest ``criterion [b]``, by default the loss. If the
        ``quality [b]`` of a seed is more than ``max_quality_loss`` below the quality in iteration 0, the seed is never
        selected.

        Returns:
            A mask, bool ``[b]``, of the samples whose optimization continues. The optimization of a sample stops if its
            loss is not finite, if it has converged, or if its quality is too low.
        """
        loss = loss.cpu().double()  # synchronizes with the device, so that the measured time includes the computation
        criterion = loss if criterion is None else criterion.cpu().double()
        now = time.perf_counter()
        self.seconds[rows] += (now - self.last_time) / len(rows)
        self.last_time = now
        self.trace[k, rows] = loss
        self.iterations[rows] = self.backwards[rows]  # each earlier backward pass was followed by an update
        self.forwards[rows] += 1
        self.backwards[rows] += differentiated
        active = torch.isfinite(loss)
        if quality is not None:
            quality = quality.cpu().double()
            if k == 0:
                self.initial_quality[rows] = quality
            active &= quality >= self.initial_quality[rows] - self.max_quality_loss
        better = active & (criterion < self.best[rows])
        self.seed[rows[better]] = seeds[better].to(self.seed.dtype)
        self.latent[rows[better]] = latent[better].to(self.latent.dtype)
        self.best[rows[better]] = criterion[better]
        self.best_loss[rows[better]] = loss[better]
        self.best_trace[k, rows] = self.best[rows]
        if self.patience and k >= self.patience:
            earlier = self.best_trace[k - self.patience, rows]
            stalled = earlier - self.best[rows] < self.improvement * earlier.abs()
            self.converged[rows[stalled & active]] = True
            active &= ~stalled
        return active

    def selection(self) -> Selection:
        """Return the result of the iterations so far.

        The tensors of the result are not copied, so that later iterations change them.
        """
        return Selection(
            seed=self.seed,
            latent=self.latent,
            loss=self.best_loss,
            initial_loss=self.trace[0],
            trace=self.trace,
            iterations=self.iterations,
            converged=self.converged,
            seconds=self.seconds,
            forwards=self.forwards,
            backwards=self.backwards,
        )
