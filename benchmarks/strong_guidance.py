"""What strong guidance takes of an inversion, and what does not help: ``python -m benchmarks.strong_guidance``.

The tables of docs/inversion.md: more evaluations, homotopy in guidance, several starts, a stricter safeguard, even
shares, longer memory, Adam on the seed, and corrections. For each attempt: PSNR, the share of images below 20 dB,
latent MSE (mean, median, largest), the evaluations a step that were spent and the share of steps solved to 1e-6.

    python -m benchmarks.strong_guidance --drawings 128 --device cuda
    python -m benchmarks.strong_guidance --drawings 2 --steps 4 --attempts evaluations homotopy
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from benchmarks.inversion import CONFIGS, load
from experiments.data.concepts import select_concepts
from experiments.evaluation.metrics import psnr
from experiments.inversion.jobs import from_concepts
from rnri import (
    ImplicitInverter,
    Inversion,
    LatentDiffusion,
    NewtonKrylov,
    NoisePredictor,
    RoundTripCorrected,
    SafeguardedAnderson,
    Schedule,
    Solution,
    anderson_inverter,
)
from rnri.inversion import _collect, _remember
from rnri.models.sampling import LatentCallback, no_callback, to_state_dtype
from rnri.solvers.implicit import ImplicitStep

TOLERANCE = 1e-6
Attempt = tuple[str, Callable[[], tuple[Tensor, float, float]]]
"""What it is called, and what gives seeds ``[B,C,h,w]``, evaluations a step and the share of steps solved."""


@dataclass(frozen=True)
class Rungs:
    """Each step at rising guidance, each rung from where the one before ended.

    Attributes:
        rungs: the predictors, the last of which is the sampler's.
        evaluations: of a rung, at most.
        several: the last rung besides from the extrapolated start and from ``z_s``; the smallest residual is kept.
    """

    rungs: Sequence[NoisePredictor]
    nfe: int
    several: bool = False

    @torch.no_grad()
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        inverter = ImplicitInverter(SafeguardedAnderson(self.nfe, TOLERANCE), "fitted")
        z, noises, solutions = to_state_dtype(z0), [], []
        for i in reversed(range(len(schedule))):
            problem = ImplicitStep.of(z, predictor, schedule, i)
            start = own = inverter._start(problem, noises)
            spent = torch.zeros(len(z), dtype=torch.int64)
            for rung in self.rungs:
                found = inverter.solver(replace(problem, predictor=rung), own)
                own, spent = found.z, spent + found.nfe
            for other in (start, problem.z_s) if self.several else ():
                again = inverter.solver(problem, other)
                found, spent = _better(found, again), spent + again.nfe
            noises = _remember(noises, problem, found)
            solutions.append(replace(found, nfe=spent))
            z = found.z
        return _collect(z0, z, solutions)


def _better(one: Solution, other: Solution) -> Solution:
    """By sample the solution with the smaller residual."""
    rows = other.residual < one.residual
    at = rows.to(one.z.device).view(-1, 1, 1, 1)
    z, f = torch.where(at, other.z, one.z), torch.where(at, other.f, one.f)
    residual, converged = (
        torch.where(rows, other.residual, one.residual),
        torch.where(rows, other.converged, one.converged),
    )
    return replace(one, z=z, f=f, residual=residual, converged=converged)


@dataclass(frozen=True)
class Study:
    """Drawings under strong guidance: images ``[B,3,H,W]``, their latents, prompts and the sampler."""

    model: LatentDiffusion
    images: Tensor
    z0: Tensor
    prompts: list[str]
    schedule: Schedule
    guidance: float

    @classmethod
    def of(cls, device: str, drawings: int, steps: int, guidance: float) -> Study:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            source = instantiate(compose("train", ["experiment=guidance"]).data.source)
        chosen = select_concepts(source.concepts(), "all", ["head", "medium", "tail"], 0)
        shown = from_concepts(chosen, drawings, torch.Generator().manual_seed(0))
        model = load("emoji", device, "float32")
        images = torch.stack([each.image for each in shown]).to(device).float() / 255
        with torch.no_grad():
            z0 = model.encode(images)
        return cls(model, images, z0, [each.prompt for each in shown], model.schedule(steps), guidance)

    def predictor(self, guidance: float | None = None) -> NoisePredictor:
        return self.model.predictor(self.prompts, guidance or self.guidance)

    def inverted(self, inverter: object) -> tuple[Tensor, float, float]:
        found = inverter.invert(self.z0, self.predictor(), self.schedule)
        return found.seed, found.nfe.double().mean().item(), found.solved.double().mean().item()

    def optimized(self, nfe: int, iterations: int) -> tuple[Tensor, float, float]:
        """Adam on the seed through the sampler, from an inversion; the best seed of each image."""
        seed, spent, solved = self.inverted(anderson_inverter(nfe))
        x = seed.float().requires_grad_(True)
        adam, best, kept = torch.optim.Adam([x], lr=0.01), torch.full((len(x),), torch.inf).to(x), x.detach().clone()
        for _ in range(iterations):
            z = self.model.sample(x, self.predictor(), self.schedule, checkpoint=True)
            loss = (z - self.z0).square().flatten(1).mean(1)
            better = loss.detach() < best
            best, kept = (
                torch.where(better, loss.detach(), best),
                torch.where(better.view(-1, 1, 1, 1), x.detach(), kept),
            )
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
        return kept, spent + 4 * iterations, solved  # checkpoints compute each step twice; a derivative counts two

    @torch.no_grad()
    def line(self, name: str, seed: Tensor, spent: float, solved: float) -> str:
        z = self.model.sample(seed, self.predictor(), self.schedule)
        error = (z.double() - self.z0.double()).square().flatten(1).mean(1).cpu()
        decibels = psnr(self.model.decode(z.float()), self.images).cpu()
        return (f"{name:34s} {decibels.mean():6.2f} {100 * (decibels < 20).double().mean():5.0f} {error.mean():9.1e} "
                f"{error.median():9.1e} {error.max():9.1e} {spent:6.1f} {100 * solved:5.0f}")  # fmt: skip


def attempts(study: Study) -> dict[str, Iterator[Attempt]]:
    """By the names that ``--attempts`` takes."""

    def own(name: str, inverter: object) -> Attempt:
        return name, partial(study.inverted, inverter)

    def anderson(nfe: int, allocation: str = "by_difficulty", **changes: float) -> ImplicitInverter:
        return ImplicitInverter(SafeguardedAnderson(nfe, TOLERANCE, **changes), "fitted", allocation)

    def rungs(*guidances: float) -> list[NoisePredictor]:
        return [study.predictor(guidance) for guidance in (*guidances, study.guidance)]

    return {
        "nfe": (own(f"at most {k}", anderson_inverter(k)) for k in (2, 5, 8, 12, 20, 40)),
        "homotopy": (
            own(f"{name}, {k} a rung", Rungs(rungs(*ladder), k))
            for k in (5, 12)
            for name, ladder in (("2.5, 5, 7.5", (2.5, 5.0)), ("from 1 in five", (1.0, 2.5, 4.0, 5.5)))
        ),
        "starts": (own(f"three rungs, three starts, {k}", Rungs(rungs(2.5, 5.0), k, several=True)) for k in (5,)),
        "growth": (own(f"growth {g}, at most {k}", anderson(k, growth=g)) for k in (5, 8, 12) for g in (1.0, 1.3)),
        "allocation": (own(f"even shares, at most {k}", anderson(k, "uniform")) for k in (5, 8, 12)),
        "memory": (own(f"memory 8, at most {k}", anderson(k, memory=8)) for k in (5, 8, 12)),
        "krylov_dim": (
            own(f"newton_krylov, at most {k}", ImplicitInverter(NewtonKrylov(k, TOLERANCE), "fitted")) for k in (12,)
        ),
        "adam": ((f"Adam, {k} iterations", partial(study.optimized, 5, k)) for k in (15,)),
        "corrections": (
            own(
                f"{rounds} corrections of {d}, at most {k}",
                RoundTripCorrected(anderson_inverter(k), rounds, d, tolerance=0),
            )
            for k in (12, 20)
            for d in (0.5, 1.0)
            for rounds in (1, 2, 3)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["nfe", "homotopy", "starts", "growth", "allocation", "memory", "krylov_dim", "adam", "corrections"]
    parser.add_argument("--attempts", nargs="+", default=names, choices=names)
    parser.add_argument("--drawings", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # sampling magnifies its rounding
    study = Study.of(options.device, options.drawings, options.steps, options.guidance)
    print(f"{'attempt':34s} {'dB':>6s} {'<20 %':>5s} {'mean':>9s} {'median':>9s} {'largest':>9s} {'spent':>6s} "
          f"{'1e-6 %':>5s}")  # fmt: skip
    found = attempts(study)
    for name in options.attempts:
        for said, attempt in found[name]:
            print(study.line(said, *attempt()), flush=True)


if __name__ == "__main__":
    main()
