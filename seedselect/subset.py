"""Choose the images of a group from many candidates."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from rnri.validation import ConfigError, dataclass
from seedselect.groups import GroupSelect, ImageDiversity, LatentDiversity
from seedselect.history import Selection
from seedselect.problem import Generation, Problem
from seedselect.search import BestOf
from seedselect.select import OnIteration


@dataclass(frozen=True)
class BestSubset(BestOf):
    """Choose n images among ``N n`` candidates for each group, by a greedy search for the set with the smallest loss.

    BestSubset can choose any n of the ``N n`` candidates, while :class:`BestOf` chooses one of N groups of n images.
    BestSubset and BestOf need the same number of network evaluations. The greedy search starts with the image that has
    the largest reward of a single image. Each iteration then adds the image for which the loss of the chosen set is
    smallest. Group inference (Parmar et al. 2026, arXiv 2508.15773) solves the same problem as a quadratic integer
    program.

    Args:
        loss: the :class:`~seedselect.groups.GroupSelect` object whose loss ranks sets of images. The group rewards must
            be :class:`~seedselect.groups.ImageDiversity` or :class:`~seedselect.groups.LatentDiversity`. The setting
            ``quality`` of the ``GroupSelect`` object has no effect.
        candidates: number N of candidate seeds for each returned seed.
        refine: the ``SeedSelect`` object that optimizes the chosen seeds; None returns the chosen seeds unchanged.
        preview: must be None, because sets of images are compared after all sampling steps.
    """

    loss: GroupSelect

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preview is not None:
            raise ConfigError("preview", "must be null, because sets of images are compared after all sampling steps.")
        for reward, _ in self.loss.group_rewards:
            if not isinstance(reward, ImageDiversity | LatentDiversity):
                raise ConfigError(
                    "loss",
                    f"the group rewards must be ImageDiversity or LatentDiversity, got {type(reward).__name__}; choose "
                    "one of them, because sets of images are compared by their features.",
                )

    def with_steps(self, steps: int) -> BestSubset:
        """Return a copy for samplers with ``steps`` steps, see :meth:`SeedSelect.with_steps`."""
        refine = self.refine.with_steps(steps) if self.refine else None
        return BestSubset(self.loss.with_steps(steps), self.candidates, refine)

    @torch.no_grad()
    def _select(self, candidates: Tensor, problem: Problem, on_iteration: OnIteration) -> Selection:
        """Choose the seeds of each group from ``candidates [B,N,C,h,w]``, where N is the number of candidates per seed.

        The B samples are groups of n consecutive samples. The n seeds of a group are chosen from its ``N n``
        candidates.
        """
        start = time.perf_counter()
        size = self.loss.group_size
        latents, features, values = [], [], []
        for k in range(self.candidates):
            generation = problem.generate(candidates[:, k], torch.arange(len(candidates)))
            latents.append(generation.latents[-1])
            features.append([reward.features(generation).cpu() for reward, _ in self.loss.group_rewards])
            finite = generation.latents[-1].flatten(1).isfinite().all(1).cpu()
            values.append(torch.where(finite, self._single(generation), torch.nan))  # images with NaN are never chosen
            value = self._value([self.loss.grouped(f) for f in features[-1]], self.loss.grouped(values[-1]))
            on_iteration(k, -value.repeat_interleave(size))
        pools = [torch.stack(each, 1).unflatten(0, (-1, size)).flatten(1, 2) for each in zip(*features, strict=True)]
        single = torch.stack(values, 1).unflatten(0, (-1, size)).flatten(1)  # [G,M] with M = n N
        chosen = self._greedy(pools, single, size)  # [G,n]
        first = torch.arange(size) * self.candidates
        groups = torch.arange(len(chosen))[:, None]
        loss, initial_loss = (
            -self._value([pool[groups, index] for pool in pools], single[groups, index]) for index in (chosen, first)
        )
        count = torch.full((len(chosen),), self.candidates)
        return Selection(
            seed=candidates.unflatten(0, (-1, size)).flatten(1, 2)[groups, chosen],
            latent=torch.stack(latents, 1).unflatten(0, (-1, size)).flatten(1, 2)[groups, chosen],
            loss=loss,
            initial_loss=initial_loss,
            trace=torch.stack([initial_loss, loss]),
            iterations=torch.zeros_like(count),
            converged=torch.zeros(len(chosen), dtype=torch.bool),
            seconds=torch.full((len(chosen),), (time.perf_counter() - start) / len(chosen), dtype=torch.float64),
            forwards=count,
            backwards=torch.zeros_like(count),
        ).ungroup()

    def _single(self, generation: Generation) -> Tensor:
        """Return the weighted sum of the rewards of single images, minus the weighted penalty, float64 ``[B]``."""
        total = -self.loss.penalty_weight * self.loss.penalty(generation.seeds).cpu().double()
        for reward, weight in self.loss.rewards or ():
            total = total + weight * reward(generation).cpu().double()
        return total

    def _value(self, features: Sequence[Tensor], single: Tensor) -> Tensor:
        """Return the value (minus the loss) ``[...]`` of sets of m images.

        The arguments are the features ``[...,m,D]`` of the images for each group reward, and the values ``[...,m]`` of
        single images.
        """
        weighted = zip(self.loss.group_rewards, features, strict=True)
        return single.mean(-1) + sum(weight * reward.measure(each) for (reward, weight), each in weighted)

    def _greedy(self, pools: Sequence[Tensor], single: Tensor, size: int) -> Tensor:
        """Return the indices ``[G,n]`` of the images chosen from the M candidates of each group.

        ``pools`` contains the features ``[G,M,D]`` of the candidates for each group reward, and ``single`` contains the
        values ``[G,M]`` of single images.
        """
        groups = torch.arange(len(single))[:, None]
        chosen = single.nan_to_num(nan=-torch.inf).argmax(1, keepdim=True)
        for _ in range(size - 1):
            every = torch.arange(single.shape[1]).expand(len(single), -1)  # each candidate for the next image
            sets = torch.cat([chosen[:, None].expand(-1, every.shape[1], -1), every[..., None]], 2)  # [G,M,m]
            value = self._value([pool[groups[..., None], sets] for pool in pools], single[groups[..., None], sets])
            value = value.nan_to_num(nan=-torch.inf).scatter(1, chosen, -torch.inf)
            chosen = torch.cat([chosen, value.argmax(1, keepdim=True)], 1)
        return chosen
