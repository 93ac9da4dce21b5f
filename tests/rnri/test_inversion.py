"""Implicit inversion: exact seeds, initial guesses, allocation of evaluations, convergence and divergence."""

import itertools
from typing import ClassVar

import pytest
import torch
from diffusers import LCMScheduler
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rnri import (
    Anderson,
    AveragedFixedPoint,
    FixedPoint,
    ForwardStep,
    GradientDescent,
    ImplicitInverter,
    ImplicitStep,
    LatentDiffusion,
    NewtonKrylov,
    NoisePredictor,
    ReNoise,
    RNRIMinimumNorm,
    RNRIPaper,
    RNRISign,
    SafeguardedAnderson,
    Schedule,
    anderson_inverter,
    sample,
    with_measured_residuals,
)
from rnri.solvers.budget import FEW_STEPS_THRESHOLD, NfeBudget, difficulty
from rnri.solvers.extrapolation import PredictionHistory
from tests.pipelines import LATENT_SHAPE, tiny_stable_diffusion
from tests.problems import FunctionDenoiser, flow_schedule, function_predictor, gaussian, schedule, scheduler, wavy

SOLVERS = [
    FixedPoint(iterations=1, tolerance=0),
    FixedPoint(iterations=4, tolerance=1e-3),
    Anderson(iterations=4, tolerance=1e-3),
    RNRIPaper(iterations=3, tolerance=1e-3),
    RNRIPaper(iterations=2, keep_best=False),
    RNRISign(iterations=3, tolerance=1e-3),
    RNRIMinimumNorm(iterations=3, tolerance=1e-3),
    AveragedFixedPoint(iterations=4, tolerance=1e-3),
    ForwardStep(iterations=4, tolerance=1e-3, warmup=2, patience=1),
    GradientDescent(iterations=3, tolerance=1e-3),
    SafeguardedAnderson(iterations=5, tolerance=1e-3, growth=1),
    NewtonKrylov(iterations=9, tolerance=1e-3, krylov_dim=2),
    ReNoise(iterations=4, average_from=1),
]
SOLVER_IDS = [f"{type(solver).__name__}-{i}" for i, solver in enumerate(SOLVERS)]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize(
    "solver",
    [
        FixedPoint(400, tolerance=1e-13),
        AveragedFixedPoint(800, tolerance=1e-13),
        Anderson(60, tolerance=1e-13),
        SafeguardedAnderson(60, tolerance=1e-13),
        ForwardStep(2000, tolerance=1e-13),
        GradientDescent(2000, tolerance=1e-13),
        NewtonKrylov(200, tolerance=1e-13, krylov_dim=6),
    ],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize(
    ("guess", "allocation"), [("plain", "uniform"), ("extrapolated", "by_difficulty"), ("fitted", "by_difficulty")]
)
def test_gaussian_seeds_are_exact(solver, steps, guess, allocation):
    denoiser, z0 = gaussian(batch=3)
    inversion = ImplicitInverter(solver, guess, allocation).invert(z0, NoisePredictor(denoiser), schedule(steps))
    assert inversion.residual_converged.all()
    torch.testing.assert_close(inversion.seed, denoiser.seed(z0, schedule(steps)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("to_one", [True, False])
def test_round_trip_with_every_timestep_spacing(spacing, to_one):
    denoiser, z0 = gaussian(batch=2)
    steps = Schedule.from_scheduler(scheduler(timestep_spacing=spacing, set_alpha_to_one=to_one), 7)
    inverter = ImplicitInverter(Anderson(60, tolerance=1e-13), "extrapolated")
    predictor = NoisePredictor(denoiser)
    inversion = inverter.invert(z0, predictor, steps)
    torch.testing.assert_close(inverter.reconstruct(inversion, predictor, steps), z0, rtol=0, atol=1e-9)


def test_sampling_matches_closed_form():
    denoiser, _ = gaussian(batch=2)
    steps = schedule(6)
    seed = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    z = seed
    for i in range(6):
        z = denoiser.step(z, steps.alpha_bar[i].item(), steps.alpha_bar_next[i].item())
    torch.testing.assert_close(sample(seed, NoisePredictor(denoiser), steps), z, rtol=0, atol=1e-12)


def test_ddim_inversion_matches_closed_form():
    denoiser, z0 = gaussian(batch=2)
    steps = schedule(6)
    z = z0
    for i in reversed(range(6)):  # the network at the noisier timestep, but on the cleaner latent
        a, b = steps.coefficients(i)
        z = a * z + b * denoiser(z, int(steps.timesteps[i]))
    inversion = ImplicitInverter(FixedPoint(1, tolerance=0)).invert(z0, NoisePredictor(denoiser), steps)
    torch.testing.assert_close(inversion.seed, z, rtol=0, atol=1e-12)
    assert (inversion.nfe == 1).all()
    assert not inversion.residual_converged.any()


class LoggedFixedPoint(FixedPoint):
    """A fixed-point solver that appends every equation and initial guess to the class attribute ``calls``."""

    calls: ClassVar[list] = []

    def __call__(self, problem, z_init, max_nfe=None):
        self.calls.append((problem, z_init))
        return super().__call__(problem, z_init, max_nfe)


@pytest.fixture
def logged_solver():
    LoggedFixedPoint.calls.clear()
    return LoggedFixedPoint(1, tolerance=0)


def test_extrapolated_guess_by_hand(logged_solver):
    denoiser, z0 = gaussian(batch=1)
    predictor = NoisePredictor(denoiser)
    ImplicitInverter(logged_solver, "extrapolated").invert(z0, predictor, schedule(4))
    assert predictor.forward_evaluations == 4  # the guess needs none
    eps = [denoiser(z_init, problem.timestep) for problem, z_init in logged_solver.calls]
    expected = [None, eps[0], 2 * eps[1] - eps[0], 2 * eps[2] - eps[1]]
    for (problem, z_init), noise in zip(logged_solver.calls, expected, strict=True):
        guess = problem.z_s if noise is None else problem.a * problem.z_s + problem.b * noise
        torch.testing.assert_close(z_init, guess, rtol=0, atol=1e-12)


def test_extrapolated_guess_is_closer_than_plain():
    denoiser, z0 = gaussian(batch=4)
    steps = schedule(20)
    exact = denoiser.seed(z0, steps)
    errors = {}
    for guess in ("plain", "extrapolated"):
        inverter = ImplicitInverter(FixedPoint(1, tolerance=0), guess)
        seed = inverter.invert(z0, NoisePredictor(denoiser), steps).seed
        errors[guess] = (seed - exact).abs().mean()
    assert errors["extrapolated"] < errors["plain"] / 5


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion(tiny_stable_diffusion("v_prediction"))


@pytest.fixture(scope="module")
def exact_model():
    return LatentDiffusion(tiny_stable_diffusion("v_prediction").to(torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS, ids=SOLVER_IDS)
@pytest.mark.parametrize(("guess", "allocation"), [("plain", "uniform"), ("fitted", "by_difficulty")])
def test_result_does_not_depend_on_batch(exact_model, solver, guess, allocation):
    """In float64, so that rounding does not decide whether a residual is within the tolerance."""
    z0 = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    z0[1] *= 3  # converges later, or not at all
    prompts = ["a cat", "dog"]
    inverter = ImplicitInverter(solver, guess, allocation)
    steps = exact_model.schedule(3)
    batched = inverter.invert(z0, exact_model.predictor(prompts, 2.0), steps)
    tolerance = 1e-5 if isinstance(solver, RNRIPaper) else 1e-9  # Eq. 8 divides by derivatives near zero
    for i, prompt in enumerate(prompts):
        alone = inverter.invert(z0[i : i + 1], exact_model.predictor([prompt], 2.0), steps)
        torch.testing.assert_close(batched.seed[i], alone.seed[0], rtol=tolerance, atol=tolerance)
        assert torch.equal(batched.nfe[:, i], alone.nfe[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS, ids=SOLVER_IDS)
def test_counts_agree_with_the_predictor(model, solver):
    z0 = torch.randn(3, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    predictor = model.predictor(["a cat", "dog", "x"], 2.0)
    inversion = ImplicitInverter(solver).invert(z0, predictor, model.schedule(4))
    assert inversion.nfe.shape == inversion.backward.shape == (4, 3)
    assert inversion.nfe.sum() == predictor.forward_evaluations
    assert inversion.backward.sum() == predictor.backward_evaluations
    assert (inversion.backward.sum() > 0) == (solver.needs_grad or isinstance(solver, NewtonKrylov))


@pytest.mark.parametrize("solver", SOLVERS, ids=SOLVER_IDS)
@pytest.mark.parametrize("measure", [False, True])
def test_residuals_are_those_of_returned_latents(solver, measure):
    """The residual of a converged latent, computed again, is exactly the reported one."""
    z0 = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = schedule(10)
    inverter = ImplicitInverter(solver)
    path = [z0]
    predictor = function_predictor(wavy, 4)
    inversion = inverter.invert(z0, predictor, steps, on_step=lambda k, z: path.append(z))
    if measure:
        inversion = with_measured_residuals(inversion, path[1:], predictor, steps, tolerance=solver.tolerance)
    assert len(path) == 11
    assert torch.equal(path[-1], inversion.seed)
    for k, (z_s, z) in enumerate(itertools.pairwise(path)):
        problem = ImplicitStep.from_schedule(z_s, function_predictor(wavy, 4), steps, 9 - k)
        expected = (z - problem(z)).abs().flatten(1).mean(1)
        rows = torch.ones(4, dtype=torch.bool) if measure else inversion.solved[k]
        torch.testing.assert_close(inversion.residuals[k][rows], expected[rows])
        assert (expected[inversion.solved[k]] <= solver.tolerance).all()
    if measure and solver.tolerance == 0:
        assert predictor.forward_evaluations == inversion.nfe.sum() + 40


@pytest.mark.parametrize("solver", SOLVERS, ids=SOLVER_IDS)
def test_diverging_sample_is_reported_and_isolated(solver):
    def explosive(z, number):
        return torch.where(number == 1, torch.full_like(z, torch.nan), wavy(z, number))

    z0 = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inversion = ImplicitInverter(solver).invert(z0, function_predictor(explosive, 3), schedule(5))
    assert inversion.seed.isfinite().all()  # the last finite latent, here z0 itself
    assert torch.equal(inversion.seed[1], z0[1])
    assert inversion.residuals[:, 1].isinf().all() and not inversion.solved[:, 1].any()
    assert inversion.residual[1].isinf()
    rows = torch.tensor([0, 2])
    others = NoisePredictor(FunctionDenoiser(wavy, rows))
    alone = ImplicitInverter(solver).invert(z0[rows], others, schedule(5))
    torch.testing.assert_close(inversion.seed[rows], alone.seed, rtol=1e-9, atol=1e-9)


def test_growing_residual_is_not_converged():
    predictor = function_predictor(lambda z, number: torch.where(number == 1, 1e3 * z, 0.1 * z), 2)
    z0 = torch.ones(2, 2, 3, 3, dtype=torch.float64)
    inversion = ImplicitInverter(FixedPoint(20, tolerance=1e-6)).invert(z0, predictor, schedule(10))
    assert inversion.residual_converged.tolist() == [True, False]
    assert inversion.seed.isfinite().all() and inversion.residual[1] > 1


@pytest.mark.parametrize("solver", SOLVERS, ids=SOLVER_IDS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e200])
def test_nonfinite_latent_is_reported_and_isolated(solver, value):
    z0 = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z0[1, 0, 0, 0] = value
    path: list[torch.Tensor] = []
    predictor = function_predictor(wavy, 2)
    inverter = ImplicitInverter(solver)
    inversion = inverter.invert(z0, predictor, schedule(5), lambda k, z: path.append(z))
    inversion = with_measured_residuals(inversion, path, predictor, schedule(5), tolerance=solver.tolerance)
    alone = inverter.invert(z0[:1], function_predictor(wavy, 1), schedule(5))
    torch.testing.assert_close(inversion.seed[:1], alone.seed, rtol=1e-9, atol=1e-9)
    assert not inversion.residual_converged[1]
    assert not inversion.residual[1] <= solver.tolerance


def test_latents_are_float64_with_float32_network(model):
    z0 = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    predictor = model.predictor(["cat"])
    steps = model.schedule(4)
    inverter = ImplicitInverter(Anderson(iterations=30, tolerance=3e-6))
    inversion = inverter.invert(z0, predictor, steps)
    assert inversion.seed.dtype == torch.float64
    assert inversion.seed_only and not inversion.aux
    assert inversion.residual_converged.all()
    z = inverter.reconstruct(inversion, predictor, steps)
    torch.testing.assert_close(z.float(), z0, rtol=0, atol=1e-4)


def test_gradients_within_no_grad_and_inference_mode(model):
    z0 = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    inverter = ImplicitInverter(RNRIPaper())
    steps = model.schedule(2)
    with torch.no_grad():
        assert inverter.invert(z0, model.predictor(["cat"]), steps).backward.sum() == 2
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        inverter.invert(z0, model.predictor(["cat"]), steps)


def test_unknown_options_are_rejected():
    with pytest.raises(ValueError, match=r"initial_guess: .*, got 'last'"):
        ImplicitInverter(FixedPoint(), initial_guess="last")
    with pytest.raises(ValueError, match=r"allocation: .*, got 'fair'"):
        ImplicitInverter(FixedPoint(), allocation="fair")


def test_fitted_guess_by_hand(logged_solver):
    denoiser, z0 = gaussian(batch=2)
    ImplicitInverter(logged_solver, "fitted").invert(z0, NoisePredictor(denoiser), schedule(4))
    eps = [denoiser(z_init, problem.timestep) for problem, z_init in logged_solver.calls]
    change = [b - a for a, b in itertools.pairwise(eps)]
    beta = torch.stack([(change[1][i] * change[0][i]).sum() / change[0][i].square().sum() for i in range(2)])
    expected = [eps[0], eps[1] + 0.5 * change[0], eps[2] + beta.clamp(0, 1.5).view(2, 1, 1, 1) * change[1]]
    for (problem, z_init), noise in zip(logged_solver.calls[1:], expected, strict=True):
        torch.testing.assert_close(z_init, problem.a * problem.z_s + problem.b * noise, rtol=0, atol=1e-12)


def test_difficult_steps_get_more_evaluations():
    denoiser, z0 = gaussian(batch=3)
    inverter = ImplicitInverter(FixedPoint(4, tolerance=0), allocation="by_difficulty")
    nfe = inverter.invert(z0, NoisePredictor(denoiser), schedule(5)).nfe
    assert (nfe.sum(0) == 20).all()
    assert (nfe >= 1).all()
    assert (nfe.argmax(0) == 1).all()  # the step from t = 1, where psi grows most


def test_unused_evaluations_go_to_later_steps():
    predictor = function_predictor(lambda z, number: torch.where(number == 0, 0 * z + 1, torch.sin(z)), 2)
    z0 = torch.ones(2, 2, 3, 3, dtype=torch.float64)
    inverter = ImplicitInverter(FixedPoint(5, tolerance=1e-12), allocation="by_difficulty")
    nfe = inverter.invert(z0, predictor, schedule(6)).nfe
    assert (nfe[:, 0] == 2).all()  # a constant network: the second evaluation confirms the first
    assert nfe[:, 1].sum() == 30
    assert nfe[-1, 1] >= 1


def allocations(steps: Schedule, nfe_per_step: int, may_skip: bool = False) -> list[int]:
    """Return the evaluations of each step for a sample that uses all of them; it may skip all steps but two."""
    budget = NfeBudget.from_schedule(steps, nfe_per_step, 1)
    counts = []
    for k in range(len(steps)):
        max_nfe = budget.allocate(k, lambda k=k: torch.tensor([may_skip and k > 1]))
        budget.consume(max_nfe, max_nfe)
        counts.append(int(max_nfe))
    return counts


def test_budget_is_spent_in_full_by_difficulty():
    assert difficulty(schedule(4)).shape == (4,)
    assert difficulty(schedule(4)).argmax() == 1
    few = FEW_STEPS_THRESHOLD - 1
    assert allocations(schedule(few), 1, may_skip=True) == [1] * few
    for nfe in (1, 2, 5):
        many_steps = allocations(schedule(50), nfe, may_skip=True)
        few_steps = allocations(schedule(4), nfe)
        assert sum(many_steps) == 50 * nfe
        assert sum(few_steps) == 4 * nfe
        assert min(few_steps) == 1
        assert max(many_steps) == many_steps[1]
        assert nfe == 1 or max(few_steps) == few_steps[1]


@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_allocation_is_uniform_for_many_flow_steps(nfe):
    assert allocations(flow_schedule(28), nfe, may_skip=True) == [nfe] * 28
    assert difficulty(flow_schedule(28)).unique().shape == (1,)
    assert difficulty(flow_schedule(4)).unique().shape == (4,)


@pytest.mark.parametrize(("steps", "extra_evaluations"), [(4, 1), (12, 1), (4, 3)])
def test_extra_evaluations_are_used(steps, extra_evaluations):
    denoiser, z0 = gaussian(batch=2)
    inverter = anderson_inverter(1, 0, extra_evaluations=extra_evaluations)
    inversion = inverter.invert(z0, NoisePredictor(denoiser), schedule(steps))
    assert (inversion.nfe.sum(0) == steps + extra_evaluations).all()


def test_extra_evaluations_require_allocation_by_difficulty():
    with pytest.raises(ValueError, match="extra_evaluations: must be 0 with allocation=uniform, got 1"):
        ImplicitInverter(FixedPoint(), extra_evaluations=1)


def test_allocation_of_two_steps():
    """Two long steps have similar shares; an easy step leaves its share to a hard one."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    long_steps = Schedule.from_scheduler(LCMScheduler(**betas), 2)  # with B = 0.85 and 0.89; DDIM has 0.01 and 0.83
    assert allocations(long_steps, 8) == [10, 6]
    assert allocations(schedule(2), 8) == [1, 15]


@pytest.mark.parametrize("nfe", [1, 2])
def test_minimum_per_step_does_not_exceed_the_budget(nfe):
    assert sum(allocations(schedule(10), nfe)) == 10 * nfe


def test_samples_that_cannot_skip_have_an_evaluation():
    budget = NfeBudget.from_schedule(schedule(50), 1, 2)
    nfe = torch.zeros(2, dtype=torch.int64)
    for k in range(50):
        max_nfe = budget.allocate(k, lambda: torch.tensor([True, False]))
        assert max_nfe[1] >= 1 or nfe[1] == 50
        budget.consume(max_nfe, max_nfe)
        nfe += max_nfe
    assert nfe.tolist() == [50, 50]


def test_only_extrapolated_guesses_can_be_skipped():
    # The last change of the prediction continues, ends, and is undone.
    last = torch.tensor([2.0, 1.0, 0.0]).double().view(3, 1, 1, 1)
    predictions = (torch.zeros_like(last), torch.ones_like(last), last)
    inverter = anderson_inverter()
    assert inverter._can_skip(PredictionHistory(predictions), 3).tolist() == [True, False, False]
    assert inverter._can_skip(PredictionHistory(predictions[1:]), 3).all()
    assert not inverter._can_skip(PredictionHistory(predictions[2:]), 3).any()
    assert not ImplicitInverter(FixedPoint())._can_skip(PredictionHistory(predictions), 3).any()


def test_unused_evaluations_return_to_the_budget():
    budget = NfeBudget.from_schedule(schedule(20), 4, 2)
    max_nfe = budget.allocate(0, lambda: torch.ones(2, dtype=torch.bool))
    budget.consume(max_nfe, torch.stack([max_nfe[0], torch.tensor(1)]))
    assert budget.unspent[1] == 0
    assert budget.unassigned[1] == 79
    assert budget.unassigned[0] < 79


def test_step_without_evaluation_returns_its_guess():
    predictor = function_predictor(wavy, 2)
    path = []
    z0 = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inverter = ImplicitInverter(FixedPoint(1, tolerance=0), initial_guess="extrapolated", allocation="by_difficulty")
    inversion = inverter.invert(z0, predictor, schedule(50), lambda k, z: path.append(z))
    assert predictor.forward_evaluations == inversion.nfe.sum() == 2 * 50
    skipped = (inversion.nfe == 0).nonzero()
    assert len(skipped)
    assert (skipped[:, 0] > 1).all()
    for k, row in skipped.tolist():
        assert inversion.residuals[k, row].isnan()
        assert not inversion.solved[k, row]
        noises = [
            ImplicitStep.from_schedule(z_s, predictor, schedule(50), 49 - j).prior.noise(z)[row]
            for j, (z_s, z) in enumerate(itertools.pairwise([z0, *path]))
        ]
        torch.testing.assert_close(noises[k], 2 * noises[k - 1] - noises[k - 2], rtol=0, atol=1e-9)
    assert inversion.residual.isfinite().all()
    measured = with_measured_residuals(inversion, path, predictor, schedule(50), tolerance=0)
    assert measured.residuals.isfinite().all()
    assert torch.equal(measured.seed, inversion.seed)


def test_measured_residuals_are_those_of_the_path():
    z0 = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = schedule(6)
    path = []
    inverter = ImplicitInverter(FixedPoint(2))
    inversion = inverter.invert(z0, function_predictor(wavy, 3), steps, lambda k, z: path.append(z))
    measured = with_measured_residuals(inversion, path, function_predictor(wavy, 3), steps, tolerance=1e-4)
    for k, (z_s, z) in enumerate(itertools.pairwise([z0, *path])):
        problem = ImplicitStep.from_schedule(z_s, function_predictor(wavy, 3), steps, 5 - k)
        expected = (z - problem(z)).abs().flatten(1).mean(1)
        torch.testing.assert_close(measured.residuals[k], expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(measured.solved, measured.residuals <= 1e-4)
    assert torch.equal(measured.nfe, inversion.nfe)
    assert torch.equal(measured.seed, inversion.seed)
    solved = inversion.solved  # for other samples the inversion returns f(z) with the residual of z
    assert not solved.all()
    assert torch.equal(measured.residuals[solved], inversion.residuals[solved])
    assert (measured.residuals[~solved] < inversion.residuals[~solved]).all()


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16, torch.float64], ids=str)
def converted_model(request):
    return LatentDiffusion(tiny_stable_diffusion().to(request.param))


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS, ids=SOLVER_IDS)
def test_networks_of_every_dtype(converted_model, solver):
    z0 = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    inverter = ImplicitInverter(solver)
    steps = converted_model.schedule(3)
    path = [z0.double()]
    predictor = converted_model.predictor(["a cat", "dog"], 2.0)
    inversion = inverter.invert(z0, predictor, steps, lambda k, z: path.append(z))
    assert inversion.seed.dtype == torch.float64
    assert inversion.seed.isfinite().all()
    assert inversion.nfe.sum() == predictor.forward_evaluations
    if solver.keep_best:  # no worse than DDIM inversion, its first evaluation
        for k, z_s in enumerate(path[:-1]):
            ddim = (z_s - ImplicitStep.from_schedule(z_s, predictor, steps, 2 - k)(z_s)).abs().flatten(1).mean(1)
            assert (inversion.residuals[k] <= 1.001 * ddim).all()
    if not isinstance(solver, RNRIPaper):  # Eq. 8 amplifies rounding errors without bound on this network
        reconstruction = inverter.reconstruct(inversion, predictor, steps)
        assert (reconstruction - z0).abs().mean() < 0.5 * z0.abs().mean()


def test_default_inverter_matches_its_config():
    inverter = anderson_inverter(nfe_per_step=3)
    assert inverter == instantiate(OmegaConf.load("configs/method/accelerated.yaml"), nfe_per_step=3)
    assert inverter.solver.iterations == 3
    assert inverter.allocation == "by_difficulty"
