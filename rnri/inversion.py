"""Inversion: the walk from a clean latent to the seed that generates it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from rnri.models.predictor import NoisePredictor, to_device
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.solvers.anderson import SafeguardedAnderson
from rnri.solvers.budget import NfeBudget
from rnri.solvers.implicit import ImplicitStep, Solution, Solver, mean_absolute
from rnri.solvers.parameterization import Parameterization, relaxation_factor
from rnri.solvers.secants import Secants
from rnri.validation import ConfigError, dataclass

UNKNOWN_BETA, LARGEST_BETA = 0.5, 1.5  # of the fitted start
NFE_PER_BACKWARD = 2
"""Network evaluations that a backward pass is counted as."""


@dataclasses.dataclass(frozen=True)
class Inversion:
    """The seed of each image and how it was found.

    Row ``k`` of the tables is the ``k``-th step of the walk, the cleanest first; they lie on the CPU. What a
    method spends before the walk is counted in the first row.

    Attributes:
        seed: ``[B,C,h,w]``, float64 (float32 on MPS).
        z0: ``[B,C,h,w]``, the clean latents that were inverted: those given, unless the method adjusts them.
        residuals: float64 ``[N,B]``, mean ``|z - f(z)|`` over a latent's elements, as in
            ``Solution.residual``; NaN for methods that do not solve this equation, and where a step had no
            evaluation.
        evaluations, backward: int64 ``[N,B]``, network evaluations of the method.
        solved: bool ``[N,B]``, whether the step converged, or is inverted exactly by construction.
        single_latent: whether ``seed`` alone, with the same predictor and schedule, gives the image back.
        extra: what the method needs to reconstruct besides the seed, each with the batch first.
    """

    seed: Tensor  # [B,C,h,w]
    z0: Tensor  # [B,C,h,w]
    residuals: Tensor
    nfe: Tensor
    backward: Tensor
    solved: Tensor
    seed_only: bool = True
    aux: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def converged(self) -> Tensor:
        """Whether every step of a sample converged, bool ``[B]``."""
        return self.solved.all(0)

    @property
    def residual(self) -> Tensor:
        """A sample's largest residual over the steps that have one, ``[B]``; NaN if none has."""
        largest = self.residuals.nan_to_num(nan=-1.0, posinf=torch.inf).max(0).values
        return torch.where(largest < 0, torch.nan, largest)

    @property
    def aux_bytes(self) -> int:
        """Bytes an image that must be kept besides the seed."""
        return sum(tensor.nbytes for tensor in self.aux.values()) // len(self.seed)


