"""Inversion: computes the initial noise (seed) from which the sampler generates a given clean latent."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from rnri.models.predictor import NoisePredictor, to_device
from rnri.models.sampling import LatentCallback, no_callback, sample, to_state_dtype
from rnri.models.schedule import Schedule
from rnri.solvers.budget import NfeBudget
from rnri.solvers.extrapolation import PredictionHistory
from rnri.solvers.implicit import ImplicitStep, Solution, Solver, mean_absolute
from rnri.solvers.parameterization import Parameterization, relaxation_factor
from rnri.solvers.secants import Secants
from rnri.validation import ConfigError, dataclass

NFE_PER_BACKWARD = 2
"""Assumed cost of one backward pass, in network evaluations."""
FIRST_ANCHORED_STEP = 2
"""Index (from 0) of the first inversion step in which SelFix extrapolates the trajectory, as in the authors' code."""


@dataclasses.dataclass(frozen=True, repr=False)
class Inversion:
    """The seeds (initial noise) of a batch of images, with the residuals and the cost of the inversion.

    Tensors of shape ``[N,B]``, for N inversion steps and B images, are on the CPU. Row ``k`` of a tensor ``[N,B]``
    belongs to inversion step ``k``; step 0 starts at the clean latent. Network evaluations before the first inversion
    step are counted in row 0.

    Attributes:
        seed: ``[B,C,h,w]``, the seeds, float64 (float32 on MPS).
        z0: ``[B,C,h,w]``, the clean latents that were inverted: the input of ``invert``, unless the method adjusts its
            input.
        residuals: float64 ``[N,B]``, mean ``|z - f(z)|`` over a latent's elements, where ``z = f(z)`` is the equation
            of an inversion step. The residuals are NaN for methods that do not solve ``z = f(z)``, and for inversion
            steps without a network evaluation.
        nfe: int64 ``[N,B]``, number of network evaluations.
        backward: int64 ``[N,B]``, number of backward passes.
        solved: bool ``[N,B]``, whether the inversion step converged or is exact by construction.
        seed_only: whether ``seed``, without ``aux``, is sufficient to reconstruct the image with the same predictor and
            schedule.
        aux: tensors that the method needs for reconstruction in addition to ``seed``; the first dimension of each
            tensor is the batch.
    """

    seed: Tensor
    z0: Tensor
    residuals: Tensor
    nfe: Tensor
    backward: Tensor
    solved: Tensor
    seed_only: bool = True
    aux: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        steps, images = self.nfe.shape
        residual = float(self.residual.max()) if images else float("nan")
        nfe = float(self.nfe.sum(0).double().mean())
        return (
            f"{type(self).__name__}({images} images, {steps} steps, residual {residual:.1e}, "
            f"{nfe:.4g} evaluations per image)"
        )

    @classmethod
    def from_solutions(cls, z0: Tensor, seed: Tensor, solutions: Sequence[Solution]) -> Inversion:
        """Return the inversion of ``z0`` from the solutions of all inversion steps, ordered from clean to noisy."""
        like = next((s.residual for s in solutions if s.residual.device.type != "cpu"), solutions[0].residual)
        residuals = torch.stack([s.residual.to(like.device, like.dtype, non_blocking=True) for s in solutions])
        solved = torch.stack([to_device(s.converged, like.device) for s in solutions])
        residuals, solved = torch.stack([residuals, solved.to(residuals.dtype)]).cpu().double()  # one GPU transfer
        return cls(
            seed=seed,
            z0=z0,
            residuals=residuals,
            nfe=torch.stack([solution.nfe for solution in solutions]),
            backward=torch.stack([solution.backward for solution in solutions]),
            solved=solved.bool(),
        )

    @property
    def residual_converged(self) -> Tensor:
        """Whether the residual of every inversion step of a sample is at most the tolerance, bool ``[B]``."""
        return self.solved.all(0)

    @property
    def residual(self) -> Tensor:
        """Maximum residual of each sample over its inversion steps, ``[B]``; NaN for a sample without any residual."""
        largest = self.residuals.nan_to_num(nan=-1.0, posinf=torch.inf).max(0).values
        return torch.where(largest < 0, torch.nan, largest)

    @property
    def aux_bytes(self) -> int:
        """Size of the auxiliary tensors ``aux`` in bytes per image."""
        return sum(tensor.nbytes for tensor in self.aux.values()) // len(self.seed)


