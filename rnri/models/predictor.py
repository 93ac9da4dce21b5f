"""The prediction ``y(z, t)``, noise or velocity: one convention for every network, with its evaluations counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass
class Evaluations:
    """Network evaluations of a predictor and all its selections.

    ``forward`` and ``backward`` count samples, ``calls`` counts batches. Under guidance, which takes two
    rows, a sample counts once. A recomputation under gradient checkpointing is an evaluation and is counted.
    """

    forward: int = 0
    backward: int = 0
    calls: int = 0


class Denoiser(Protocol):
    """A prediction for a fixed batch of prompts; what a ``NoisePredictor`` counts."""

    def __call__(self, z: Tensor, t: float) -> Tensor:
        """What the schedule says is predicted, of ``z [B,C,h,w]`` at timestep ``t``: the noise, or the velocity.

        Shape and dtype of ``z``, differentiable in it.
        """
        ...

    def select(self, rows: Tensor) -> Denoiser:
        """The same for the batch rows ``rows`` (int64 ``[b]``)."""
        ...

    def unguided(self) -> Denoiser:
        """The conditional prediction alone; itself where guidance is off."""
        ...


@dataclass(frozen=True)
class NoisePredictor:
    """``(z [B,C,h,w], t) -> y``, shape and dtype of ``z``, with the network evaluations counted.

    ``y`` is the noise, or the velocity ``n - x0`` of flow matching: ``Schedule.predicts`` of the same model says which.
    Prompts, guidance and the conversion to it are closed over in ``denoiser``. The counts are shared by
    every predictor that ``select`` makes from this one:

    - ``forward_evaluations``: samples that went through the network;
    - ``backward_evaluations``: samples whose gradient went back through the network, counted when it does;
    - ``calls``: batches.
    """

    denoiser: Denoiser
    nfe: Evaluations = field(default_factory=Evaluations)

    def __call__(self, z: Tensor, t: float) -> Tensor:
        rows = len(z)
        self.nfe.forward += rows
        self.nfe.calls += 1
        prediction = self.denoiser(z, t)
        if prediction.requires_grad:
            prediction.register_hook(lambda _: self._count_backward(rows))
        return prediction

    def _count_backward(self, rows: int) -> None:
        self.nfe.backward += rows

    def jvp(self, z: Tensor, t: float, direction: Tensor) -> tuple[Tensor, Tensor]:
        """``y(z, t)`` and its derivative along ``direction [B,C,h,w]``, by forward-mode differentiation.

        Counts as one forward and one backward evaluation a sample, which is about what it costs.
        """
        self._count_backward(len(z))
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
            return torch.func.jvp(lambda at: self(at, t), (z,), (direction,))

    def unguided(self) -> NoisePredictor:
        """The conditional prediction alone, sharing the counts; itself where guidance is off."""
        return replace(self, denoiser=self.denoiser.unguided())

    def with_negative(self, negative: Condition) -> NoisePredictor:
        """Guidance away from ``negative [B,...]`` instead, sharing the counts.

        Raises:
            ValueError: guidance is off, or the denoiser is not conditioned on text.
        """
        if getattr(self.denoiser, "negative", None) is None:
            raise ValueError("guidance is off, so there is no negative condition to replace; set guidance above 1.")
        return replace(self, denoiser=replace(self.denoiser, negative=negative))

    def select(self, rows: Tensor) -> NoisePredictor:
        """The predictor of the batch rows ``rows`` (int64 ``[b]``), for when the others have left."""
        return replace(self, denoiser=self.denoiser.select(rows))

    @property
    def forward_evaluations(self) -> int:
        return self.nfe.forward

    @property
    def backward_evaluations(self) -> int:
        return self.nfe.backward

    @property
    def calls(self) -> int:
        return self.nfe.calls


def to_device(table: Tensor, device: torch.device) -> Tensor:
    """A small ``table`` of the CPU on ``device``, without waiting for what that is at."""
    return table.to(device, non_blocking=True)


@dataclass(frozen=True)
class Condition:
    """What a network is told of the prompts: ``text [B,L,D]`` and what else it takes (each ``[B,...]``)."""

    text: Tensor  # [B,L,D]
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def select(self, rows: Tensor) -> Condition:
        rows = to_device(rows, self.text.device)
        return Condition(self.text[rows], {name: value[rows] for name, value in self.added.items()})

    def where(self, rows: Tensor, other: Condition) -> Condition:
        """This condition in the ``rows`` (bool ``[B]``), and ``other`` elsewhere."""

        def chosen(own: Tensor, others: Tensor) -> Tensor:
            return torch.where(to_device(rows, own.device).view(-1, *[1] * (own.ndim - 1)), own, others)

        added = {name: chosen(value, other.added[name]) for name, value in self.added.items()}
        return Condition(chosen(self.text, other.text), added)

    def cat(self, other: Condition) -> Condition:
        """This condition's rows followed by ``other``'s."""
        added = {name: torch.cat([value, other.added[name]]) for name, value in self.added.items()}
        return Condition(torch.cat([self.text, other.text]), added)


@dataclass(frozen=True)
class GuidedDenoiser(ABC):
    """A network as a ``Denoiser``: guidance, and what every architecture shares.

    The network runs in its own dtype; guidance and conversions run in the dtype of ``z``.

    Attributes:
        positive: the prompts' condition.
        negative: the condition that guidance leads away from; None if guidance is off, and a sample is one row.
        guidance: ``y = y_negative + guidance (y_positive - y_negative)`` (Ho & Salimans 2022).
    """

    _: KW_ONLY
    positive: Condition
    negative: Condition | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if (self.negative is None) != (self.guidance == 1):
            raise ValueError(f"guidance={self.guidance}: 1 goes without a negative condition, others with one.")

    @abstractmethod
    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        """The network's output ``[B,C,h,w]`` in the dtype of ``z``, one row a row of ``condition``."""

    def to_prediction(self, output: Tensor, z: Tensor, t: float) -> Tensor:
        """What the schedule says is predicted, from the network's ``output`` at the very ``(z, t)`` that it saw."""
        return output

    def __call__(self, z: Tensor, t: float) -> Tensor:
        if len(z) != len(self.positive):
            raise ValueError(f"z has {len(z)} rows, but the predictor was made for {len(self.positive)} prompts.")
        if self.negative is None:
            output = self.network(z, t, self.positive)
        else:
            both = self.network(torch.cat([z, z]), t, self.negative.cat(self.positive))  # [2B,C,h,w]
            negative, positive = both.chunk(2)
            output = negative + self.guidance * (positive - negative)
        return self.to_prediction(output, z, t)

    def select(self, rows: Tensor) -> Self:
        negative = None if self.negative is None else self.negative.select(rows)
        return replace(self, positive=self.positive.select(rows), negative=negative)

    def unguided(self) -> Self:
        return replace(self, negative=None, guidance=1.0)
