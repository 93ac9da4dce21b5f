"""The prediction ``y(z, t)`` of noise or velocity: one interface for all networks, which also counts evaluations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad

from rnri.models.eval_mode import eval_no_grad

if TYPE_CHECKING:
    from diffusers import ModelMixin


@dataclass
class Evaluations:
    """Numbers of network evaluations of a predictor and of all predictors that its ``select`` method returns.

    ``forward`` is the number of samples that the network has processed, ``backward`` is the number of samples for which
    a gradient was computed, and ``calls`` is the number of batches that the network has processed. Classifier-free
    guidance processes two rows per sample, but the sample counts only once. A recomputation under gradient
    checkpointing counts as an evaluation.
    """

    forward: int = 0
    backward: int = 0
    calls: int = 0


class Denoiser(Protocol):
    """Function that predicts noise or velocity for a fixed batch of prompts; ``NoisePredictor`` wraps it."""

    def __call__(self, z: Tensor, t: float) -> Tensor:
        """Return the predicted noise or velocity for ``z [B,C,h,w]`` at timestep ``t``.

        The prediction is the velocity if ``Schedule.predicts`` of the model is "flow", otherwise noise. The result has
        the shape and dtype of ``z`` and is differentiable with respect to ``z``.
        """
        ...

    def select(self, rows: Tensor) -> Denoiser:
        """Return the denoiser for only the batch rows ``rows`` (int64 ``[b]``)."""
        ...

    def unguided(self) -> Denoiser:
        """Return the denoiser without classifier-free guidance, which predicts from the prompts alone."""
        ...


@dataclass(frozen=True)
class NoisePredictor:
    """A callable ``(z [B,C,h,w], t) -> y`` that predicts noise or velocity and counts network evaluations.

    ``y`` has the shape and dtype of ``z``. ``y`` is the velocity (noise minus clean latent) if the model's
    ``Schedule.predicts`` is "flow", otherwise the noise. ``denoiser`` applies the prompts, the guidance and all
    conversions. A predictor and all predictors that its method ``select`` returns share three counts:

    - ``forward_evaluations``: number of samples that the network has processed;
    - ``backward_evaluations``: number of samples for which a gradient was computed through the network;
    - ``calls``: number of batches that the network has processed.
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

    def eval_mode(self) -> AbstractContextManager[None]:
        """Return a context that keeps the network in evaluation mode, see :func:`rnri.models.eval_mode.eval_no_grad`.

        Each call of the predictor enters the context. Entering the context once around several calls is faster than
        entering it in each call.
        """
        return eval_no_grad(*getattr(self.denoiser, "networks", ()))

    def jvp(self, z: Tensor, t: float, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``y(z, t)`` and its derivative along ``direction [B,C,h,w]``, by forward-mode differentiation.

        A call counts as one forward and one backward evaluation per sample, because it takes about as long as one
        forward and one backward evaluation together.
        """
        self._count_backward(len(z))
        with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels do not support forward-mode differentiation
            # [:2] is needed for type checkers only: with has_aux=True, jvp would return a third value.
            return torch.func.jvp(lambda point: self(point, t), (z,), (direction,))[:2]

    def unguided(self) -> NoisePredictor:
        """Return the predictor without classifier-free guidance; both predictors share their evaluation counts."""
        return replace(self, denoiser=self.denoiser.unguided())

    def with_negative(self, negative: Condition) -> NoisePredictor:
        """Return the predictor with the negative condition ``negative``; both predictors share their evaluation counts.

        Raises:
            ValueError: guidance is off, or the denoiser has no text condition.
        """
        denoiser: Any = self.denoiser  # the protocol Denoiser has no attribute negative
        if getattr(denoiser, "negative", None) is None:
            raise ValueError("guidance is off, so there is no negative condition to replace; set guidance above 1.")
        return replace(self, denoiser=replace(denoiser, negative=negative))

    def select(self, rows: Tensor) -> NoisePredictor:
        """Return the predictor for the batch rows ``rows`` (int64 ``[b]``); both predictors share their counts."""
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
    """Copy a small CPU tensor ``table`` to ``device`` without synchronizing with the device."""
    return table.to(device, non_blocking=True)


@dataclass(frozen=True)
class Condition:
    """The network inputs that are computed from the prompts of a batch.

    Attributes:
        text: text embeddings ``[B,L,D]`` of B prompts with L tokens each.
        added: additional inputs by name, each ``[B,...]``, such as pooled text embeddings. The input ``mask``, if any,
            is nonzero for text embeddings of the prompt and zero for padding.
    """

    text: Tensor  # [B,L,D]
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    @cached_property
    def lengths(self) -> list[int]:
        """Number of text embeddings of each prompt that are not padding, according to ``added["mask"] [B,L]``."""
        return self.added["mask"].sum(1).tolist()

    def select(self, rows: Tensor) -> Condition:
        rows = to_device(rows, self.text.device)
        return Condition(self.text[rows], {name: value[rows] for name, value in self.added.items()})

    def where(self, mask: Tensor, other: Condition) -> Condition:
        """Return this condition with the rows of ``other`` where ``mask`` (bool ``[B]``) is False."""

        def select(value: Tensor, alternative: Tensor) -> Tensor:
            row_mask = to_device(mask, value.device).view(-1, *[1] * (value.ndim - 1))
            return torch.where(row_mask, value, alternative)

        added = {name: select(value, other.added[name]) for name, value in self.added.items()}
        return Condition(select(self.text, other.text), added)

    def cat(self, other: Condition) -> Condition:
        """Return the rows of this condition followed by the rows of ``other``.

        If one condition has fewer text embeddings per row than the other, the rows of the shorter condition are padded
        with zeros. The shorter condition must then have the input ``mask``.
        """
        length = max(self.text.shape[1], other.text.shape[1])
        first = self._pad(length)
        second = other._pad(length)
        added = {name: torch.cat([value, second.added[name]]) for name, value in first.added.items()}
        return Condition(torch.cat([first.text, second.text]), added)

    def _pad(self, length: int) -> Condition:
        """Return the condition with ``length`` text embeddings; ``mask`` excludes the added embeddings, which are 0."""
        missing = length - self.text.shape[1]
        if not missing:
            return self
        mask = pad(self.added["mask"], (0, missing))
        return Condition(pad(self.text, (0, 0, 0, missing)), {**self.added, "mask": mask})


@dataclass(frozen=True)
class GuidedDenoiser(ABC):
    """Base class of denoisers that adds classifier-free guidance and the selection of batch rows to a network.

    The network runs in its own dtype; guidance and conversions are computed in the dtype of the latents ``z``.

    Attributes:
        positive: the condition computed from the prompts.
        negative: the condition computed from the negative prompts; None if guidance is off.
        guidance: guidance scale; a scale of 1 turns guidance off. The guided output is
            ``y = y_negative + guidance (y_positive - y_negative)`` (Ho & Salimans 2022), unless ``guided`` is
            overridden. Here ``y_negative`` and ``y_positive`` are the network's outputs for the conditions ``negative``
            and ``positive``.
    """

    _: KW_ONLY
    positive: Condition
    negative: Condition | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if (self.negative is None) != (self.guidance == 1):
            raise ValueError(
                f"guidance={self.guidance} and negative do not fit together: pass negative=None if guidance is 1, "
                "otherwise pass a negative condition."
            )

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that ``network`` calls in evaluation mode."""
        return ()

    @abstractmethod
    def network(self, z: Tensor, t: float, condition: Condition) -> Tensor:
        """Return the network's output in the dtype of ``z``; ``z`` and ``condition`` have the same number of rows."""

    def to_prediction(self, output: Tensor, z: Tensor, t: float) -> Tensor:
        """Convert the network's ``output`` for ``z`` and ``t`` to the noise or velocity that the schedule expects."""
        return output

    def __call__(self, z: Tensor, t: float) -> Tensor:
        return self.combine(self.network(self.network_rows(z), t, self.network_condition), z, t)

    def network_rows(self, z: Tensor) -> Tensor:
        """Return the network's input for ``z [B,C,h,w]``: two copies of ``z`` if guidance is on, otherwise ``z``."""
        if len(z) != len(self.positive):
            raise ValueError(
                f"z has {len(z)} rows, but the predictor was made for {len(self.positive)} prompts: pass one row per "
                "prompt."
            )
        return z if self.negative is None else torch.cat([z, z])

    @cached_property
    def network_condition(self) -> Condition:
        """The condition of the network's input: the negative condition, if any, followed by the positive condition."""
        return self.positive if self.negative is None else self.negative.cat(self.positive)

    def combine(self, output: Tensor, z: Tensor, t: float) -> Tensor:
        """Return the noise or velocity for ``z [B,C,h,w]`` from the network's ``output`` for ``network_rows(z)``.

        If guidance is on, the outputs for the negative and the positive condition are combined by :meth:`guided`.
        """
        if self.negative is not None:
            output = self.guided(*output.chunk(2))
        return self.to_prediction(output, z, t)

    def guided(self, negative: Tensor, positive: Tensor) -> Tensor:
        """Return the guided output from the outputs for the negative and the positive condition, each ``[B,C,h,w]``.

        By default, the guided output is ``negative + guidance (positive - negative)``. A subclass may override
        ``guided`` with a function that is not affine in ``negative`` and ``positive``.
        """
        return negative + self.guidance * (positive - negative)

    def select(self, rows: Tensor) -> Self:
        negative = None if self.negative is None else self.negative.select(rows)
        return replace(self, positive=self.positive.select(rows), negative=negative)

    def unguided(self) -> Self:
        return replace(self, negative=None, guidance=1.0)


@dataclass(frozen=True)
class TransformerDenoiser(GuidedDenoiser):
    """Base class of the denoisers whose network is a transformer of diffusers.

    Attributes:
        transformer: the network.
    """

    transformer: ModelMixin

    @cached_property
    def dtype(self) -> torch.dtype:
        """Dtype of the network; the value is cached, because diffusers iterates over all weights to find the dtype."""
        return self.transformer.dtype

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.transformer,)

    def timesteps(self, z: Tensor, t: float) -> Tensor:
        """Return the timestep ``t`` for each row of ``z [B,C,h,w]``, float32 ``[B]``, on the device of ``z``."""
        return torch.full((len(z),), t, dtype=torch.float32, device=z.device)