class Inverter(ABC):
    """Base class of inversion methods; a subclass implements ``invert`` and ``reconstruct``.

    Attributes:
        seed_only: whether ``Inversion.seed`` alone reconstructs the latent, without ``Inversion.aux``.
        initial_guess: how each implicit step is initialized; None for methods that solve no implicit step.
    """

    seed_only: bool
    initial_guess: str | None = None

    @abstractmethod
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds of the clean latents ``z0 [B,C,h,w]``.

        ``on_step(k, z)`` is called after each inversion step ``k`` (0 is the cleanest) with its latents ``[B,C,h,w]``.
        """

    @abstractmethod
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that are sampled from ``inversion``."""

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if ``invert`` does not support ``schedule``. By default every schedule is supported."""

    @property
    def nfe_per_step(self) -> float:
        """Estimated network evaluations per image and step, with a backward pass counted as two.

        The default of 2 suits most explicit methods. Implicit methods return an upper bound.
        """
        return 2.0

    def with_nfe(self, nfe: int) -> Inverter:
        """Return a copy that uses at most ``nfe`` forward network evaluations per step.

        Raises:
            ValueError: the method's number of evaluations is fixed (the default).
        """
        raise ValueError(f"{type(self).__name__} has a fixed number of network evaluations per step.")


def check_schedule(method: object, schedule: Schedule) -> None:
    """Raise ValueError if ``method``, an inverter or an editor, does not support ``schedule``; nothing is computed."""
    check = getattr(method, "check_schedule", None)
    if check is not None:
        check(schedule)


@dataclass(frozen=True)
class ImplicitInverter(Inverter):
    """Walks the schedule from clean to noisy and solves ``z_t = A z_s + B y(z_t, t)`` at every step.

    The equation is exactly the sampler's step, so a converged inversion reconstructs its latent. The state is
    float64 around a network in its own dtype.

    On a zero-terminal-SNR schedule the equation of the noisiest step is nearly ``z = z`` (A is about 1e-6):
    its residual is small whatever the seed, and says little.

    Attributes:
        solver: solves each step.
        start: where it starts. ``plain`` is the cleaner latent ``z_s`` (RNRI, Eq. 8). ``extrapolated`` is
            ``A z_s + B (2 eps_{k-1} - eps_{k-2})`` from the noise predictions of the two steps before (the
            second step has one and uses it alone, the first has none and starts at ``z_s``). They are
            recovered from the solutions, so it costs no evaluation. ``fitted`` is
            ``A z_s + B (eps_{k-1} + beta (eps_{k-1} - eps_{k-2}))`` with, for each sample, the ``beta`` in
            [0, 1.5] that would have served best one step before, and 1/2 where that is not known yet: with
            large steps or guidance the plain extrapolation overshoots.
        sharing: how the walk's evaluations, ``solver.iterations`` a step on average, are shared among its
            steps. ``even``: each step has ``solver.iterations`` at most, and what it saves is saved. ``schedule``:
            in proportion to what each step is likely to need (``rnri.solvers.budget``), and what a sample saves
            at one step by converging early it may spend at later ones. A step whose share rounds to nothing takes
            its extrapolated start as it is, unless the fit gave a sample a ``beta`` of 0: then, and from the plain
            start, a step has one evaluation at least, as long as there are any left.
        form: in which of the predictions the equation is iterated (:mod:`rnri.solvers.parameterization`); residual and tolerance
            mean the same in every one. With two evaluations a step ``own`` measures best on UNets, consistency models
            and flow matching; ``relaxed`` is ahead on UNets with one, and a little on all of them with five.
        besides: evaluations of the whole walk beside ``solver.iterations`` a step, shared with them: methods that take
            one a walk more, as Uni-Inv, are compared at equal numbers so.

    Raises:
        SettingError: evaluations besides, where each step has its own.
    """

    solver: Solver
    initial_guess: Literal["plain", "extrapolated", "fitted"] = "plain"
    allocation: Literal["uniform", "by_difficulty"] = "uniform"
    parameterization: Parameterization = "native"
    extra_evaluations: NonNegativeInt = 0

    seed_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.extra_evaluations and self.allocation == "uniform":
            raise ConfigError(
                "extra_evaluations",
                f"cannot be {self.extra_evaluations} with sharing=even; use sharing=schedule.",
            )

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """The seeds of ``z0 [B,C,h,w]``; a sample that is not finite stays so, unconverged."""
        z = z0 = to_state_dtype(z0.detach())
        noises: list[Tensor] = []
        solutions: list[Solution] = []
        carried = getattr(self.solver, "carried", 0)
        secants = Secants.none(z, carried) if carried else None
        shared = self.allocation == "by_difficulty"
        budget = NfeBudget.of(schedule, self.solver.iterations, len(z0), self.extra_evaluations) if shared else None
        with torch.no_grad():
            for k, i in enumerate(reversed(range(len(schedule)))):
                problem = ImplicitStep.of(z, predictor, schedule, i, z0)
                problem = replace(problem, relaxation=relaxation_factor(self.parameterization, schedule, i))
                if secants is not None:
                    problem = problem.with_secants(secants)
                start = self._start(problem, noises)
                if budget is None:
                    solution = self.solver(problem, start)
                else:
                    limits = budget.limits(k, lambda noises=noises, z=z: self._can_skip(noises, len(z)))
                    solution = _solve_some(self.solver, problem, start, limits)
                    budget.consume(limits, solution.nfe)
                noises = _remember(noises, problem, solution)
                if secants is not None:
                    secants = problem.trail.secants
                solutions.append(solution)
                z = solution.z
                on_step(k, z)
        return _collect(z0, z, solutions)

    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Samples from the seed."""
        with torch.no_grad():
            return sample(inversion.seed, predictor, schedule)

    @property
    def nfe_per_step(self) -> float:
        """Upper bound of the solver's network evaluations per step, with a backward pass counted as two."""
        needs_grad = getattr(self.solver, "needs_grad", False)
        return self.solver.iterations * (1 + NFE_PER_BACKWARD * needs_grad)

    def with_nfe(self, nfe: int) -> ImplicitInverter:
        """Return a copy whose solver uses at most ``nfe`` forward evaluations per step."""
        return replace(self, solver=replace(self.solver, iterations=nfe))

    def _start(self, problem: ImplicitStep, noises: list[Tensor]) -> Tensor:
        if self.initial_guess == "plain" or not noises:
            return problem.z_s
        return problem.a * problem.z_s + problem.b * _extrapolation(noises, fitted=self.initial_guess == "fitted")

    def _can_skip(self, noises: list[Tensor], batch: int) -> Tensor:
        """Whether a start is a solution worth taking unevaluated, bool ``[B]``: one extrapolated from a change.

        Where the fit found that a change of the noise says nothing of the next, the start is only the last noise.
        """
        if self.initial_guess == "plain" or len(noises) < 2:
            return torch.zeros(batch, dtype=torch.bool)
        return (_continuation(noises, self.initial_guess == "fitted") > 0).cpu()


