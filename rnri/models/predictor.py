"""The noise prediction ``eps(z, t)``: one convention for every network, with its evaluations counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rnri.models.frozen import frozen

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


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
    """A noise prediction for a fixed batch of prompts; what a ``NoisePredictor`` counts."""

    def __call__(self, z: Tensor, t: int) -> Tensor:
        """The noise in ``z [B,C,h,w]`` at timestep ``t``: shape and dtype of ``z``, differentiable in it."""
        ...

    def select(self, rows: Tensor) -> Denoiser:
        """The same for the batch rows ``rows`` (int64 ``[b]``)."""
        ...

    def unguided(self) -> Denoiser:
        """The conditional prediction alone; itself where guidance is off."""
        ...


@dataclass(frozen=True)
class NoisePredictor:
    """``(z [B,C,h,w], t) -> eps``, shape and dtype of ``z``, with the network evaluations counted.

    Prompts, guidance and the conversion to noise are closed over in ``denoiser``. The counts are shared by
    every predictor that ``select`` makes from this one:

    - ``forward_evaluations``: samples that went through the network;
    - ``backward_evaluations``: samples whose gradient went back through the network, counted when it does;
    - ``calls``: batches.
    """

    denoiser: Denoiser
    evaluations: Evaluations = field(default_factory=Evaluations)

    def __call__(self, z: Tensor, t: int) -> Tensor:
        rows = len(z)
        self.evaluations.forward += rows
        self.evaluations.calls += 1
        eps = self.denoiser(z, t)
        if eps.requires_grad:
            eps.register_hook(lambda _: self._count_backward(rows))
        return eps

    def _count_backward(self, rows: int) -> None:
        self.evaluations.backward += rows

    def jvp(self, z: Tensor, t: int, direction: Tensor) -> tuple[Tensor, Tensor]:
        """``eps(z, t)`` and its derivative along ``direction [B,C,h,w]``, by forward-mode differentiation.

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
        return self.evaluations.forward

    @property
    def backward_evaluations(self) -> int:
        return self.evaluations.backward

    @property
    def calls(self) -> int:
        return self.evaluations.calls


@dataclass(frozen=True)
class Condition:
    """What the UNet is told of the prompts: ``text [B,L,D]`` and, for SDXL, ``added`` (each ``[B,...]``)."""

    text: Tensor  # [B,L,D]
    added: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def select(self, rows: Tensor) -> Condition:
        rows = rows.to(self.text.device)
        return Condition(self.text[rows], {name: value[rows] for name, value in self.added.items()})

    def where(self, rows: Tensor, other: Condition) -> Condition:
        """This condition in the ``rows`` (bool ``[B]``), and ``other`` elsewhere."""

        def chosen(own: Tensor, others: Tensor) -> Tensor:
            return torch.where(rows.to(own.device).view(-1, *[1] * (own.ndim - 1)), own, others)

        added = {name: chosen(value, other.added[name]) for name, value in self.added.items()}
        return Condition(chosen(self.text, other.text), added)

    def then(self, other: Condition) -> Condition:
        """This condition's rows followed by ``other``'s."""
        added = {name: torch.cat([value, other.added[name]]) for name, value in self.added.items()}
        return Condition(torch.cat([self.text, other.text]), added)


@dataclass(frozen=True)
class UNetDenoiser:
    """A diffusers UNet as a ``Denoiser``.

    The network runs in its own dtype; guidance and the conversion to noise run in the dtype of ``z``, the
    conversion at the very ``(z, t)`` that the network saw.

    Attributes:
        unet: a ``UNet2DConditionModel``.
        prediction_type: what it predicts: ``epsilon``, ``v_prediction`` (Salimans & Ho 2022) or ``sample``.
        alpha_bar: float64 ``[num_train_timesteps]``.
        positive: the prompts' condition.
        negative: the condition that guidance leads away from; None if guidance is off, and a sample is one
            row.
        guidance: ``eps = eps_negative + guidance (eps_positive - eps_negative)`` (Ho & Salimans 2022).
        guidance_embedding: ``[1,D]``, for networks distilled with their guidance as an input (LCM), else
            None.
    """

    unet: nn.Module
    prediction_type: str
    alpha_bar: Tensor  # [num_train_timesteps]
    positive: Condition
    negative: Condition | None = None
    guidance: float = 1.0
    guidance_embedding: Tensor | None = None  # [1,D]

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type={self.prediction_type!r} in the scheduler's config; "
                f"known are {', '.join(PREDICTION_TYPES)}."
            )
        if (self.negative is None) != (self.guidance == 1):
            raise ValueError(f"guidance={self.guidance}: 1 goes without a negative condition, others with one.")

    def __call__(self, z: Tensor, t: int) -> Tensor:
        if len(z) != len(self.positive):
            raise ValueError(f"z has {len(z)} rows, but the predictor was made for {len(self.positive)} prompts.")
        if self.negative is None:
            output = self._network(z, t, self.positive)
        else:
            both = self._network(torch.cat([z, z]), t, self.negative.then(self.positive))  # [2B,C,h,w]
            negative, positive = both.chunk(2)
            output = negative + self.guidance * (positive - negative)
        return to_noise(output, z, float(self.alpha_bar[t]), self.prediction_type)

    def select(self, rows: Tensor) -> UNetDenoiser:
        negative = None if self.negative is None else self.negative.select(rows)
        return replace(self, positive=self.positive.select(rows), negative=negative)

    def unguided(self) -> UNetDenoiser:
        return replace(self, negative=None, guidance=1.0)

    def _network(self, z: Tensor, t: int, condition: Condition) -> Tensor:
        embedding = self.guidance_embedding
        with frozen(self.unet):
            output = self.unet(
                z.to(self.unet.dtype),
                t,
                encoder_hidden_states=condition.text,
                timestep_cond=None if embedding is None else embedding.expand(len(z), -1),
                added_cond_kwargs=dict(condition.added) or None,
                return_dict=False,
            )[0]
        return output.to(z.dtype)


def to_noise(output: Tensor, z: Tensor, alpha_bar: float, prediction_type: str) -> Tensor:
    """The noise that a network's ``output`` means at ``z``; ``alpha_bar`` in (0, 1)."""
    a, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return a * output + sigma * z
    return (z - a * output) / sigma
