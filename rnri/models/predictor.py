"""The prediction ``y(z, t)``, noise or velocity: one interface for every network that counts its evaluations."""

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
    """Network evaluations of a predictor and of all its selections.

    ``forward`` and ``backward`` count samples, ``calls`` counts batches. Classifier-free guidance processes two rows
    per sample, but a sample counts once. A recomputation under gradient checkpointing counts as an evaluation.
    """

    forward: int = 0
    backward: int = 0
    calls: int = 0


class Denoiser(Protocol):
    """The prediction for a fixed batch of prompts; wrapped by ``NoisePredictor``."""

    def __call__(self, z: Tensor, t: float) -> Tensor:
        """Return the noise or velocity for ``z [B,C,h,w]`` at timestep ``t``, as ``Schedule.predicts`` says.

        The result has the shape and dtype of ``z`` and is differentiable with respect to ``z``.
        """
        ...

    def select(self, rows: Tensor) -> Denoiser:
        """Return the denoiser of the batch rows ``rows`` (int64 ``[b]``)."""
        ...

    def unguided(self) -> Denoiser:
        """Return the conditional prediction alone; the denoiser itself if guidance is off."""
        ...


@dataclass(frozen=True)
class NoisePredictor:
    """A callable ``(z [B,C,h,w], t) -> y`` with the shape and dtype of ``z`` that counts network evaluations.

    ``y`` is the noise, or the velocity ``n - x0`` of flow matching, as ``Schedule.predicts`` of the same model says.
    Prompts, guidance and conversions are inside ``denoiser``. The counts are shared with all predictors that
    ``select`` returns:

    - ``forward_evaluations``: samples that went through the network;
    - ``backward_evaluations``: samples whose gradient went back through the network, counted when it is computed;
    - ``calls``: batches.
    """

    denoiser: Denoiser
    nfe: Evaluations = field(default_factory=Evaluations)

    def __call__(self, z: Tensor, t: float) -> Tensor:
        batch_size = len(z)
        self.nfe.forward += batch_size
        self.nfe.calls += 1
        prediction = self.denoiser(z, t)
        if prediction.requires_grad:
            prediction.register_hook(lambda _: self._count_backward(batch_size))
        return prediction

    def _count_backward(self, batch_size: int) -> None:
        self.nfe.backward += batch_size

    def jvp(self, z: Tensor, t: float, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``y(z, t)`` and its derivative along ``direction [B,C,h,w]``, by forward-mode differentiation.

        It counts as one forward and one backward evaluation per sample, which is about its cost.
        """
        self._count_backward(len(z))
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward-mode derivative
            return torch.func.jvp(lambda point: self(point, t), (z,), (direction,))

    def unguided(self) -> NoisePredictor:
        """Return the conditional prediction alone, with shared counts; an equal predictor if guidance is off."""
        return replace(self, denoiser=self.denoiser.unguided())

    def with_negative(self, negative: Condition) -> NoisePredictor:
        """Return the predictor with ``negative [B,...]`` as its negative condition, with shared counts.

        Raises:
            ValueError: guidance is off, or the denoiser is not conditioned on text.
        """
        if getattr(self.denoiser, "negative", None) is None:
            raise ValueError("guidance is off, so there is no negative condition to replace; set guidance above 1.")
        return replace(self, denoiser=replace(self.denoiser, negative=negative))

    def select(self, rows: Tensor) -> NoisePredictor:
        """Return the predictor of the batch rows ``rows`` (int64 ``[b]``), with shared counts."""
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
    """Copy a small CPU ``table`` to ``device`` without synchronizing with it."""
    return table.to(device, non_blocking=True)


@dataclass(frozen=True)
class Condition:
    """What a network receives from the prompts: ``text [B,L,D]`` and additional inputs (each ``[B,...]``)."""

    text: Tensor  # [B,L,D]
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def select(self, rows: Tensor) -> Condition:
        rows = to_device(rows, self.text.device)
        return Condition(self.text[rows], {name: value[rows] for name, value in self.added.items()})

    def where(self, mask: Tensor, other: Condition) -> Condition:
        """Return this condition in the rows where ``mask`` (bool ``[B]``) is true, and ``other`` elsewhere."""

        def select(value: Tensor, alternative: Tensor) -> Tensor:
            row_mask = to_device(mask, value.device).view(-1, *[1] * (value.ndim - 1))
            return torch.where(row_mask, value, alternative)

        added = {name: select(value, other.added[name]) for name, value in self.added.items()}
        return Condition(select(self.text, other.text), added)

    def cat(self, other: Condition) -> Condition:
        """Return the rows of this condition followed by those of ``other``."""
        added = {name: torch.cat([value, other.added[name]]) for name, value in self.added.items()}
        return Condition(torch.cat([self.text, other.text]), added)


@dataclass(frozen=True)
class GuidedDenoiser(ABC):
    """Base class of denoisers around a network: classifier-free guidance and row selection.

    The network runs in its own dtype; guidance and conversions run in the dtype of ``z``.

    Attributes:
        positive: the condition of the prompts.
        negative: the condition that guidance leads away from; None if guidance is off, then a sample is one row.
        guidance: ``y = y_negative + guidance (y_positive - y_negative)`` (Ho & Salimans 2022).
    """

    _: KW_ONLY
    positive: Condition
    negative: Condition | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if (self.negative is None) != (self.guidance == 1):
            raise ValueError(
                f"guidance={self.guidance}: a guidance of 1 takes no negative condition, any other value needs one."
            )

    @abstractmethod
    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        """Return the network's output ``[B,C,h,w]`` in the dtype of ``z``, one row per row of ``condition``."""

    def to_prediction(self, output: Tensor, z: Tensor, t: float) -> Tensor:
        """Convert the network's ``output`` at ``(z, t)`` to the noise or velocity that the schedule expects."""
        return output

    def __call__(self, z: Tensor, t: float) -> Tensor:
        if len(z) != len(self.positive):
            raise ValueError(f"z has {len(z)} rows, but the predictor was made for {len(self.positive)} prompts.")
        if self.negative is None:
            output = self.network(z, t, self.positive)
        else:
            outputs = self.network(torch.cat([z, z]), t, self.negative.cat(self.positive))  # [2B,C,h,w]
            negative, positive = outputs.chunk(2)
            output = negative + self.guidance * (positive - negative)
        return self.to_prediction(output, z, t)

    def select(self, rows: Tensor) -> Self:
        negative = None if self.negative is None else self.negative.select(rows)
        return replace(self, positive=self.positive.select(rows), negative=negative)

    def unguided(self) -> Self:
        return replace(self, negative=None, guidance=1.0)
