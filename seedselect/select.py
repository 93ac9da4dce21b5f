"""The optimisation of seeds. Letters: B samples, K iterations, D features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from seedselect.losses import appearance_loss, semantic_loss

Trajectory = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""``(seeds [b, C, h, w], rows [b]) -> latents``: sampling of the samples ``rows``, its last latents, cleanest last."""


@dataclass(frozen=True)
class Targets:
    """What each sample shall come to resemble: mean reference feature ``[B, D]`` and mean latent ``[B, C, h, w]``."""

    features: Tensor
    latent: Tensor

    def select(self, rows: Tensor) -> Targets:
        return Targets(self.features[rows], self.latent[rows])


@dataclass(frozen=True)
class Selection:
    """The best seed of each sample and how it was found.

    Attributes:
        seed: ``[B, C, h, w]``; its loss was evaluated, and is never above that of the seed it started from.
        loss, initial_loss: ``float64 [B]``.
        trace: ``float64 [K + 1, B]``, the loss after each update (row 0: before any), NaN once a sample has stopped.
        iterations: ``int64 [B]``, updates made.
        converged: ``bool [B]``, stopped because the loss no longer fell.
    """

    seed: Tensor
    loss: Tensor
    initial_loss: Tensor
    trace: Tensor
    iterations: Tensor
    converged: Tensor


@dataclass(frozen=True)
class SeedSelect:
    """SeedSelect with its hyperparameters; the defaults are the authors'.

    Args:
        iterations: most updates a sample.
        learning_rate: of AdamW, divided by 10 from iteration ``drop_after`` on.
        drop_after: None keeps the rate.
        weight_decay: AdamW's.
        semantic_weight, appearance_weight: of the two losses.
        step_weights: of the semantic loss at the last steps of sampling, the cleanest last.
        patience, improvement: a sample stops, and counts as converged, when its best loss fell by less than the share
            ``improvement`` over the last ``patience`` updates. ``patience`` 0: all iterations.
        norm: ``free``, or ``keep`` to bring the seed back to its initial norm after each update.
    """

    iterations: int = 30
    learning_rate: float = 0.1
    drop_after: int | None = 3
    weight_decay: float = 0.01
    semantic_weight: float = 10.0
    appearance_weight: float = 1.0
    step_weights: tuple[float, ...] = (0.05, 0.25, 0.7)
    patience: int = 0
    improvement: float = 0.01
    norm: Literal["free", "keep"] = "free"

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: SeedSelect needs at least one update.")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate}: it has to be positive for the seed to move.")
        if self.patience < 0:
            raise ValueError(f"patience={self.patience}: give a number of updates, or 0 to make all of them.")
        if not self.step_weights:
            raise ValueError("step_weights=(): give one weight for each of the last latents, at least one.")
        if self.norm not in ("free", "keep"):
            raise ValueError(f"norm={self.norm!r} is unknown: choose 'free' or 'keep'.")

    def __call__(
        self,
        seeds: Tensor,
        *,
        trajectory: Trajectory,
        decode: Callable[[Tensor], Tensor],
        features: Callable[[Tensor], Tensor],
        targets: Targets,
        on_iteration: Callable[[int, Tensor], None] = lambda iteration, loss: None,
    ) -> Selection:
        """Optimises ``seeds [B, C, h, w]``. ``on_iteration(k, loss [b])`` follows the samples still at work."""
        book = _Book(seeds, self.iterations)
        rows = torch.arange(len(seeds), device=seeds.device)
        z, state = seeds.detach().clone(), _Adam.zeros_like(seeds)
        norm = _norm(seeds)
        for k in range(self.iterations + 1):
            with torch.enable_grad():
                z = z.detach().requires_grad_(k < self.iterations)
                loss = self.loss(trajectory(z, rows), decode, features, targets.select(rows))
                gradient = torch.autograd.grad(loss.sum(), z)[0] if k < self.iterations else None
            going = book.record(k, rows, z.detach(), loss.detach().double(), self.patience, self.improvement)
            on_iteration(k, loss.detach())
            if gradient is None or not going.any():
                break
            rows, z, gradient, state = rows[going], z.detach()[going], gradient[going], state.select(going)
            z = state.update(z, gradient, self._rate(k), self.weight_decay, k + 1)
            if self.norm == "keep":
                z = z * (norm[rows] / _norm(z)).to(z.dtype)
        return book.selection()

    def loss(
        self,
        latents: Sequence[Tensor],
        decode: Callable[[Tensor], Tensor],
        features: Callable[[Tensor], Tensor],
        targets: Targets,
    ) -> Tensor:
        """The weighted sum of both losses: ``[B]``."""
        semantic = semantic_loss(
            latents[-len(self.step_weights) :], targets.features, self.step_weights, decode, features
        )
        appearance = appearance_loss(latents[-1], targets.latent)
        return self.semantic_weight * semantic + self.appearance_weight * appearance

    def _rate(self, k: int) -> float:
        dropped = self.drop_after is not None and k >= self.drop_after
        return self.learning_rate / 10 if dropped else self.learning_rate


def _norm(z: Tensor) -> Tensor:
    return z.double().flatten(1).norm(dim=1).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class _Adam:
    """AdamW's moments, with rows that can leave. ``torch.optim`` keeps one tensor's state whole."""

    mean: Tensor
    square: Tensor

    @classmethod
    def zeros_like(cls, z: Tensor) -> _Adam:
        return cls(torch.zeros_like(z), torch.zeros_like(z))

    def select(self, rows: Tensor) -> _Adam:
        return _Adam(self.mean[rows], self.square[rows])

    def update(self, z: Tensor, gradient: Tensor, rate: float, decay: float, k: int) -> Tensor:
        """The next ``z``; the moments are updated in place. Betas and epsilon are torch.optim.AdamW's defaults."""
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.001)
        step = (self.mean / (1 - 0.9**k)) / ((self.square / (1 - 0.999**k)).sqrt() + 1e-8)
        return z * (1 - rate * decay) - rate * step


class _Book:
    """Losses and best seeds of all samples while some of them are still at work."""

    def __init__(self, seeds: Tensor, iterations: int) -> None:
        batch, device = len(seeds), seeds.device
        self.seed = seeds.detach().clone()
        self.best = torch.full((batch,), torch.inf, dtype=torch.float64, device=device)
        self.trace = torch.full((iterations + 1, batch), torch.nan, dtype=torch.float64, device=device)
        self.history = torch.full_like(self.trace, torch.nan)  # best so far
        self.iterations = torch.zeros(batch, dtype=torch.int64, device=device)
        self.converged = torch.zeros(batch, dtype=torch.bool, device=device)

    def record(self, k: int, rows: Tensor, z: Tensor, loss: Tensor, patience: int, improvement: float) -> Tensor:
        """Books iteration ``k`` of the samples ``rows``; True for those that go on."""
        self.trace[k, rows] = loss
        self.iterations[rows] = k
        better = loss < self.best[rows]  # False for NaN
        self.seed[rows[better]] = z[better]
        self.best[rows[better]] = loss[better]
        self.history[k, rows] = self.best[rows]
        going = torch.isfinite(loss)
        if patience and k >= patience:
            settled = self.history[k, rows] > (1 - improvement) * self.history[k - patience, rows]
            self.converged[rows[settled & going]] = True
            going &= ~settled
        return going

    def selection(self) -> Selection:
        return Selection(self.seed, self.best, self.trace[0], self.trace, self.iterations, self.converged)
