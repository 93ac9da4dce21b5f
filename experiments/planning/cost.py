"""About what a run costs, told before it begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.cache.key import describe
from experiments.cache.store import synchronize
from experiments.runtime.progress import announce, timed
from rnri import Inverter, LatentDiffusion, Schedule, with_measured_residuals
from rnri.models.predictor import Condition, NoisePredictor

BACKWARD = 2  # evaluations that a derivative costs


@dataclass(frozen=True)
class Cost:
    """Network evaluations and decodings, of one image each, and how many of them are differentiated besides.

    Guidance's second row is an evaluation of its own.
    """

    forward: float = 0.0
    decodings: float = 0.0
    backward: float = 0.0
    decodings_backward: float = 0.0

    @property
    def nfe(self) -> float:
        """Network evaluations, a derivative counted as two more."""
        return self.forward + BACKWARD * self.backward

    @property
    def decoded(self) -> float:
        """Decodings, counted likewise."""
        return self.decodings + BACKWARD * self.decodings_backward

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self._counts(), other._counts(), strict=True)))

    def times(self, count: float) -> Cost:
        return Cost(*(count * value for value in self._counts()))

    def _counts(self) -> tuple[float, float, float, float]:
        return self.forward, self.decodings, self.backward, self.decodings_backward


@dataclass(frozen=True)
class Planned:
    """A stage of a run: its units, how many of them are on disk, what the others cost, and what all of it leaves."""

    stage: str
    units: int
    done: int
    cost: Cost
    size: float = 0.0  # bytes on disk


def rows_of(guidance: float) -> int:
    """Rows that an image has in the network's batch: guidance adds the negative prompt's."""
    return 1 if guidance == 1 else 2


@dataclass(frozen=True)
class Restless:
    """A denoiser for counting: no equation of its predictions is ever solved, so that no method stops early.

    ``rows`` collects the rows that a network would have had in each call.
    """

    rows: list[int]
    guidance: float
    positive: Condition
    negative: Condition | None

    def __call__(self, z: Tensor, t: float) -> Tensor:
        self.rows.append(len(z) * (1 if self.negative is None else 2))
        shift = sum(each.text.mean((1, 2)) for each in (self.positive, self.negative) if each is not None)
        return torch.sin(1e3 * z + 0.01 * t + shift.view(-1, 1, 1, 1).to(z.dtype))

    def select(self, rows: Tensor) -> Restless:
        negative = None if self.negative is None else self.negative.select(rows)
        return replace(self, positive=self.positive.select(rows), negative=negative)

    def unguided(self) -> Restless:
        return replace(self, guidance=1.0, negative=None)


def inversion_cost(inverter: Inverter, schedule: Schedule, guidance: float, channels: int, whole: bool = False) -> Cost:
    """What ``inverter`` takes of one image if it never stops early: counted, on a denoiser that costs nothing.

    Args:
        channels: of the latents.
        whole: with the reconstruction and the measurement of every residual.
    """
    key = json.dumps([describe(inverter), schedule.timesteps.tolist(), guidance, channels, whole])
    if key not in _COUNTED:
        _COUNTED[key] = _counted(inverter, schedule, guidance, channels, whole)
    return _COUNTED[key]


_COUNTED: dict[str, Cost] = {}


def _counted(inverter: Inverter, schedule: Schedule, guidance: float, channels: int, whole: bool) -> Cost:
    condition, rows = Condition(torch.zeros(1, 1, 1)), list[int]()
    denoiser = Restless(rows, guidance, condition, None if guidance == 1 else condition)
    predictor, path = NoisePredictor(denoiser), list[Tensor]()
    z0 = torch.linspace(-1, 1, channels * 16).view(1, channels, 4, 4)
    found = inverter.invert(z0, predictor, schedule, lambda _, z: path.append(z))
    if whole:
        with torch.no_grad():
            inverter.reconstruct(found, predictor, schedule)
        with_measured_residuals(found, path, predictor, schedule, 1e-4)
    counted = predictor.nfe
    a_call = sum(rows) / counted.forward if counted.forward else 1.0
    return Cost(forward=sum(rows), backward=counted.backward * a_call)


def announce_cost(
    cost: Cost, units: int, done: int, unit: str, *, model: LatentDiffusion, prompts: Sequence[str], processes: int
) -> None:
    """Prints what is to be computed and about how long it takes, from the times of a few calls on noise.

    Args:
        cost: of the units that are not ``done``.
        prompts: of a batch like those of the run.
        processes: that share the units.
    """
    announce(units, cost.nfe, seconds_of(cost, model, prompts) / processes, unit=unit, done=done)


def seconds_of(cost: Cost, model: LatentDiffusion, prompts: Sequence[str]) -> float:
    """About how long ``model`` takes for ``cost``, from a few calls on noise in a batch of ``prompts``."""
    if not cost.forward:
        return 0.0
    predictor, t = model.predictor(prompts), model.schedule(1).timestep(0)
    noise = model.noise(range(len(prompts)), 0)
    with torch.no_grad():
        network = timed(lambda: predictor(noise, t), lambda: synchronize(noise.device)) / len(prompts)
        decoder = timed(lambda: model.decode(noise), lambda: synchronize(noise.device)) / len(prompts)
    return cost.nfe * network + cost.decoded * decoder