@torch.no_grad()
def with_measured_residuals(
    inversion: Inversion, path: Sequence[Tensor], predictor: NoisePredictor, schedule: Schedule, tolerance: float
) -> Inversion:
    """``inversion`` with the residuals of the very latents that it returned, and ``solved`` with them.

    Where a method did not evaluate what it returned, that is done here, for the measurement alone: the predictor
    counts these evaluations, ``Inversion.nfe`` does not. It serves every inverter; one that solves no such
    equation keeps its NaN, and what diverged keeps its ``inf``.

    Args:
        path: the latents ``[B,C,h,w]`` after each step of the walk, the cleanest first, as ``on_step`` got them.
        tolerance: on a residual that is measured here, for its step to be solved.
    """
    if inversion.residuals.isnan().all():
        return inversion
    residuals, solved = inversion.residuals.clone(), inversion.solved.clone()
    for k, (z_s, z) in enumerate(pairwise([inversion.z0, *path])):
        rows = (~solved[k] & ~residuals[k].isinf()).nonzero().flatten()
        if len(rows):
            problem = ImplicitStep.of(z_s, predictor, schedule, len(schedule) - 1 - k).select(rows)
            z = z[rows.to(z.device)]
            residuals[k, rows] = (
                mean_absolute(z - problem(z)).cpu().double().nan_to_num(nan=torch.inf, posinf=torch.inf)
            )
            solved[k, rows] = residuals[k, rows] <= tolerance
    return replace(inversion, residuals=residuals, solved=solved)


def anderson_inverter(
    nfe_per_step: PositiveInt = 2, tolerance: NonNegativeFloat = 1e-6, parameterization: Parameterization = "native", extra_evaluations: NonNegativeInt = 0
) -> ImplicitInverter:
    """The default inverter: what measures best in ``experiment=reconstruction``.

    Safeguarded Anderson acceleration from the fitted start, with ``nfe`` network evaluations a step on average,
    and ``extra_evaluations`` a walk, shared among the steps by their difficulty, and samples leaving the batch step by step as
    their residual reaches ``tolerance``. It is tighter than the paper's 1e-4 (appendix G): sampling under strong
    guidance magnifies what remains of the residual, up to a thousandfold.
    """
    solver = SafeguardedAnderson(nfe_per_step, tolerance)
    return ImplicitInverter(solver, initial_guess="fitted", allocation="by_difficulty", parameterization=parameterization, extra_evaluations=extra_evaluations)


def _extrapolation(noises: list[Tensor], fitted: bool) -> Tensor:
    """The next noise prediction ``[B,C,h,w]``, linearly from the last two, or three where ``fitted``."""
    if len(noises) == 1:
        return noises[-1]
    beta = _continuation(noises, fitted).view(-1, 1, 1, 1)
    return noises[-1] + beta * (noises[-1] - noises[-2])


def _continuation(noises: list[Tensor], fitted: bool) -> Tensor:
    """The share ``beta [B]`` of the last change of the noise that the next one is expected to have."""
    if not fitted:
        return noises[-1].new_ones(len(noises[-1]))
    if len(noises) == 2:
        return noises[-1].new_full((len(noises[-1]),), UNKNOWN_BETA)
    change, before = (noises[-1] - noises[-2]).flatten(1), (noises[-2] - noises[-3]).flatten(1)
    beta = (change * before).sum(1) / before.square().sum(1).clamp(min=torch.finfo(before.dtype).tiny)
    return beta.clamp(0, LARGEST_BETA)


def _solve_some(solver: Solver, problem: ImplicitStep, start: Tensor, limits: Tensor) -> Solution:
    """The solution of the samples that have evaluations to spend; the others' is their start, its residual NaN."""
    if limits.all():
        return solver(problem, start, limits)
    none = torch.zeros_like(limits)
    z, f, residual = start.clone(), start.clone(), torch.full(limits.shape, torch.nan, dtype=torch.float64)
    solution = Solution(z, residual, none, none.clone(), none.bool(), f)
    rows = limits.nonzero().flatten()
    if len(rows):
        at = to_device(rows, start.device)
        found = solver(problem.select(rows), start[at], limits[rows])
        for name in ("z", "f"):
            getattr(solution, name)[at] = getattr(found, name)
        for name in ("residual", "nfe", "backward", "converged"):
            getattr(solution, name)[rows] = getattr(found, name)
    return solution


def _remember(noises: list[Tensor], problem: ImplicitStep, solution: Solution) -> list[Tensor]:
    """The last three noise predictions, oldest first, with this step's; a step with B = 0 tells none."""
    if problem.b == 0:
        return noises
    noise = problem.prediction(solution.f)
    lost = solution.residual.isinf()
    if noises and lost.any():  # a sample whose step had no finite evaluation keeps its last one
        noise = torch.where(to_device(lost, noise.device).view(-1, 1, 1, 1), noises[-1], noise)
    return [*noises[-2:], noise]


def _collect(z0: Tensor, seed: Tensor, solutions: list[Solution]) -> Inversion:
    return Inversion(
        seed=seed,
        z0=z0,
        residuals=torch.stack([solution.residual for solution in solutions]),
        nfe=torch.stack([solution.nfe for solution in solutions]),
        backward=torch.stack([solution.backward for solution in solutions]),
        solved=torch.stack([solution.converged for solution in solutions]),
    )
