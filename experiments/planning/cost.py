"""Estimates the cost of a run before the run starts: network evaluations, decodings of latents and duration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.cache.key import fingerprint_config
from experiments.runtime.device import synchronize
from experiments.runtime.progress import print_estimate, timed
from rnri import Inverter, LatentDiffusion, Schedule, with_measured_residuals
from rnri.models.predictor import Condition, NoisePredictor

BACKWARD_COST = 2  # a backward pass costs as much as this number of forward evaluations


@dataclass(frozen=True)
class Cost:
    """Numbers of network evaluations and decodings of latents. A batch of n images counts as n evaluations.

    With classifier-free guidance, an image counts as two evaluations: one with the prompt, one with the negative
    prompt.

    Attributes:
        forward: number of forward evaluations of the denoising network.
        decodings: number of forward evaluations of the VAE's decoder.
        backward: number of backward passes through the denoising network.
        decodings_backward: number of backward passes through the VAE's decoder.
    """

    forward: float = 0.0
    decodings: float = 0.0
    backward: float = 0.0
    decodings_backward: float = 0.0

    @property
    def nfe(self) -> float:
        """Number of evaluations of the denoising network, where a backward pass counts as two evaluations."""
        return self.forward + BACKWARD_COST * self.backward

    @property
    def decoded(self) -> float:
        """Number of decodings of latents, where a backward pass through the decoder counts as two decodings."""
        return self.decodings + BACKWARD_COST * self.decodings_backward

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self._counts(), other._counts(), strict=True)))

    def times(self, count: float) -> Cost:
        return Cost(*(count * value for value in self._counts()))

    def _counts(self) -> tuple[float, float, float, float]:
        return self.forward, self.decodings, self.backward, self.decodings_backward


@dataclass(frozen=True)
class StagePlan:
    """Cost of a stage of a run, such as the inversion or the generation of images.

    A unit is a part of the run whose results are stored together, so that a resumed run does not compute the unit
    again.

    Attributes:
        stage: name of the stage.
        units: number of units (parts of the run whose results are stored together), finished or not.
        done: number of units whose results are already on disk.
        cost: total cost of the units whose results are not on disk.
        size: disk space of the results of all units, in bytes.
    """

    stage: str
    units: int
    done: int
    cost: Cost
    size: float = 0.0


def batch_multiplier(guidance: float) -> int:
    """Return the number of batch rows per image in a call of the denoising network: 2 with guidance, else 1.

    With classifier-free guidance, the network evaluates the prompt and the negative prompt of each image.
    """
    return 1 if guidance == 1 else 2


@dataclass(frozen=True)
class NeverConverging:
    """A formula that replaces a denoising network, to count the network evaluations of an inversion method.

    The fixed-point iterations of inversion methods do not converge with this formula. Therefore no method stops early,
    and the counted number of evaluations is the maximum.

    Attributes:
        rows: list to which each call appends the number of batch rows that the network would evaluate.
        guidance: guidance scale.
        positive: text condition of the prompt.
        negative: text condition of the negative prompt; None if there is no classifier-free guidance.
    """

    rows: list[int]
    guidance: float
    positive: Condition
    negative: Condition | None

    def __call__(self, z: Tensor, t: float) -> Tensor:
        self.rows.append(len(z) * (1 if self.negative is None else 2))
        shift = sum(each.text.mean((1, 2)) for each in (self.positive, self.negative) if each is not None)
        return torch.sin(1e3 * z + 0.01 * t + shift.view(-1, 1, 1, 1).to(z.dtype))

    def guided(self, negative: Tensor, positive: Tensor) -> Tensor:
        return negative + self.guidance * (positive - negative)

    def select(self, rows: Tensor) -> NeverConverging:
        negative = None if self.negative is None else self.negative.select(rows)
        return replace(self, positive=self.positive.select(rows), negative=negative)

    def unguided(self) -> NeverConverging:
        return replace(self, guidance=1.0, negative=None)


def inversion_cost(
    inverter: Inverter, schedule: Schedule, guidance: float, channels: int, *, all_steps: bool = False
) -> Cost:
    """Return the maximum number of network evaluations for the inversion of one image, as a :class:`Cost`.

    The network evaluations are counted by running the method with :class:`NeverConverging` instead of a network.

    Args:
        inverter: inversion method.
        schedule: sampling schedule.
        guidance: guidance scale.
        channels: number of channels of the latents.
        all_steps: whether the cost includes the reconstruction of the image and the measurement of the residual (error
            of the step's equation) of every step.
    """
    key = json.dumps([fingerprint_config(inverter), schedule.timesteps.tolist(), guidance, channels, all_steps])
    if key not in _COSTS:
        _COSTS[key] = _count(inverter, schedule, guidance, channels, all_steps=all_steps)
    return _COSTS[key]


_COSTS: dict[str, Cost] = {}


def _count(inverter: Inverter, schedule: Schedule, guidance: float, channels: int, *, all_steps: bool) -> Cost:
    condition = Condition(torch.zeros(1, 1, 1))
    rows: list[int] = []
    predictor = NoisePredictor(NeverConverging(rows, guidance, condition, None if guidance == 1 else condition))
    path: list[Tensor] = []
    z0 = torch.linspace(-1, 1, channels * 16).view(1, channels, 4, 4)
    inversion = inverter.invert(z0, predictor, schedule, lambda _, z: path.append(z))
    if all_steps:
        with torch.no_grad():
            inverter.reconstruct(inversion, predictor, schedule)
        with_measured_residuals(inversion, path, predictor, schedule, tolerance=1e-4)
    calls = predictor.nfe
    rows_per_call = sum(rows) / calls.forward if calls.forward else 1.0
    return Cost(forward=sum(rows), backward=calls.backward * rows_per_call)


def print_cost_estimate(
    cost: Cost, units: int, done: int, unit: str, *, model: LatentDiffusion, prompts: Sequence[str], processes: int
) -> None:
    """Print the number of network evaluations of a run and its duration, which is estimated from a few timed calls.

    Args:
        cost: total cost of the units whose results are not on disk.
        units: number of units (parts of the run whose results are stored together), finished or not.
        done: number of units whose results are already on disk.
        unit: name of a single unit in the printed text, such as ``concept``.
        model: the text-to-image model whose calls are timed.
        prompts: prompts of the timed batch. The number of prompts should be the batch size of the run.
        processes: number of processes that share the work.
    """
    print_estimate(units, cost.nfe, estimate_seconds(cost, model, prompts) / processes, unit=unit, done=done)


def estimate_seconds(cost: Cost, model: LatentDiffusion, prompts: Sequence[str]) -> float:
    """Return the estimated duration of ``cost`` in seconds on one device.

    The denoising network and the VAE decoder are timed on one batch of noise with the given ``prompts``.
    """
    if not cost.forward:
        return 0.0
    predictor = model.predictor(prompts)
    t = model.schedule(2).timestep(0)  # some schedulers need at least 2 steps
    noise = model.noise(range(len(prompts)), 0)
    with torch.no_grad():
        network = timed(lambda: predictor(noise, t), lambda: synchronize(noise.device)) / len(prompts)
        decoder = timed(lambda: model.decode(noise), lambda: synchronize(noise.device)) / len(prompts)
    return cost.nfe * network + cost.decoded * decoder
