"""Choosing seeds by the same loss without a gradient: the best of N, and a search among neighbors.

Both have SeedSelect's interface, so that all three can be compared at equal numbers of network evaluations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from rnri.validation import HalfOpenUnitInterval, dataclass
from seedselect.history import Book, Selection
from seedselect.rewards import Made, Targets
from seedselect.select import SeedSelect, Trajectory


@dataclass(frozen=True)
class BestOf:
    """The best of ``candidates`` seeds a sample, and then ``refine`` from there if there is one.

    Args:
        loss: whose loss decides; nothing else of it is used.
        candidates: seeds of each sample.
        refine: what goes on from the best seed.
    """

    loss: SeedSelect
    candidates: PositiveInt
    refine: SeedSelect | None = None

    @property
    def step_weights(self) -> tuple[float, ...]:
        return tuple(self.loss.step_weights)

    @property
    def runs(self) -> tuple[int, int]:
        """Samplings and derivatives of a sample, at most."""
        forwards, backwards = self.refine.runs if self.refine else (0, 0)
        return self.candidates + forwards, backwards

    def with_steps(self, steps: int) -> BestOf:
        """As :meth:`SeedSelect.with_steps`."""
        refine = self.refine.with_steps(steps) if self.refine else None
        return BestOf(self.loss.with_steps(steps), self.candidates, refine)

    def __call__(self, seeds: Tensor, *, noise: Callable[[int], Tensor] | None = None, **given: Any) -> Selection:
        """The best of ``seeds [B N, C, h, w]``, a sample's N one after another; ``given`` as of :class:`SeedSelect`."""
        groups = seeds.detach().unflatten(0, (-1, self.candidates))
        book = Book(groups[:, 0].clone(), self.candidates - 1, 0, 0.0)
        for k in range(self.candidates):
            _try(self.loss, book, k, groups[:, k], **given)
        found = book.selection()
        return found if self.refine is None else found.then(self.refine(found.seed, noise=noise, **given))


@dataclass(frozen=True)
class Search:
    """Zeroth-order search: the best of a seed's neighbors becomes the seed, round by round.

    A neighbor is ``sqrt(1 - spread²) z + spread |z| e / |e|`` with normal noise e, at the norm of z.

    Args:
        loss: whose loss decides; nothing else of it is used.
        rounds: of search.
        neighbors: of each round.
        spread: share of noise in a neighbor.
    """

    loss: SeedSelect
    rounds: PositiveInt
    neighbors: PositiveInt
    spread: HalfOpenUnitInterval = 0.3
    candidates: ClassVar[PositiveInt] = 1

    @property
    def step_weights(self) -> tuple[float, ...]:
        return tuple(self.loss.step_weights)

    @property
    def runs(self) -> tuple[int, int]:
        """Samplings and derivatives of a sample."""
        return 1 + self.rounds * self.neighbors, 0

    def with_steps(self, steps: int) -> Search:
        """As :meth:`SeedSelect.with_steps`."""
        return Search(self.loss.with_steps(steps), self.rounds, self.neighbors, self.spread)

    def __call__(self, seeds: Tensor, *, noise: Callable[[int], Tensor], **given: Any) -> Selection:
        """Searches around ``seeds [B, C, h, w]``. ``noise(k)`` is of the k-th neighbor of each, ``[B, C, h, w]``."""
        forwards, _ = self.runs
        book = Book(seeds.detach().clone(), forwards - 1, 0, 0.0)
        _try(self.loss, book, 0, book.seed.clone(), **given)
        for start in range(1, forwards, self.neighbors):
            center = book.seed.clone()
            for k in range(start, start + self.neighbors):
                _try(self.loss, book, k, perturb(center, noise(k), self.spread), **given)
        return book.selection()


def perturb(seeds: Tensor, noise: Tensor, spread: float) -> Tensor:
    """Seeds ``[..., C, h, w]`` of the same norms, moved by a share ``spread`` in [0, 1] of ``noise``."""
    z, e = seeds.cpu().double(), noise.cpu().double()
    length = z.flatten(-3).norm(dim=-1)[..., None, None, None]
    moved = (1 - spread**2) ** 0.5 * z + spread * length * e / e.flatten(-3).norm(dim=-1)[..., None, None, None]
    moved = moved * length / moved.flatten(-3).norm(dim=-1)[..., None, None, None]
    return moved.to(seeds.dtype).to(seeds.device)


@torch.no_grad()
def _try(
    objective: SeedSelect, book: Book, k: int, seeds: Tensor, *, trajectory: Trajectory,
    decode: Callable[[Tensor], Tensor], features: Callable[[Tensor], Tensor], targets: Targets,
    on_iteration: Callable[[int, Tensor], None] = lambda iteration, loss: None,
) -> None:  # fmt: skip
    """Books one seed of every sample."""
    rows = torch.arange(len(seeds))
    latents = trajectory(seeds, rows.to(seeds.device))
    loss = objective.loss_of(Made(seeds, latents, targets, decode, features))
    book.record(k, rows, seeds, latents[-1], loss)
    on_iteration(k, loss)
