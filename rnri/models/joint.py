"""Evaluates several predictors in one network call, which is faster than one call per predictor."""

from __future__ import annotations

from dataclasses import fields
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from rnri.models.predictor import Condition, Denoiser, GuidedDenoiser, NoisePredictor


class JointPredictor:
    """Several predictors of one network, for different prompts or guidance scales, evaluated in one network call.

    Each predictor counts the same forward evaluations as in a separate call; backward evaluations are not counted in a
    joint call. Predictors that do not share one network, such as predictors of different classes, are evaluated in
    separate calls.

    Args:
        predictors: K predictors; the same predictor may occur several times.
    """

    def __init__(self, *predictors: NoisePredictor) -> None:
        self.predictors = predictors
        denoisers: list[Any] = [predictor.denoiser for predictor in predictors]
        self.denoisers = denoisers if _share_network(denoisers) else None
        if self.denoisers is not None:
            self.condition = reduce(Condition.cat, [denoiser.network_condition for denoiser in denoisers])

    def __call__(self, *latents: Tensor, t: float) -> list[Tensor]:
        """Return the predictions of the K predictors at timestep ``t``, each ``[B,C,h,w]``.

        ``latents`` contains one tensor ``[B,C,h,w]`` for each predictor.
        """
        if self.denoisers is None:
            return [predictor(z, t) for predictor, z in zip(self.predictors, latents, strict=True)]
        rows = [denoiser.network_rows(z) for denoiser, z in zip(self.denoisers, latents, strict=True)]
        self._count(latents)
        output = self.denoisers[0].network(torch.cat(rows), t, self.condition)
        outputs = output.split([len(each) for each in rows])
        triples = zip(self.denoisers, outputs, latents, strict=True)
        return [denoiser.combine(each, z, t) for denoiser, each, z in triples]

    def _count(self, latents: tuple[Tensor, ...]) -> None:
        counts = {id(predictor.nfe): predictor.nfe for predictor in self.predictors}
        for nfe in counts.values():
            nfe.calls += 1
        for predictor, z in zip(self.predictors, latents, strict=True):
            predictor.nfe.forward += len(z)


def _share_network(denoisers: list[Denoiser]) -> bool:
    """Return whether all denoisers have the same network and settings, except for conditions and guidance scales."""
    first = denoisers[0]
    if not isinstance(first, GuidedDenoiser):
        return False
    names = [field.name for field in fields(first) if field.name not in ("positive", "negative", "guidance")]
    return all(
        type(other) is type(first) and all(_equal(getattr(first, name), getattr(other, name)) for name in names)
        for other in denoisers
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return one is other or (type(one) is type(other) and isinstance(one, str | float | int) and one == other)