class Inverter(ABC):
    """Base class of inversion methods; a subclass implements ``seed_only``, ``invert`` and ``reconstruct``."""

    @property
    @abstractmethod
    def seed_only(self) -> bool:
        """Whether ``Inversion.seed``, without ``Inversion.aux``, is sufficient to reconstruct the latent."""

    @property
    def initial_guess(self) -> str | None:
        """Name of the solver's initial guess; None for methods that do not solve an equation ``z = f(z)``."""
        return None

    @abstractmethod
    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds of the clean latents ``z0 [B,C,h,w]``.

        After each inversion step ``k`` (step 0 starts at the clean latent), ``on_step(k, z)`` is called with the
        latents ``z [B,C,h,w]`` at the noisier end of this step.
        """

    @abstractmethod
    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that are sampled from the seeds and ``aux`` of ``inversion``."""

    def check_schedule(self, schedule: Schedule) -> None:  # noqa: B027, optional to override
        """Raise ValueError if ``invert`` does not support ``schedule``. By default every schedule is supported."""

    @property
    def nfe_per_step(self) -> float:
        """Estimated number of network evaluations per image and step; a backward pass counts as two evaluations.

        Subclasses whose number of evaluations per step is not 2 override this property. Methods that solve an implicit
        equation ``z = f(z)`` in each step return an upper bound.
        """
        return 2.0

    def with_nfe(self, nfe: int) -> Inverter:
        """Return a copy of the inverter that uses at most ``nfe`` forward network evaluations per step.

        Raises:
            ValueError: the inverter has a fixed number of evaluations per step. Subclasses with a variable number of
                evaluations override ``with_nfe``.
        """
        name = type(self).__name__
        raise ValueError(f"{name} has a fixed number of network evaluations per step; use another method.")


def check_schedule(method: object, schedule: Schedule) -> None:
    """Raise ValueError if ``method``, an inverter or an editor, does not support ``schedule``.

    The check does not evaluate the network.
    """
    check = getattr(method, "check_schedule", None)
    if check is not None:
        check(schedule)


