import itertools

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
    with_measured_residuals,
    sample,
)
from rnri.solvers.budget import COARSE, NfeBudget, difficulty
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
names = [f"{type(solver).__name__}-{i}" for i, solver in enumerate(SOLVERS)]


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
@pytest.mark.parametrize("start", ["plain", "extrapolated", "fitted"])
@pytest.mark.parametrize("allocation", ["uniform", "by_difficulty"])
def test_gaussian_seeds_are_exact(solver, steps, start, allocation):
    denoiser, z0 = gaussian(batch=3)
    inversion = ImplicitInverter(solver, start, allocation).invert(z0, NoisePredictor(denoiser), schedule(steps))
    assert inversion.converged.all()
    torch.testing.assert_close(inversion.seed, denoiser.seed(z0, schedule(steps)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("to_one", [True, False])
def test_every_spacing_round_trips(spacing, to_one):
    denoiser, z0 = gaussian(batch=2)
    steps = Schedule.from_scheduler(scheduler(timestep_spacing=spacing, set_alpha_to_one=to_one), 7)
    inverter, predictor = (
        ImplicitInverter(Anderson(60, tolerance=1e-13), "extrapolated"),
        NoisePredictor(denoiser),
    )
    inversion = inverter.invert(z0, predictor, steps)
    torch.testing.assert_close(inverter.reconstruct(inversion, predictor, steps), z0, rtol=0, atol=1e-9)


def test_sampling_is_the_closed_form():
    denoiser, _ = gaussian(batch=2)
    steps = schedule(6)
    seed = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    z = seed
    for i in range(6):
        z = denoiser.step(z, steps.alpha_bar[i].item(), steps.alpha_bar_next[i].item())
    torch.testing.assert_close(sample(seed, NoisePredictor(denoiser), steps), z, rtol=0, atol=1e-12)


def test_ddim_inversion_is_its_closed_form():
    denoiser, z0 = gaussian(batch=2)
    steps, z = schedule(6), z0
    for i in reversed(range(6)):  # the network at the noisy label, but on the cleaner latent
        a, b = steps.coefficients(i)
        z = a * z + b * denoiser(z, int(steps.timesteps[i]))
    inversion = ImplicitInverter(FixedPoint(1, tolerance=0)).invert(z0, NoisePredictor(denoiser), steps)
    torch.testing.assert_close(inversion.seed, z, rtol=0, atol=1e-12)
    assert (inversion.nfe == 1).all() and not inversion.converged.any()


def test_the_extrapolated_start_by_hand():
    starts = []

    class Watch(FixedPoint):
        def __call__(self, problem, z_init, limits=None):
            starts.append((problem, z_init))
            return super().__call__(problem, z_init, limits)

    denoiser, z0 = gaussian(batch=1)
    predictor = NoisePredictor(denoiser)
    ImplicitInverter(Watch(1, tolerance=0), "extrapolated").invert(z0, predictor, schedule(4))
    assert predictor.forward_evaluations == 4  # the start costs none
    eps = [denoiser(z_init, problem.timestep) for problem, z_init in starts]
    expected = [None, eps[0], 2 * eps[1] - eps[0], 2 * eps[2] - eps[1]]
    for (problem, z_init), noise in zip(starts, expected, strict=True):
        start = problem.z_s if noise is None else problem.a * problem.z_s + problem.b * noise
        torch.testing.assert_close(z_init, start, rtol=0, atol=1e-12)


def test_extrapolation_is_closer_than_the_plain_start():
    denoiser, z0 = gaussian(batch=4)
    steps = schedule(20)
    exact = denoiser.seed(z0, steps)
    errors = {}
    for start in ("plain", "extrapolated"):
        inverter = ImplicitInverter(FixedPoint(1, tolerance=0), start)
        seed = inverter.invert(z0, NoisePredictor(denoiser), steps).seed
        errors[start] = (seed - exact).abs().mean()
    assert errors["extrapolated"] < errors["plain"] / 5


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion(tiny_stable_diffusion("v_prediction"))


@pytest.fixture(scope="module")
def exact_model():
    return LatentDiffusion(tiny_stable_diffusion("v_prediction").to(torch.float64))


@pytest.mark.parametrize("solver", SOLVERS, ids=names)
@pytest.mark.parametrize(("start", "allocation"), [("plain", "uniform"), ("fitted", "by_difficulty")])
def test_an_image_alone_and_in_a_batch(exact_model, solver, start, allocation):
    """In float64, so that no machine's rounding decides whether a residual is within the tolerance."""
    z0 = torch.randn(3, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    z0[1] *= 3  # converges later than the others, or not at all
    prompts = ["a cat", "dog", "x"]
    inverter, steps = ImplicitInverter(solver, start, allocation), exact_model.schedule(4)
    together = inverter.invert(z0, exact_model.predictor(prompts, 2.0), steps)
    allowed = 1e-5 if isinstance(solver, RNRIPaper) else 1e-9  # Eq. 8 divides by derivatives near zero
    for i, prompt in enumerate(prompts):
        alone = inverter.invert(z0[i : i + 1], exact_model.predictor([prompt], 2.0), steps)
        torch.testing.assert_close(together.seed[i], alone.seed[0], rtol=allowed, atol=allowed)
        assert torch.equal(together.nfe[:, i], alone.nfe[:, 0])


@pytest.mark.parametrize("solver", SOLVERS, ids=names)
def test_counts_are_the_predictors(model, solver):
    z0 = torch.randn(3, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    predictor = model.predictor(["a cat", "dog", "x"], 2.0)
    inversion = ImplicitInverter(solver).invert(z0, predictor, model.schedule(4))
    assert inversion.nfe.shape == inversion.backward.shape == (4, 3)
    assert inversion.nfe.sum() == predictor.forward_evaluations
    assert inversion.backward.sum() == predictor.backward_evaluations
    assert (inversion.backward.sum() > 0) == (solver.needs_grad or isinstance(solver, NewtonKrylov))


@pytest.mark.parametrize("solver", SOLVERS, ids=names)
@pytest.mark.parametrize("measure", [False, True])
def test_reported_residuals_are_true(solver, measure):
    """A returned latent that counts as converged has, recomputed, exactly the residual reported."""
    z0 = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = schedule(10)

    inverter, path = ImplicitInverter(solver), [z0]
    predictor = function_predictor(wavy, 4)
    inversion = inverter.invert(z0, predictor, steps, on_step=lambda k, z: path.append(z))
    if measure:
        inversion = with_measured_residuals(inversion, path[1:], predictor, steps, solver.tolerance)
    assert len(path) == 11 and torch.equal(path[-1], inversion.seed)
    for k, (before, z) in enumerate(itertools.pairwise(path)):
        problem = ImplicitStep.of(before, function_predictor(wavy, 4), steps, 9 - k)
        true = (z - problem(z)).abs().flatten(1).mean(1)
        known = torch.ones(4, dtype=torch.bool) if measure else inversion.solved[k]
        torch.testing.assert_close(inversion.residuals[k][known], true[known])
        assert (true[inversion.solved[k]] <= solver.tolerance).all()
    if measure and solver.tolerance == 0:
        assert predictor.forward_evaluations == inversion.nfe.sum() + 40


@pytest.mark.parametrize("solver", SOLVERS, ids=names)
def test_a_diverging_sample_is_visible_and_alone(solver):
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


def test_growth_is_reported_not_converged():
    predictor = function_predictor(lambda z, number: torch.where(number == 1, 1e3 * z, 0.1 * z), 2)
    z0 = torch.ones(2, 2, 3, 3, dtype=torch.float64)
    inversion = ImplicitInverter(FixedPoint(20, tolerance=1e-6)).invert(z0, predictor, schedule(10))
    assert inversion.converged.tolist() == [True, False]
    assert inversion.seed.isfinite().all() and inversion.residual[1] > 1


@pytest.mark.parametrize("solver", SOLVERS, ids=names)
@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf, 1e200])
def test_a_latent_that_is_not_finite_is_visible_and_alone(solver, spoilt):
    z0 = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z0[1, 0, 0, 0] = spoilt
    path: list[torch.Tensor] = []
    predictor, inverter = function_predictor(wavy, 2), ImplicitInverter(solver)
    inversion = inverter.invert(z0, predictor, schedule(5), lambda k, z: path.append(z))
    inversion = with_measured_residuals(inversion, path, predictor, schedule(5), solver.tolerance)
    alone = inverter.invert(z0[:1], function_predictor(wavy, 1), schedule(5))
    torch.testing.assert_close(inversion.seed[:1], alone.seed, rtol=1e-9, atol=1e-9)
    assert not inversion.converged[1] and not inversion.residual[1] <= solver.tolerance


def test_state_is_float64_around_a_float32_network(model):
    z0 = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    predictor, steps = model.predictor(["cat"]), model.schedule(4)
    inverter = ImplicitInverter(Anderson(iterations=30, tolerance=3e-6))
    inversion = inverter.invert(z0, predictor, steps)
    assert inversion.seed.dtype == torch.float64 and inversion.seed_only and not inversion.aux
    assert inversion.converged.all()
    z = inverter.reconstruct(inversion, predictor, steps)
    torch.testing.assert_close(z.float(), z0, rtol=0, atol=1e-4)


def test_inversion_works_where_gradients_are_off(model):
    z0 = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    inverter, steps = ImplicitInverter(RNRIPaper()), model.schedule(2)
    with torch.no_grad():
        assert inverter.invert(z0, model.predictor(["cat"]), steps).backward.sum() == 2
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        inverter.invert(z0, model.predictor(["cat"]), steps)


def test_unknown_options():
    with pytest.raises(ValueError, match="initial_guess='last'"):
        ImplicitInverter(FixedPoint(), initial_guess="last")
    with pytest.raises(ValueError, match="sharing='fair'"):
        ImplicitInverter(FixedPoint(), allocation="fair")


def test_the_fitted_start_by_hand():
    starts = []

    class Watch(FixedPoint):
        def __call__(self, problem, z_init, limits=None):
            starts.append((problem, z_init))
            return super().__call__(problem, z_init, limits)

    denoiser, z0 = gaussian(batch=2)
    ImplicitInverter(Watch(1, tolerance=0), "fitted").invert(z0, NoisePredictor(denoiser), schedule(4))
    eps = [denoiser(z_init, problem.timestep) for problem, z_init in starts]
    change = [b - a for a, b in itertools.pairwise(eps)]
    beta = torch.stack([(change[1][i] * change[0][i]).sum() / change[0][i].square().sum() for i in range(2)])
    expected = [eps[0], eps[1] + 0.5 * change[0], eps[2] + beta.clamp(0, 1.5).view(2, 1, 1, 1) * change[1]]
    for (problem, z_init), noise in zip(starts[1:], expected, strict=True):
        torch.testing.assert_close(z_init, problem.a * problem.z_s + problem.b * noise, rtol=0, atol=1e-12)


def test_shared_evaluations_go_where_the_schedule_is_hard():
    denoiser, z0 = gaussian(batch=3)
    inverter = ImplicitInverter(FixedPoint(4, tolerance=0), allocation="by_difficulty")
    nfe = inverter.invert(z0, NoisePredictor(denoiser), schedule(5)).nfe
    assert (nfe.sum(0) == 20).all() and (nfe >= 1).all()
    assert (nfe.argmax(0) == 1).all()  # from t = 1 to the next: psi grows most


def test_a_sample_spends_later_what_it_saved():
    predictor = function_predictor(lambda z, number: torch.where(number == 0, 0 * z + 1, torch.sin(z)), 2)
    z0 = torch.ones(2, 2, 3, 3, dtype=torch.float64)
    inverter = ImplicitInverter(FixedPoint(5, tolerance=1e-12), allocation="by_difficulty")
    nfe = inverter.invert(z0, predictor, schedule(6)).nfe
    assert (nfe[:, 0] == 2).all()  # a constant network: the second evaluation confirms the first
    assert nfe[:, 1].sum() == 30 and (nfe[-1, 1] >= 1)


def planned(steps: int, nfe: int, skips: bool = False, by: Schedule | None = None) -> list[int]:
    budget, limits = NfeBudget.of(by or schedule(steps), nfe, 1), []
    for k in range(steps):
        limits.append(budget.limits(k, lambda k=k: torch.tensor([skips and k > 1])))
        budget.consume(limits[-1], limits[-1])
    return [int(limit) for limit in limits]


def test_a_budget_is_spent_whole_and_follows_the_needs():
    assert difficulty(schedule(4)).shape == (4,) and difficulty(schedule(4)).argmax() == 1
    assert planned(COARSE - 1, 1, skips=True) == [1] * (COARSE - 1)
    for nfe in (1, 2, 5):
        fine, coarse = planned(50, nfe, skips=True), planned(4, nfe)
        assert sum(fine) == 50 * nfe and sum(coarse) == 4 * nfe and min(coarse) == 1
        assert max(fine) == fine[1] and (nfe == 1 or max(coarse) == coarse[1])


def test_many_steps_of_flow_matching_share_evenly():
    for nfe in (1, 2, 5):
        assert planned(28, nfe, skips=True, by=flow_schedule(28)) == [nfe] * 28
    assert difficulty(flow_schedule(28)).unique().shape == (1,) and difficulty(flow_schedule(4)).unique().shape == (4,)


def test_evaluations_besides_are_shared_and_none_is_lost():
    denoiser, z0 = gaussian(batch=2)
    for steps, extra_evaluations in ((4, 1), (12, 1), (4, 3)):
        found = anderson_inverter(1, 0, extra_evaluations=extra_evaluations).invert(
            z0, NoisePredictor(denoiser), schedule(steps)
        )
        assert (found.nfe.sum(0) == steps + extra_evaluations).all()
    with pytest.raises(ValueError, match="besides=1, but sharing=even leaves nothing to share"):
        ImplicitInverter(FixedPoint(), extra_evaluations=1)


def test_two_long_steps_share_nearly_evenly_and_an_easy_one_leaves_its_part():
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    long = Schedule.from_scheduler(LCMScheduler(**betas), 2)  # of B 0.85 and 0.89; DDIM's have 0.01 and 0.83
    assert planned(2, 8, by=long) == [10, 6] and planned(2, 8) == [1, 15]


def test_no_least_number_overdraws_a_budget():
    for nfe in (1, 2):
        assert sum(planned(10, nfe)) == 10 * nfe
    budget = NfeBudget.of(schedule(50), 1, 2)
    spent = torch.zeros(2, dtype=torch.int64)
    for k in range(50):
        limits = budget.limits(k, lambda: torch.tensor([True, False]))
        assert limits[1] >= 1 or spent[1] == 50
        budget.consume(limits, limits)
        spent += limits
    assert spent.tolist() == [50, 50]


def test_only_an_extrapolated_start_may_stay_unevaluated():
    last = torch.tensor([2.0, 1.0, 0.0]).double().view(3, 1, 1, 1)  # a change that goes on, one that ends, one undone
    noises = [torch.zeros_like(last), torch.ones_like(last), last]
    assert anderson_inverter()._can_skip(noises, 3).tolist() == [True, False, False]
    assert anderson_inverter()._can_skip(noises[1:], 3).all() and not anderson_inverter()._can_skip(noises[2:], 3).any()
    assert not ImplicitInverter(FixedPoint())._can_skip(noises, 3).any()


def test_a_sample_that_stops_early_returns_what_it_had():
    budget = NfeBudget.of(schedule(20), 4, 2)
    limits = budget.limits(0, lambda: torch.ones(2, dtype=torch.bool))
    budget.consume(limits, torch.stack([limits[0], torch.tensor(1)]))
    assert budget.due[1] == 0 and budget.left[1] == 79 and budget.left[0] < 79


def test_a_step_without_an_evaluation_takes_its_start():
    predictor, path = function_predictor(wavy, 2), []
    z0 = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inverter = ImplicitInverter(FixedPoint(1, tolerance=0), initial_guess="extrapolated", allocation="by_difficulty")
    inversion = inverter.invert(z0, predictor, schedule(50), lambda k, z: path.append(z))
    assert predictor.forward_evaluations == inversion.nfe.sum() == 2 * 50
    skipped = (inversion.nfe == 0).nonzero()
    assert len(skipped) and (skipped[:, 0] > 1).all()
    for k, row in skipped.tolist():
        assert inversion.residuals[k, row].isnan() and not inversion.solved[k, row]
        noises = [
            ImplicitStep.of(before, predictor, schedule(50), 49 - j).noise(z)[row]
            for j, (before, z) in enumerate(itertools.pairwise([z0, *path]))
        ]
        torch.testing.assert_close(noises[k], 2 * noises[k - 1] - noises[k - 2], rtol=0, atol=1e-9)
    assert inversion.residual.isfinite().all()
    found = with_measured_residuals(inversion, path, predictor, schedule(50), 0)
    assert found.residuals.isfinite().all() and torch.equal(found.seed, inversion.seed)


def test_measured_residuals_are_those_of_what_was_returned():
    z0 = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps, path = schedule(6), []
    inverter = ImplicitInverter(FixedPoint(2))
    inversion = inverter.invert(z0, function_predictor(wavy, 3), steps, lambda k, z: path.append(z))
    found = with_measured_residuals(inversion, path, function_predictor(wavy, 3), steps, 1e-4)
    for k, (before, z) in enumerate(itertools.pairwise([z0, *path])):
        problem = ImplicitStep.of(before, function_predictor(wavy, 3), steps, 5 - k)
        true = (z - problem(z)).abs().flatten(1).mean(1)
        torch.testing.assert_close(found.residuals[k], true, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.solved, found.residuals <= 1e-4)
    assert torch.equal(found.nfe, inversion.nfe) and torch.equal(found.seed, inversion.seed)
    known = inversion.solved  # elsewhere the inversion returns f(z), and knows the residual of z only
    assert torch.equal(found.residuals[known], inversion.residuals[known])
    assert not known.all() and (found.residuals[~known] < inversion.residuals[~known]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS, ids=names)
def test_every_dtype_of_the_network(solver, dtype):
    model = LatentDiffusion(tiny_stable_diffusion().to(dtype))
    z0 = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    inverter, steps, path = ImplicitInverter(solver), model.schedule(3), [z0.double()]
    predictor = model.predictor(["a cat", "dog"], 2.0)
    inversion = inverter.invert(z0, predictor, steps, lambda k, z: path.append(z))
    assert inversion.seed.dtype == torch.float64 and inversion.seed.isfinite().all()
    assert inversion.nfe.sum() == predictor.forward_evaluations
    if solver.keep_best:  # no step is worse than DDIM's, of which it is the first evaluation
        for k, z_s in enumerate(path[:-1]):
            ddim = (z_s - ImplicitStep.of(z_s, predictor, steps, 2 - k)(z_s)).abs().flatten(1).mean(1)
            assert (inversion.residuals[k] <= 1.001 * ddim).all()
    if not isinstance(solver, RNRIPaper):  # on this network, Eq. 8 magnifies what a dtype rounds without bound
        again = inverter.reconstruct(inversion, predictor, steps)
        assert (again - z0).abs().mean() < 0.5 * z0.abs().mean()


def test_the_default_inverter_is_what_its_config_says():
    inverter = anderson_inverter(nfe_per_step=3)
    assert inverter == instantiate(OmegaConf.load("configs/method/accelerated.yaml"), nfe_per_step=3)
    assert inverter.solver.iterations == 3 and inverter.allocation == "by_difficulty"
