"""The optimization of seeds. Letters: B samples, b of them still at work, K iterations, D features."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import MinLen
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from rnri.validation import ConfigError, dataclass
from seedselect.gradients import unchanged
from seedselect.history import Book, Selection
from seedselect.rewards import Made, Reward, Targets, appearance, likeness

Trajectory = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""``(seeds [b, C, h, w], rows [b]) -> latents``: sampling of the samples ``rows``, its last latents, cleanest last."""

AUTHORS_OPTIMISER = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.01)
AUTHORS_SCHEDULE = partial(MultiStepLR, milestones=(3,), gamma=0.1)


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One iteration of an optimization, after its loss was found.

    Attributes:
        number: 0 is before any update.
        rows: int64 ``[b]``, the samples still at work.
        loss: ``[b]``, theirs.
        latent: ``[b, C, h, w]``, the clean latents that their seeds lead to now.
        selection: the best of all B samples so far; it shares memory with the optimization, which goes on writing.
    """

    number: int
    rows: Tensor
    loss: Tensor
    latent: Tensor
    selection: Selection


def no_penalty(seeds: Tensor) -> Tensor:
    """Zeros ``[B]``: every seed is as good as another."""
    return seeds.new_zeros(len(seeds))


@dataclass(frozen=True)
class SeedSelect:
    """SeedSelect with its hyperparameters; the defaults are the authors'.

    Args:
        iterations: most updates a sample.
        optimizer: makes a ``torch.optim`` optimizer, given a list of seeds. Each sample is a parameter of its own, so
            that samples neither wait for nor influence one another.
        schedule: makes its learning-rate schedule, which advances by one an iteration.
        semantic_weight, appearance_weight: of the two losses.
        rewards: pairs of a reward and its weight, in place of the two losses (:mod:`seedselect.rewards`): the loss is
            their weighted sum with the other sign.
        gradient: what is done to the gradient before each update (:mod:`seedselect.gradients`).
        step_weights: of the semantic loss at the last steps of sampling, the cleanest last.
        norm: ``free``, or ``keep`` to bring the seed back to its initial norm after each update.
        penalty: of seeds ``[b, C, h, w]``, one value each, not below zero, differentiable; such as
            ``nao.norm_penalty``.
        penalty_weight: of ``penalty`` in the loss.
        patience, improvement: a sample has converged, and leaves, when its best loss fell by less than the share
            ``improvement`` over the last ``patience`` updates. ``patience`` 0: all iterations.
    """

    iterations: PositiveInt = 30
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] = AUTHORS_OPTIMISER
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] = AUTHORS_SCHEDULE
    semantic_weight: NonNegativeFloat = 10.0
    appearance_weight: NonNegativeFloat = 1.0
    step_weights: Annotated[Sequence[NonNegativeFloat], MinLen(1)] = (0.05, 0.25, 0.7)
    norm: Literal["free", "keep"] = "free"
    penalty: Callable[[Tensor], Tensor] = no_penalty
    penalty_weight: NonNegativeFloat = 1.0
    patience: NonNegativeInt = 0
    improvement: NonNegativeFloat = 0.01
    rewards: Annotated[Sequence[Sequence[Any]], MinLen(1)] | None = None
    gradient: Callable[[Tensor, Tensor], Tensor] = unchanged
    candidates: ClassVar[PositiveInt] = 1

    def __post_init__(self) -> None:
        self._make_optimizer([torch.zeros(1)])
        for pair in () if self.rewards is None else self.rewards:
            if len(pair) != 2 or not callable(pair[0]) or isinstance(pair[1], bool | str) or not math.isfinite(pair[1]):
                raise ConfigError("rewards", f"must be pairs of a reward and its weight, got {pair!r}.")

    @property
    def runs(self) -> tuple[int, int]:
        """Samplings and derivatives of a sample, at most."""
        return self.iterations + 1, self.iterations

    def with_steps(self, steps: int) -> SeedSelect:
        """Itself, or where sampling has fewer ``steps`` than there are step weights, with the last of these.

        They are scaled to the sum of all, so that the semantic loss weighs as much as before.

        Raises:
            ValueError: the weights that are left are all zero.
        """
        if steps >= len(self.step_weights):
            return self
        kept, whole = self.step_weights[-steps:], sum(self.step_weights)
        if sum(kept) == 0:
            raise ConfigError("step_weights", f"the last {steps} of {list(self.step_weights)} are all zero; raise one.")
        return dataclasses.replace(self, step_weights=tuple(weight * whole / sum(kept) for weight in kept))

    def __call__(
        self,
        seeds: Tensor,
        *,
        trajectory: Trajectory,
        decode: Callable[[Tensor], Tensor],
        features: Callable[[Tensor], Tensor],
        targets: Targets,
        on_iteration: Callable[[int, Tensor], None] = lambda iteration, loss: None,
        noise: Callable[[int], Tensor] | None = None,
    ) -> Selection:
        """Optimizes ``seeds [B, C, h, w]``. ``on_iteration(k, loss [b])`` follows the samples still at work.

        ``noise`` is what a search draws from (:class:`seedselect.search.Search`); an optimization needs none.
        """
        found = Book(seeds.detach(), self.iterations, self.patience, self.improvement).selection()
        walk = self.iterate(seeds, trajectory=trajectory, decode=decode, features=features, targets=targets)
        for iteration in walk:
            on_iteration(iteration.number, iteration.loss)
            found = iteration.selection
        return found

    def iterate(
        self,
        seeds: Tensor,
        *,
        trajectory: Trajectory,
        decode: Callable[[Tensor], Tensor],
        features: Callable[[Tensor], Tensor],
        targets: Targets,
    ) -> Iterator[Iteration]:
        """The same, iteration by iteration, for those who watch: who asks for no more has stopped it."""
        z = seeds.detach().clone()
        book, rows = Book(z, self.iterations, self.patience, self.improvement), torch.arange(len(z))
        if not len(z):
            return
        norms, parameters = _norm(z), [z[row] for row in rows]  # the parameters are views of z
        optimizer, schedule = self._make_optimizer(parameters)
        for k in range(self.iterations + 1):
            last = k == self.iterations
            with torch.enable_grad():
                here, places = z[rows].requires_grad_(not last), rows.to(z.device)
                latents = trajectory(here, places)
                loss = self.loss_of(Made(here, latents, targets.select(places), decode, features))
                gradient = None if last else self.gradient(torch.autograd.grad(loss.sum(), here)[0], here.detach())
            going = book.record(k, rows, here.detach(), latents[-1].detach(), loss.detach(), differentiated=not last)
            yield Iteration(k, rows, loss.detach(), latents[-1].detach(), book.selection())
            if gradient is None or not going.any():
                return
            for row, slope, goes in zip(rows.tolist(), gradient, going.tolist(), strict=True):
                parameters[row].grad = slope if goes else None  # torch.optim passes over those without
            rows = rows[going]
            optimizer.step()
            schedule.step()
            if self.norm == "keep":
                places = rows.to(z.device)
                z[places] *= (norms[rows] / _norm(z[places])).to(z.dtype).to(z.device)

    def loss(
        self,
        seeds: Tensor,
        latents: Sequence[Tensor],
        decode: Callable[[Tensor], Tensor],
        features: Callable[[Tensor], Tensor],
        targets: Targets,
    ) -> Tensor:
        """The loss of seeds and the latents that they have led to: ``[B]``."""
        return self.loss_of(Made(seeds, latents, targets, decode, features))

    def loss_of(self, made: Made) -> Tensor:
        """The weighted sum of both losses, or of the rewards in their place, and the penalty: ``[B]``."""
        losses = [-(weight * reward(made)) for reward, weight in self._rewards()]
        return sum([*losses[1:], self.penalty_weight * self.penalty(made.seeds)], start=losses[0])

    def _rewards(self) -> Sequence[tuple[Reward, float]]:
        if self.rewards is not None:
            return [(reward, weight) for reward, weight in self.rewards]
        semantic = partial(likeness, step_weights=self.step_weights)
        return [(semantic, self.semantic_weight), (appearance, self.appearance_weight)]

    def _make_optimizer(self, parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = _made("optimizer", self.optimizer, parameters)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigError(
                "optimizer",
                "LBFGS couples all samples of a batch; choose an optimizer that updates parameters independently, such as AdamW.",
            )
        schedule = _made("schedule", self.schedule, optimizer)
        return optimizer, schedule


def _made(key: str, make: Callable[[Any], Any], of: Any) -> Any:
    try:
        return make(of)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(key, str(error)) from error


def _norm(z: Tensor) -> Tensor:
    """Norms ``float64 [b, 1, 1, 1]`` on the CPU: some devices have no float64."""
    return z.cpu().double().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