@dataclass(frozen=True)
class ImplicitInverter(Inverter):
    """Inverts the sampler: solves ``z_t = A z_s + B y(z_t, t)`` for the noisier latent ``z_t`` in every inversion step.

    ``z_s`` is the cleaner latent, ``y`` is the network's prediction at timestep ``t``, and ``A`` and ``B`` are
    coefficients of the schedule. The inversion steps run from clean to noisy. Each equation is exactly one step of the
    sampler, so that the sampler reconstructs the clean latent from the seed of a converged inversion. Latents are
    float64; the network runs in its own dtype.

    On a zero-terminal-SNR schedule, the equation of the noisiest inversion step is nearly ``z = z``, because the
    coefficient ``A`` is about 1e-6. Therefore, with zero terminal SNR, the residual of the noisiest step is small for
    every seed and does not show whether the seed is correct.

    Attributes:
        solver: solves the equation of each inversion step.
        initial_guess: the latent at which the solver starts in inversion step ``k``. ``plain`` is the latent ``z_s`` at
            the cleaner end of the step (RNRI, Eq. 8). ``scaled`` is ``A z_s``, which is the guess ``plain`` for latents
            ``z / alpha``, scaled as in diffusers' ``EulerDiscreteScheduler``. ``extrapolated`` is
            ``A z_s + B (2 eps_{k-1} - eps_{k-2})`` with the noise predictions ``eps_{k-1}`` and ``eps_{k-2}`` of the
            last two inversion steps. ``fitted`` is ``A z_s + B (eps_{k-1} + beta (eps_{k-1} - eps_{k-2}))``. The factor
            ``beta`` in [0, 1.5] is fitted for each sample: with this factor, the extrapolation in the previous
            inversion step would have predicted ``eps_{k-1}`` with the smallest squared error. In the third inversion
            step, which has only two previous predictions, ``beta`` is 1/2. With ``extrapolated`` and ``fitted``, the
            first inversion step starts at ``z_s``, and the second inversion step starts at ``A z_s + B eps_0``. The
            noise predictions of previous steps are computed from the solutions of these steps, without network
            evaluations. With large steps or strong guidance, the guess ``extrapolated`` overshoots the solution.
        allocation: how the network evaluations, ``solver.iterations`` per step on average, are distributed over the
            inversion steps. With ``uniform``, every step has at most ``solver.iterations`` evaluations. With
            ``by_difficulty``, the number of evaluations of a step is proportional to the expected difficulty of the
            step (:mod:`rnri.solvers.budget`). Unlike with ``uniform``, evaluations that a sample does not use in one
            step become available to the later steps of the sample. A step without evaluations uses its extrapolated
            initial guess as the solution. As long as evaluations remain, a step has at least one evaluation if its
            initial guess is not extrapolated or if the fitted ``beta`` is 0. On a GPU, reading ``beta`` would
            synchronize the CPU with the GPU. For solvers with ``needs_no_wait``, ``beta`` is therefore not read, and a
            sample with ``beta`` 0 may get its evaluation in a later step instead.
        parameterization: the prediction (noise, velocity or clean latent) that an update of the fixed-point iteration
            keeps constant, see :mod:`rnri.solvers.parameterization`. The residual and the tolerance are defined in the
            same way for every parameterization. With two evaluations per step, ``native`` has the smallest measured
            reconstruction error on UNets, consistency models and flow matching. ``relaxed`` has a smaller error than
            ``native`` on UNets with one evaluation per step, and a slightly smaller error than ``native`` on all models
            with five evaluations per step.
        extra_evaluations: number of network evaluations of the whole inversion in addition to ``solver.iterations`` per
            step. With one extra evaluation and one evaluation per step, an inversion uses N + 1 evaluations for N
            steps, as many as Uni-Inv and FireFlow.

    Raises:
        ConfigError: ``extra_evaluations`` is not 0 with a uniform allocation.
    """

    solver: Solver
    initial_guess: Literal["plain", "scaled", "extrapolated", "fitted"] = "plain"
    allocation: Literal["uniform", "by_difficulty"] = "uniform"
    parameterization: Parameterization = "native"
    extra_evaluations: NonNegativeInt = 0

    seed_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.extra_evaluations and self.allocation == "uniform":
            raise ConfigError(
                "extra_evaluations",
                f"must be 0 with allocation=uniform, got {self.extra_evaluations}; use allocation=by_difficulty.",
            )

    def invert(
        self, z0: Tensor, predictor: NoisePredictor, schedule: Schedule, on_step: LatentCallback = no_callback
    ) -> Inversion:
        """Return the seeds of the clean latents ``z0 [B,C,h,w]``.

        If a sample of ``z0`` contains infinity or NaN, its seed is not finite and its inversion steps do not converge.
        """
        z0 = to_state_dtype(z0.detach())
        z = z0
        history = PredictionHistory()
        secants = self._empty_secants(z0)
        budget = self._budget(schedule, len(z0))
        uses_anchor = getattr(self.solver, "uses_anchor", False)
        last_prediction: Tensor | None = None  # the prediction that leads from the previous to the current latent
        solutions: list[Solution] = []
        with torch.no_grad(), predictor.eval_mode():
            for k, i in enumerate(reversed(range(len(schedule)))):
                problem = self._problem(z, predictor, schedule, i, z_0=z0)
                if secants is not None:
                    problem = problem.with_secants(secants)
                if last_prediction is not None and k >= FIRST_ANCHORED_STEP:
                    problem = problem.with_anchor(last_prediction)
                guess = self.guess(problem, history)
                if budget is None:
                    solution = self.solver(problem, guess)
                else:
                    max_nfe = budget.allocate(k, partial(self._can_skip, history, len(z)))
                    solution = _solve_within(max_nfe, self.solver, problem, guess)
                    budget.consume(max_nfe, solution.nfe)
                if self.initial_guess != "plain":
                    history = history.append(problem, solution)
                if problem.recorder is not None:
                    secants = problem.recorder.secants
                if uses_anchor and problem.b != 0:
                    last_prediction = problem.prediction(solution.z)
                solutions.append(solution)
                z = solution.z
                on_step(k, z)
        return Inversion.from_solutions(z0, z, solutions)

    def reconstruct(self, inversion: Inversion, predictor: NoisePredictor, schedule: Schedule) -> Tensor:
        """Return the clean latents ``[B,C,h,w]`` that the schedule's sampler generates from the seeds."""
        with torch.no_grad():
            return sample(inversion.seed, predictor, schedule)

    @property
    def nfe_per_step(self) -> float:
        """Maximum number of the solver's network evaluations per step; a backward pass counts as two evaluations."""
        extra_nfe = getattr(self.solver, "extra_nfe", 0)
        backward_passes = getattr(self.solver, "backward_passes", 0)
        return extra_nfe + self.solver.iterations + NFE_PER_BACKWARD * backward_passes

    def with_nfe(self, nfe: int) -> ImplicitInverter:
        """Return a copy whose solver uses at most ``nfe`` forward network evaluations per step.

        Raises:
            ValueError: with only ``nfe`` evaluations, the solver would be DDIM inversion or another simpler method.
        """
        solver = replace(self.solver, iterations=nfe)  # type: ignore[type-var]
        min_nfe = getattr(solver, "min_nfe", 1)
        if nfe < min_nfe:
            raise ValueError(
                f"{type(solver).__name__} needs at least {min_nfe} network evaluations per step, got {nfe}; with fewer "
                "evaluations the solver equals DDIM inversion or the fixed-point iteration: choose method ddim or aidi."
            )
        return replace(self, solver=solver)

    def guess(self, problem: ImplicitStep, history: PredictionHistory) -> Tensor:
        """Return the initial guess ``[B,C,h,w]`` for the root of ``problem``; ``initial_guess`` selects the formula.

        ``history`` contains the network's predictions in previous inversion steps, which the guesses ``extrapolated``
        and ``fitted`` use.
        """
        if self.initial_guess == "scaled":
            return problem.a * problem.z_s
        if self.initial_guess == "plain" or not history:
            return problem.z_s
        return problem.a * problem.z_s + problem.b * history.extrapolate(fitted=self.initial_guess == "fitted")

    def _can_skip(self, history: PredictionHistory, batch_size: int) -> Tensor:
        """Return a mask of the samples that may use the initial guess as the solution, bool ``[B]``.

        Only an extrapolated initial guess can replace a network evaluation. With a fitted ``beta`` of 0, the guess is
        not extrapolated, because it only repeats the last prediction (:class:`PredictionHistory` defines ``beta``). On
        a GPU, reading ``beta`` would synchronize the CPU with the GPU. Therefore, with a solver that otherwise needs no
        synchronization, the mask is True for all samples.
        """
        if self.initial_guess in ("plain", "scaled") or len(history) < 2:
            return torch.zeros(batch_size, dtype=torch.bool)
        is_on_device = history.predictions[-1].device.type != "cpu"
        if is_on_device and getattr(self.solver, "needs_no_wait", False):
            return torch.ones(batch_size, dtype=torch.bool)
        return (history.beta(fitted=self.initial_guess == "fitted") > 0).cpu()

    def _problem(
        self, z_s: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int, *, z_0: Tensor
    ) -> ImplicitStep:
        problem = ImplicitStep.from_schedule(z_s, predictor, schedule, i, z_0=z_0)
        return replace(problem, relaxation=relaxation_factor(self.parameterization, schedule, i))

    def _empty_secants(self, z: Tensor) -> Secants | None:
        carried = getattr(self.solver, "carried", 0)
        return Secants.zeros(z, carried) if carried else None

    def _budget(self, schedule: Schedule, batch_size: int) -> NfeBudget | None:
        if self.allocation == "uniform":
            return None
        return NfeBudget.from_schedule(schedule, self.solver.iterations, batch_size, self.extra_evaluations)


