"""SeedSelect: optimizes seeds by gradient descent; gradients are backpropagated through the sampling steps.

Letters in tensor shapes: B samples, b samples whose optimization has not stopped, K iterations, D features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import MinLen
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from rnri.validation import OMIT_DEFAULT, ConfigError, dataclass
from seedselect.gradients import identity
from seedselect.history import BestSeedTracker, Selection
from seedselect.problem import Generation, Problem
from seedselect.rewards import Reward, appearance_reward, semantic_reward

OnIteration = Callable[[int, Tensor], None]
"""Callback ``(iteration, loss [b])``, called after each iteration with the losses of the b active samples.

The optimization of an active sample has not stopped.
"""

AUTHORS_OPTIMIZER = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.01)
AUTHORS_SCHEDULE = partial(MultiStepLR, milestones=(3,), gamma=0.1)


def no_callback(iteration: int, loss: Tensor) -> None:
    """Default callback of the seed optimization, which does nothing."""


@dataclasses.dataclass(frozen=True)
class Iteration:
    """State of the seed optimization after one iteration has computed the loss.

    Attributes:
        number: index of the iteration; iteration 0 computes the loss of the initial seeds.
        rows: batch indices of the active samples (samples whose optimization has not stopped), int64 ``[b]``.
        loss: losses of the active samples, ``[b]``.
        latent: clean latents generated from the current seeds of the active samples, ``[b,C,h,w]``.
        selection: for each of all B samples, the seed with the smallest criterion so far. Later iterations may change
            the tensors of ``selection``; copy the tensors to keep them.
    """

    number: int
    rows: Tensor
    loss: Tensor
    latent: Tensor
    selection: Selection


def no_penalty(seeds: Tensor) -> Tensor:
    """Default penalty of :class:`SeedSelect`: return 0 for each of the seeds ``[B,C,h,w]``, as a tensor ``[B]``."""
    return seeds.new_zeros(len(seeds))


@dataclass(frozen=True)
class SeedSelect:
    """The SeedSelect optimizer and its hyperparameters. The default values are the values in the authors' code.

    Args:
        iterations: maximum number of updates per sample.
        optimizer: function that builds a ``torch.optim`` optimizer from a list of seeds. Each sample is a separate
            parameter of the optimizer, so that a sample does not influence the other samples.
        schedule: function that builds the learning-rate scheduler of an optimizer; the scheduler is stepped once per
            iteration.
        semantic_weight, appearance_weight: weights of the semantic loss and of the appearance loss.
        rewards: pairs ``(reward, weight)`` that replace the semantic loss and the appearance loss (see
            :mod:`seedselect.rewards`). If ``rewards`` is set, the loss is minus the weighted sum of the rewards.
        gradient: function that transforms the gradient before each update (:mod:`seedselect.gradients`).
        step_weights: weights, in the semantic loss, of the latents after the last sampling steps; the last weight is
            for the clean latent.
        views: number of augmented views of an image whose features the semantic loss averages
            (:func:`~seedselect.features.view_features`); 1 uses the image alone, as the authors do.
        norm: if ``keep``, a seed is rescaled to its initial norm after each update; if ``free``, the norm may change.
        penalty: differentiable function from seeds ``[b,C,h,w]`` to penalties >= 0 ``[b]``, such as
            ``nao.norm_penalty``.
        penalty_weight: weight with which ``penalty`` is added to the loss.
        best_by: criterion for the returned seed of each sample: ``loss`` selects the smallest loss, ``rewards`` the
            largest weighted sum of rewards, without the penalty (as in ReNO, Eyring et al. 2024).
        patience, improvement: the optimization of a sample stops when its smallest loss so far decreased by less than
            the fraction ``improvement`` over the last ``patience`` updates. If ``best_by`` is ``rewards``, this loss
            does not include the penalty. ``patience=0`` disables early stopping.
    """

    iterations: PositiveInt = 30
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] = AUTHORS_OPTIMIZER
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] = AUTHORS_SCHEDULE
    semantic_weight: NonNegativeFloat = 10.0
    appearance_weight: NonNegativeFloat = 1.0
    step_weights: Annotated[Sequence[NonNegativeFloat], MinLen(1)] = (0.05, 0.25, 0.7)
    views: PositiveInt = dataclasses.field(default=1, metadata=OMIT_DEFAULT)
    norm: Literal["free", "keep"] = "free"
    penalty: Callable[[Tensor], Tensor] = no_penalty
    penalty_weight: NonNegativeFloat = 1.0
    best_by: Literal["loss", "rewards"] = "loss"
    patience: NonNegativeInt = 0
    improvement: NonNegativeFloat = 0.01
    rewards: Annotated[Sequence[Sequence[Any]], MinLen(1)] | None = None
    gradient: Callable[[Tensor, Tensor], Tensor] = identity
    candidates: ClassVar[PositiveInt] = 1
    previews: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self._build_optimizer([torch.zeros(1)])
        check_pairs("rewards", self.rewards or ())

    @property
    def group_size(self) -> int:
        """Number of consecutive seeds that are optimized jointly; 1 except in ``GroupSelect``."""
        return 1

    @property
    def call_counts(self) -> tuple[int, int]:
        """Maximum number of forward and backward passes through the sampler per sample."""
        return self.iterations + 1, self.iterations

    def with_steps(self, steps: int) -> Self:
        """Return a copy for samplers with ``steps`` steps; the copy has at most ``steps`` step weights.

        If there are more step weights than ``steps``, only the last ``steps`` weights are used, rescaled so that the
        sum of the step weights does not change.

        Raises:
            ConfigError: the last ``steps`` step weights are all zero.
        """
        if steps >= len(self.step_weights):
            return self
        remaining = self.step_weights[-steps:]
        total = sum(self.step_weights)
        if sum(remaining) == 0:
            raise ConfigError(
                "step_weights",
                f"the last {steps} of the weights {list(self.step_weights)} are all zero; set one of them above 0.",
            )
        return dataclasses.replace(self, step_weights=tuple(weight * total / sum(remaining) for weight in remaining))

    def __call__(
        self,
        seeds: Tensor,
        problem: Problem,
        *,
        on_iteration: OnIteration = no_callback,
        noise: Callable[[int], Tensor] | None = None,
    ) -> Selection:
        """Optimize ``seeds [B,C,h,w]``, and return the seed with the smallest criterion for each sample.

        Seeds in half precision are optimized in float32, and the returned seeds are float32. The criterion is described
        in :meth:`loss_and_criterion`. The argument ``noise`` is ignored; ``noise`` exists
        because :class:`seedselect.search.LocalSearch` is called with the same arguments.
        """
        selection = self._tracker(self.grouped(_at_least_float32(seeds.detach()))).selection().ungroup()
        for iteration in self.iterate(seeds, problem):
            on_iteration(iteration.number, iteration.loss)
            selection = iteration.selection
        return selection

    def iterate(self, seeds: Tensor, problem: Problem) -> Iterator[Iteration]:
        """Optimize ``seeds [B,C,h,w]`` and yield the state after every iteration.

        The caller can end the optimization by a ``break`` in its loop.
        """
        self.check(seeds, problem)
        z = self.grouped(_at_least_float32(seeds.detach()).clone())  # [G,n,C,h,w]
        if not len(z):
            return
        tracker = self._tracker(z)
        rows = torch.arange(len(z))  # indices of the active groups
        initial_norms = _norm(z)
        initial_latent = None
        parameters = [z[row] for row in rows]  # views of z, so that updating a parameter updates z
        optimizer, schedule = self._build_optimizer(parameters)
        for k in range(self.iterations + 1):
            is_last = k == self.iterations
            with torch.enable_grad():
                current = z[rows].requires_grad_(not is_last)
                generation = problem.generate(current.flatten(0, 1), self._samples(rows))
                latent = self.grouped(generation.latents[-1].detach())
                if initial_latent is None:
                    initial_latent = latent
                generation = dataclasses.replace(
                    generation, group_size=self.group_size, initial_latent=initial_latent[rows].flatten(0, 1)
                )
                loss, criterion = self.loss_and_criterion(generation)
                if not is_last and not loss.requires_grad:
                    raise ValueError(
                        "rewards: the loss does not depend on the seeds; use rewards and a trajectory that keep the "
                        "autograd graph."
                    )
                gradient = None if is_last else torch.autograd.grad(loss.sum(), current)[0]
                if gradient is not None:
                    gradient = self.gradient(gradient.flatten(0, 1), current.detach().flatten(0, 1))
                    gradient = gradient.reshape(current.shape)
            loss = loss.detach()
            with torch.no_grad():
                quality = self.quality_of(generation)
            active = tracker.record(
                k,
                rows,
                current.detach(),
                latent,
                loss=loss,
                criterion=criterion.detach(),
                quality=quality,
                differentiated=not is_last,
            )
            yield Iteration(
                k,
                self._samples(rows),
                loss.repeat_interleave(self.group_size),
                latent.flatten(0, 1),
                tracker.selection().ungroup(),
            )
            if gradient is None or not active.any():
                return
            for row, row_gradient, is_active in zip(rows.tolist(), gradient, active.tolist(), strict=True):
                parameters[row].grad = row_gradient if is_active else None  # None: no update
            rows = rows[active]
            optimizer.step()
            schedule.step()
            if self.norm == "keep":
                z_rows = rows.to(z.device)
                z[z_rows] *= (initial_norms[rows] / _norm(z[z_rows])).to(z.dtype).to(z.device)

    def check(self, seeds: Tensor, problem: Problem) -> None:
        """Check the initial seeds and the targets before the first network evaluation.

        Raises:
            ValueError: the seeds or the targets have a wrong type or shape.
            RuntimeError: ``torch.inference_mode`` is enabled, in which no gradient can be computed.
        """
        problem.check(seeds, len(seeds))
        if self.iterations and torch.is_inference_mode_enabled():
            raise RuntimeError(
                "SeedSelect computes gradients, which torch.inference_mode forbids; use torch.no_grad instead (with "
                "Lightning, create the Trainer with inference_mode=False)."
            )

    def compute_loss(self, generation: Generation) -> Tensor:
        """Return the loss ``[B]``: minus the weighted sum of the rewards, plus the weighted penalty.

        If ``self.rewards`` is None, the rewards are minus the semantic loss and minus the appearance loss.
        """
        return self.loss_and_criterion(generation)[0]

    def loss_and_criterion(self, generation: Generation) -> tuple[Tensor, Tensor]:
        """Return the loss ``[B]`` and the criterion ``[B]``. The best seed is the seed with the smallest criterion.

        The criterion is the loss or, if ``best_by`` is ``rewards``, the loss without the penalty.
        """
        losses = [-(weight * reward(generation)) for reward, weight in self._rewards()]
        without_penalty = sum(losses[1:], start=losses[0])
        loss = without_penalty + self.penalty_weight * self.penalty(generation.seeds)
        return loss, loss if self.best_by == "loss" else without_penalty

    def quality_of(self, generation: Generation) -> Tensor | None:
        """Return the quality of each of G groups of images, ``[G]``, or None if the quality may decrease without limit.

        ``SeedSelect`` returns None. ``GroupSelect`` overrides this method.
        """
        return None

    def grouped(self, values: Tensor) -> Tensor:
        """Reshape values of samples ``[B,...]`` to values of G groups of n samples, ``[G,n,...]``.

        Raises:
            ValueError: the number of samples is not a multiple of ``group_size``.
        """
        if len(values) % self.group_size:
            raise ValueError(
                f"seeds: the number of seeds must be a multiple of group_size={self.group_size}, got {len(values)}; "
                "pass complete groups."
            )
        return values.unflatten(0, (len(values) // self.group_size, self.group_size))

    def _samples(self, rows: Tensor) -> Tensor:
        """Return the batch indices of all samples of the groups with the indices ``rows [g]``, int64 ``[g n]``."""
        return (rows[:, None] * self.group_size + torch.arange(self.group_size)).flatten()

    def _rewards(self) -> Sequence[tuple[Reward, float]]:
        if self.rewards is not None:
            return [(reward, weight) for reward, weight in self.rewards]
        semantic = partial(semantic_reward, step_weights=self.step_weights, views=self.views)
        return [(semantic, self.semantic_weight), (appearance_reward, self.appearance_weight)]

    def _tracker(self, groups: Tensor) -> BestSeedTracker:
        return BestSeedTracker(groups, self.iterations, self.patience, self.improvement)

    def _build_optimizer(self, parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = _build("optimizer", self.optimizer, parameters)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigError(
                "optimizer",
                "LBFGS couples all samples of a batch in one update; choose an optimizer that updates each parameter "
                "independently, such as AdamW.",
            )
        return optimizer, _build("schedule", self.schedule, optimizer)


def _at_least_float32(seeds: Tensor) -> Tensor:
    """Convert seeds in half precision to float32, because updates of optimizers overflow in float16."""
    return seeds.to(torch.promote_types(seeds.dtype, torch.float32))


def check_pairs(key: str, pairs: Sequence[Sequence[Any]]) -> None:
    """Raise ConfigError for the config key ``key`` if an entry of ``pairs`` is not a reward with a finite weight."""
    for pair in pairs:
        if len(pair) != 2 or not callable(pair[0]) or isinstance(pair[1], bool | str) or not math.isfinite(pair[1]):
            raise ConfigError(key, f"each entry must be a pair of a reward and a finite weight, got {pair!r}.")


def _build(key: str, factory: Callable[[Any], Any], argument: Any) -> Any:
    """Return ``factory(argument)``; convert an exception of ``factory`` to a ConfigError for the config key ``key``."""
    try:
        return factory(argument)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(key, str(error)) from error


def _norm(z: Tensor) -> Tensor:
    """Return the norm of each seed of groups ``[g,n,C,h,w]``, float64 ``[g,n,1,1,1]``.

    Norms are computed on the CPU, because some devices do not support float64.
    """
    return z.cpu().double().flatten(2).norm(dim=2)[..., None, None, None]
