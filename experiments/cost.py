"""About what a run costs, told before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from experiments.results.progress import announce, timed
from experiments.results.store import synchronise
from rnri import ImplicitInverter, Inverter, LatentDiffusion, PromptAware
from rnri.baselines import Midpoint

BACKWARD = 2  # evaluations that a derivative costs


@dataclass(frozen=True)
class Cost:
    """Network evaluations and decodings, of one image each; a derivative counts as two more of its kind."""

    evaluations: float = 0.0
    decodings: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.evaluations + other.evaluations, self.decodings + other.decodings)

    def times(self, count: float) -> Cost:
        return Cost(self.evaluations * count, self.decodings * count)


def rows_of(guidance: float) -> int:
    """Rows that an image has in the network's batch: guidance adds the negative prompt's."""
    return 1 if guidance == 1 else 2


def evaluations_a_step(inverter: Inverter) -> float:
    """About how many network evaluations an image and step ``inverter`` takes.

    At most so many where it walks implicitly; of other methods two, what most of them take.
    """
    if isinstance(inverter, PromptAware):
        return evaluations_a_step(inverter.inverter)
    if isinstance(inverter, ImplicitInverter):
        differentiates = getattr(inverter.solver, "differentiates", False)
        return inverter.solver.iterations * (1 + BACKWARD * differentiates)
    if isinstance(inverter, Midpoint):
        return 2 * evaluations_a_step(inverter.inverter)
    return 2.0


def announce_cost(
    cost: Cost, units: int, done: int, unit: str, *, model: LatentDiffusion, prompts: Sequence[str], processes: int
) -> None:
    """Prints what is to be computed and about how long it takes, from the times of a few calls on noise.

    Args:
        cost: of the units that are not ``done``.
        prompts: of a batch like those of the run.
        processes: that share the units.
    """
    network = decoder = 0.0
    if cost.evaluations:
        predictor, t = model.predictor(prompts), model.schedule(1).timestep(0)
        noise = model.noise(range(len(prompts)), 0)
        with torch.no_grad():
            network = timed(lambda: predictor(noise, t), lambda: synchronise(noise.device)) / len(prompts)
            decoder = timed(lambda: model.decode(noise), lambda: synchronise(noise.device)) / len(prompts)
    seconds = (cost.evaluations * network + cost.decodings * decoder) / processes
    announce(units, cost.evaluations, seconds, unit=unit, done=done)