def _solve_within(max_nfe: Tensor, solver: Solver, problem: ImplicitStep, guess: Tensor) -> Solution:
    """Solve ``problem`` for the samples whose maximum number of evaluations ``max_nfe [B]`` is above 0.

    For samples with ``max_nfe`` 0, the solution is ``guess``, marked as not converged and with residual NaN.
    """
    if max_nfe.all():
        return solver(problem, guess, max_nfe)
    zero = torch.zeros_like(max_nfe)
    residual = torch.full(max_nfe.shape, torch.nan, dtype=torch.float64)
    solution = Solution(guess.clone(), residual, zero, zero.clone(), zero.bool(), guess.clone())
    rows = max_nfe.nonzero().flatten()
    if not len(rows):
        return solution
    partial_solution = solver(problem.select(rows), guess[to_device(rows, guess.device)], max_nfe[rows])
    names = [field.name for field in dataclasses.fields(Solution)]
    return Solution(
        **{name: _with_rows(getattr(solution, name), rows, getattr(partial_solution, name)) for name in names}
    )


def _with_rows(table: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Return a copy of ``table [B,...]`` on the device of ``values``, with the rows ``rows`` replaced by ``values``."""
    result = table.to(values.device, values.dtype, non_blocking=True)
    result[to_device(rows, values.device)] = values
    return result


@torch.no_grad()
def with_measured_residuals(
    inversion: Inversion, path: Sequence[Tensor], predictor: NoisePredictor, schedule: Schedule, *, tolerance: float
) -> Inversion:
    """Return ``inversion`` with the residuals of the latents in ``path``; ``solved`` is computed from these residuals.

    For a step that has not converged, some methods return the latent ``f(z_k)``, but store the residual of the previous
    iterate ``z_k`` (mean ``|z_k - f(z_k)|``) in ``Inversion.residuals``. Therefore this function evaluates the network
    at the latents of all inversion steps that are not marked as solved. The predictor counts the evaluations of this
    function, but ``Inversion.nfe`` does not include these evaluations. Inversions of every method are accepted. The
    residuals of methods that do not solve ``z = f(z)`` remain NaN, and the residuals of diverged steps remain ``inf``.

    Args:
        inversion: the inversion whose residuals are measured.
        path: the latents ``[B,C,h,w]`` after each inversion step, from clean to noisy, as passed to ``on_step``.
        predictor: the predictor with which the inversion was computed.
        schedule: the schedule with which the inversion was computed.
        tolerance: maximum measured residual of an inversion step that is marked as solved.
    """
    if inversion.residuals.isnan().all():
        return inversion
    residuals = inversion.residuals.clone()
    solved = inversion.solved.clone()
    for k, (z_s, z) in enumerate(pairwise([inversion.z0, *path])):
        rows = (~solved[k] & ~residuals[k].isinf()).nonzero().flatten()
        if len(rows):
            problem = ImplicitStep.from_schedule(z_s, predictor, schedule, len(schedule) - 1 - k).select(rows)
            z = z[rows.to(z.device)]
            residual = mean_absolute(z - problem(z)).cpu().double()
            residuals[k, rows] = residual.nan_to_num(nan=torch.inf, posinf=torch.inf)
            solved[k, rows] = residuals[k, rows] <= tolerance
    return replace(inversion, residuals=residuals, solved=solved)
