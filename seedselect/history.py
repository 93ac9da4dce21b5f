"""The books of an optimization whose samples leave one by one."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """The best seed of each of B samples and how it was found, in K iterations at most.

    Attributes:
        seed: ``[B, C, h, w]``; its loss was evaluated, and is never above that of the seed it started from.
        latent: ``[B, C, h, w]``, the clean latent that the seed leads to.
        loss, initial_loss: ``float64 [B]``.
        trace: ``float64 [K + 1, B]``, the loss after each update (row 0: before any), NaN once a sample has left.
        iterations: ``int64 [B]``, updates made.
        converged: ``bool [B]``, left because the loss no longer fell.
        seconds: ``float64 [B]``, wall time until the sample left; the samples at work share an iteration's time.
        forwards, backwards: ``int64 [B]``, samplings that were run, and how many of them were differentiated.
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

    def then(self, later: Selection) -> Selection:
        """What ``later``, which went on from these seeds, has come to, with the losses, time and cost of both."""
        return replace(
            later,
            initial_loss=self.initial_loss,
            trace=torch.cat([self.trace, later.trace]),
            seconds=self.seconds + later.seconds,
            forwards=self.forwards + later.forwards,
            backwards=self.backwards + later.backwards,
        )


class Book:
    """Losses, times, best seeds and their latents. All but seeds and latents is kept on the CPU, where float64 is."""

    def __init__(self, seeds: Tensor, iterations: int, patience: int, improvement: float) -> None:
        batch = len(seeds)
        self.patience, self.improvement = patience, improvement
        self.seed, self.latent = seeds.clone(), torch.full_like(seeds, torch.nan)
        self.best = torch.full((batch,), torch.inf, dtype=torch.float64)
        self.trace = torch.full((iterations + 1, batch), torch.nan, dtype=torch.float64)
        self.history = self.trace.clone()  # best so far
        self.iterations = torch.zeros(batch, dtype=torch.int64)
        self.converged = torch.zeros(batch, dtype=torch.bool)
        self.seconds = torch.zeros(batch, dtype=torch.float64)
        self.forwards, self.backwards = torch.zeros_like(self.iterations), torch.zeros_like(self.iterations)
        self.clock = time.perf_counter()

    def record(
        self, k: int, rows: Tensor, z: Tensor, latent: Tensor, loss: Tensor, *, differentiated: bool = False
    ) -> Tensor:
        """Books iteration ``k`` of the samples ``rows``; True for those that go on."""
        loss = loss.cpu().double()  # waits for the device, so that the clock has seen its work
        now = time.perf_counter()
        self.seconds[rows] += (now - self.clock) / len(rows)
        self.clock = now
        self.trace[k, rows] = loss
        self.iterations[rows] = self.backwards[rows]  # each derivative so far made an update
        self.forwards[rows] += 1
        self.backwards[rows] += differentiated
        better = loss < self.best[rows]  # False for NaN
        self.seed[rows[better]], self.latent[rows[better]] = z[better], latent[better].to(self.latent.dtype)
        self.best[rows[better]] = loss[better]
        self.history[k, rows] = self.best[rows]
        going = torch.isfinite(loss)
        if self.patience and k >= self.patience:
            settled = self.best[rows] > (1 - self.improvement) * self.history[k - self.patience, rows]
            self.converged[rows[settled & going]] = True
            going &= ~settled
        return going

    def selection(self) -> Selection:
        return Selection(
            self.seed, self.latent, self.best, self.trace[0], self.trace, self.iterations, self.converged, self.seconds,
            self.forwards, self.backwards,
        )  # fmt: skip
