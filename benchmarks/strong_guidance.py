"""Measure the errors of variants of inversion with a large guidance scale: ``python -m benchmarks.strong_guidance``.

The results are in the tables of docs/results/inversion.md. The variants (candidates) are:

- more network evaluations;
- homotopy in the guidance scale, which solves each step at increasing guidance scales;
- several initial guesses;
- a stricter safeguard of the solver (a smaller increase of the residual counts as a failure);
- the same maximum number of network evaluations in all steps;
- a longer memory of the solver (Anderson acceleration with more previous iterates);
- Newton's method with a Krylov solver;
- optimization of the seed with Adam;
- round-trip corrections.

For each candidate, the output contains the PSNR, the percentage of images with a PSNR below 20 dB, and the latent MSE
(mean, median and maximum). The output also contains the number of network evaluations per step, and the percentage of
steps with a residual (error of the equation that the step solves) of at most 1e-6.

    python -m benchmarks.strong_guidance --drawings 128 --device cuda
    python -m benchmarks.strong_guidance --drawings 2 --steps 4 --candidates nfe homotopy
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from benchmarks import arguments
from benchmarks.inversion import CONFIGS, load
from experiments.data.concepts import select_concepts
from experiments.evaluation.metrics import psnr
from experiments.inversion.jobs import from_concepts
from rnri import (
    ImplicitInverter,
    Inverter,
    LatentDiffusion,
    NewtonKrylov,
    NoisePredictor,
    RoundTripCorrected,
    SafeguardedAnderson,
    Schedule,
    Solution,
    anderson_inverter,
)
from rnri.solvers.implicit import ImplicitStep

TOLERANCE = 1e-6
"""An inversion step counts as solved if its residual is at most this value."""
Result = tuple[Tensor, float, float]
"""Seeds ``[B,C,h,w]``, number of network evaluations per step, and fraction of steps with a residual <= TOLERANCE."""
Candidate = tuple[str, Callable[[], Result]]
"""Name of a variant of inversion, and the function that inverts all images with the variant."""


@dataclass(frozen=True)
class GuidanceLadder:
    """A solver that solves the equation of a step at increasing guidance scales (homotopy).

    The solution at one guidance scale is the initial guess at the next guidance scale.

    Attributes:
        predictors: one noise predictor for each guidance scale. The last predictor has the guidance scale of the
            sampler.
        iterations: maximum number of network evaluations per guidance scale.
        tolerance: residual below which the equation of a step counts as solved.
        restarts: whether the equation at the last guidance scale is also solved from two other initial guesses. If
            True, the solution with the smallest residual is returned.
    """

    predictors: Sequence[NoisePredictor]
    iterations: int
    tolerance: float = TOLERANCE
    restarts: bool = False

    def __call__(self, problem: ImplicitStep, z_init: Tensor, max_nfe: Tensor | None = None) -> Solution:
        solver = SafeguardedAnderson(self.iterations, self.tolerance)
        z = z_init
        nfe = torch.zeros(len(z), dtype=torch.int64)
        for predictor in self.predictors:
            solution = solver(replace(problem, predictor=predictor), z)
            z = solution.z
            nfe = nfe + solution.nfe
        for initial in (z_init, problem.z_s) if self.restarts else ():
            other = solver(problem, initial)
            solution = select_better(solution, other)
            nfe = nfe + other.nfe
        return replace(solution, nfe=nfe)


def select_better(one: Solution, other: Solution) -> Solution:
    """Return the solution with the smaller residual for each sample, with the evaluation counts of ``one``."""
    is_better = other.residual < one.residual
    mask = is_better.to(one.z.device).view(-1, 1, 1, 1)
    return replace(
        one,
        z=torch.where(mask, other.z, one.z),
        value=torch.where(mask, other.value, one.value),
        residual=torch.where(is_better, other.residual, one.residual),
        converged=torch.where(is_better, other.converged, one.converged),
    )


@dataclass(frozen=True)
class Setup:
    """The model and the images (drawings) that are inverted with a large guidance scale.

    Attributes:
        model: text-to-image model.
        images: images ``[B,3,H,W]`` in [0, 1].
        z0: latents ``[B,C,h,w]`` of the images.
        prompts: prompts of the images.
        schedule: sampling schedule.
        guidance: guidance scale of the sampler.
    """

    model: LatentDiffusion
    images: Tensor
    z0: Tensor
    prompts: list[str]
    schedule: Schedule
    guidance: float

    @classmethod
    def load(cls, device: str, drawings: int, steps: int, guidance: float) -> Setup:
        """Load the emoji model, and images of the data source of ``experiment=guidance``.

        Args:
            device: PyTorch device.
            drawings: number of images.
            steps: number of sampling steps.
            guidance: guidance scale of the sampler.
        """
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            source = instantiate(compose("train", ["experiment=guidance"]).data.source)
        concepts = select_concepts(source.concepts(), "all", ["head", "medium", "tail"], 0)
        available = sum(len(concept.references) for concept in concepts)
        if drawings > available:
            raise ValueError(
                f"--drawings: must be at most {available}, the number of available drawings, got {drawings}."
            )
        selected = from_concepts(concepts, drawings, torch.Generator().manual_seed(0))
        model = load("emoji", device, "float32")
        images = torch.stack([drawing.image for drawing in selected]).to(device).float() / 255
        with torch.no_grad():
            z0 = model.encode(images)
        prompts = [drawing.prompt for drawing in selected]
        return cls(model, images, z0, prompts, model.schedule(steps), guidance)

    def predictor(self, guidance: float | None = None) -> NoisePredictor:
        """Return the noise predictor with the guidance scale ``guidance``. Default: guidance scale of the sampler."""
        return self.model.predictor(self.prompts, guidance or self.guidance)

    def invert(self, inverter: Inverter) -> Result:
        """Invert the latents of all images with ``inverter``."""
        inversion = inverter.invert(self.z0, self.predictor(), self.schedule)
        return inversion.seed, inversion.nfe.double().mean().item(), inversion.solved.double().mean().item()

    def optimize(self, nfe: int, iterations: int) -> Result:
        """Optimize the seeds with Adam to minimize the latent MSE of the sampled images.

        The gradient is computed through all sampling steps.

        Args:
            nfe: network evaluations per step of the inversion that initializes the seeds.
            iterations: number of iterations of Adam.

        Returns:
            The seeds with the smallest latent MSE over all iterations.
        """
        seed, nfe_per_step, solved = self.invert(anderson_inverter(nfe))
        x = seed.float().requires_grad_(True)
        adam = torch.optim.Adam([x], lr=0.01)
        best_loss = torch.full((len(x),), torch.inf).to(x)
        best = x.detach().clone()
        for _ in range(iterations):
            z = self.model.sample(x, self.predictor(), self.schedule, checkpoint=True)
            losses = (z - self.z0).square().flatten(1).mean(1)
            is_better = losses.detach() < best_loss
            best_loss = torch.where(is_better, losses.detach(), best_loss)
            best = torch.where(is_better.view(-1, 1, 1, 1), x.detach(), best)
            adam.zero_grad()
            losses.sum().backward()
            adam.step()
        # An iteration takes 4 NFE per step: 2 forward passes because of gradient checkpointing, and 2 for the backward
        # pass.
        return best, nfe_per_step + 4 * iterations, solved

    @torch.no_grad()
    def format_row(self, name: str, seed: Tensor, nfe: float, solved: float) -> str:
        """Sample images from seeds, and format the errors of the images as a row of the output."""
        z = self.model.sample(seed, self.predictor(), self.schedule)
        error = (z.double() - self.z0.double()).square().flatten(1).mean(1).cpu()
        decibels = psnr(self.model.decode(z.float()), self.images).cpu()
        below_20 = 100 * (decibels < 20).double().mean()
        return (
            f"{name:34s} {decibels.mean():6.2f} {below_20:5.0f} {error.mean():9.1e} {error.median():9.1e} "
            f"{error.max():9.1e} {nfe:6.1f} {100 * solved:8.0f}"
        )


GROUPS = ("nfe", "homotopy", "starts", "growth", "allocation", "memory", "newton_krylov", "adam", "corrections")
"""Names of the groups of variants, in the order of the list in the docstring of the module."""


def candidates(setup: Setup) -> dict[str, Iterator[Candidate]]:
    """Return the variants of inversion in each group of ``GROUPS``, by the name of the group."""

    def inversion(name: str, inverter: Inverter) -> Candidate:
        return name, partial(setup.invert, inverter)

    def anderson(nfe: int, allocation: str = "by_difficulty", **options: float) -> ImplicitInverter:
        return ImplicitInverter(SafeguardedAnderson(nfe, TOLERANCE, **options), "fitted", allocation)

    def ladder(*scales: float, nfe: int, restarts: bool = False) -> ImplicitInverter:
        predictors = [setup.predictor(scale) for scale in (*scales, setup.guidance)]
        return ImplicitInverter(GuidanceLadder(predictors, nfe, restarts=restarts), "fitted")

    def corrected(nfe: int, damping: float, rounds: int) -> RoundTripCorrected:
        return RoundTripCorrected(anderson_inverter(nfe), rounds, damping, tolerance=0)

    ladders = {"2.5, 5, 7.5": (2.5, 5.0), "from 1 in five": (1.0, 2.5, 4.0, 5.5)}
    newton_krylov = ImplicitInverter(NewtonKrylov(12, TOLERANCE), "fitted")
    return {
        "nfe": (inversion(f"at most {k}", anderson_inverter(k)) for k in (2, 5, 8, 12, 20, 40)),
        "homotopy": (
            inversion(f"{name}, {k} per scale", ladder(*scales, nfe=k))
            for k in (5, 12)
            for name, scales in ladders.items()
        ),
        "starts": iter([inversion("three scales, three starts, 5", ladder(2.5, 5.0, nfe=5, restarts=True))]),
        "growth": (
            inversion(f"growth {growth}, at most {k}", anderson(k, growth=growth))
            for k in (5, 8, 12)
            for growth in (1.0, 1.3)
        ),
        "allocation": (inversion(f"uniform, at most {k}", anderson(k, "uniform")) for k in (5, 8, 12)),
        "memory": (inversion(f"memory 8, at most {k}", anderson(k, memory=8)) for k in (5, 8, 12)),
        "newton_krylov": iter([inversion("newton_krylov, at most 12", newton_krylov)]),
        "adam": iter([("Adam, 15 iterations", partial(setup.optimize, 5, 15))]),
        "corrections": (
            inversion(f"{rounds} corrections of {damping}, at most {k}", corrected(k, damping, rounds))
            for k in (12, 20)
            for damping in (0.5, 1.0)
            for rounds in (1, 2, 3)
        ),
    }


def main() -> None:
    parser = arguments.Arguments(__doc__)
    parser.add_argument("--candidates", nargs="+", default=GROUPS, choices=GROUPS)
    parser.add_argument("--drawings", type=arguments.integer(), default=8)
    parser.add_argument("--steps", type=arguments.steps, default=20)
    parser.add_argument("--guidance", type=arguments.guidance, default=7.5)
    parser.add_argument("--device", type=arguments.device, default=arguments.default_device())
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # sampling with a large guidance scale amplifies rounding errors
    setup = Setup.load(options.device, options.drawings, options.steps, options.guidance)
    print(
        f"{'candidate':34s} {'PSNR':>6s} {'<20 %':>5s} {'mean MSE':>9s} {'median':>9s} {'max':>9s} {'NFE':>6s} "
        f"{'solved %':>8s}"
    )
    groups = candidates(setup)
    for group in options.candidates:
        for name, run in groups[group]:
            print(setup.format_row(name, *run()), flush=True)


if __name__ == "__main__":
    arguments.run(main)
