"""Flow-matching methods: closed forms on Gaussian data, steps computed by hand, round trips, rejected schedules."""

from dataclasses import replace

import pytest
import torch

from rnri import FixedPoint, ImplicitInverter, NoisePredictor, SafeguardedAnderson, Schedule, check_schedule, sample
from rnri.methods import EDICT, FireFlow, Midpoint, RFInversion, RFSolver, SeedOnly, UniInv
from rnri.methods.noise_maps import draw_noise
from rnri.models.midpoint import MidpointPredictor
from tests.problems import GaussianVelocity, flow_schedule, function_predictor, gaussian, schedule, velocity, wavy

EXACT = Midpoint(ImplicitInverter(SafeguardedAnderson(200, 1e-13), "extrapolated"))
METHODS = [UniInv(), RFSolver(), FireFlow(), RFInversion(), Midpoint()]
NEEDS_FLOW = [RFSolver(), FireFlow(), RFInversion(), Midpoint()]


def scalar(z):
    return torch.tensor([[[[z]]]], dtype=torch.float64)


def two_steps(timesteps=None):
    """Predictor ``v(z, t) = z + t / 1000`` and a schedule with sigma 0.8, 0.4 and 0; records its ``timesteps``."""

    class Network:
        def __call__(self, z, t):
            if timesteps is not None:
                timesteps.append(t)
            return z + t / 1000

        def select(self, rows):
            return self

        def unguided(self):
            return self

    sigmas = torch.tensor([0.8, 0.4, 0], dtype=torch.float64)
    return NoisePredictor(Network()), Schedule.flow(1000 * sigmas[:-1], sigmas)


def test_uni_inv_by_hand():
    timesteps = []
    inversion = UniInv().invert(scalar(1.0), *two_steps(timesteps))
    # y = 1 at 0; guess 1.4, y = 1.8, z = 1.72; guess 1.72 + 0.4 * 1.8 = 2.44, y = 3.24, z = 1.72 + 0.4 * 3.24
    assert inversion.seed.item() == pytest.approx(3.016, rel=1e-12)
    assert timesteps == [0, 400, 800] and inversion.nfe.tolist() == [[2], [1]]


def test_uni_inv_on_noise_models_starts_at_the_clean_latent():
    steps = schedule(2)
    assert steps.sigma_next[-1] > 0.02
    seen = []

    def network(z, _):
        seen.append(z.item())
        return z / 2

    seed = UniInv().invert(scalar(1.0), function_predictor(network, 1), steps).seed.item()
    alpha, sigma = steps.alpha[1].item(), steps.sigma[1].item()
    guess = alpha + sigma * 0.5  # from alpha_s = 1 and sigma_s = 0
    z = alpha + sigma * guess / 2
    a, b = steps.coefficients(0)
    second = a * z + b * guess / 2
    assert seen == pytest.approx([1.0, guess, second], rel=1e-12)
    assert seed == pytest.approx(a * z + b * second / 2, rel=1e-12)


def test_uni_inv_does_not_start_in_the_middle_of_a_noise_schedule():
    with pytest.raises(ValueError, match=r"starts at the clean latent, but the last step .* ends at noise level"):
        check_schedule(UniInv(), schedule(10).head(8))
    check_schedule(UniInv(), schedule(500))


def test_uni_inv_starts_in_the_middle_of_a_flow_schedule():
    timesteps = []
    predictor, steps = two_steps(timesteps)
    UniInv().invert(scalar(1.0), predictor, steps.head(1))
    assert timesteps == pytest.approx([400, 800])


def test_rf_solver_by_hand():
    timesteps = []
    method = RFSolver()
    predictor, steps = two_steps(timesteps)
    inversion = method.invert(scalar(1.0), predictor, steps)
    # v = 1, midpoint 1.2, v = 1.4, z = 1.56; v = 1.96, midpoint 1.952, v = 2.552, z = 1.56 + 0.4 * 2.552
    assert inversion.seed.item() == pytest.approx(2.5808, rel=1e-12)
    assert timesteps == pytest.approx([0, 200, 400, 600])
    # down: v = 3.3808, midpoint 2.5808 - 0.2 * 3.3808 = 1.90464, v = 2.50464, z = 1.578944; ...
    midpoint = 1.578944 - 0.2 * (1.578944 + 0.4)
    assert method.reconstruct(inversion, predictor, steps).item() == pytest.approx(1.578944 - 0.4 * (midpoint + 0.2))


def test_fireflow_by_hand():
    timesteps = []
    method = FireFlow()
    predictor, steps = two_steps(timesteps)
    inversion = method.invert(scalar(1.0), predictor, steps)
    # p = 1, midpoint 1.2, v = 1.4, z = 1.56; midpoint 1.56 + 0.2 * 1.4 = 1.84, v = 2.44, z = 1.56 + 0.4 * 2.44
    assert inversion.seed.item() == pytest.approx(2.536, rel=1e-12)
    assert timesteps == pytest.approx([0, 200, 600]) and inversion.nfe.tolist() == [[2], [1]]
    first = 2.536 - 0.2 * (2.536 + 0.8) + 0.6
    z = 2.536 - 0.4 * first
    second = z - 0.2 * first + 0.2
    timesteps.clear()
    assert method.reconstruct(inversion, predictor, steps).item() == pytest.approx(z - 0.4 * second)
    assert timesteps == pytest.approx([800, 600, 200])


def test_rf_inversion_by_hand():
    timesteps = []
    method = RFInversion(gamma=0.5, eta=0.9, stop=0.5, seed=3)
    predictor, steps = two_steps(timesteps)
    inversion = method.invert(scalar(1.0), predictor, steps)
    y1 = draw_noise(scalar(0.0), 1, 3).item()
    first = 1 + 0.4 * (0.5 * 1 + 0.5 * (y1 - 1))
    second = first + 0.4 * (0.5 * (first + 0.4) + 0.5 * (y1 - first) / 0.6)
    assert inversion.seed.item() == pytest.approx(second, rel=1e-12)
    assert timesteps == [0, 400] and inversion.nfe.tolist() == [[1], [1]]
    z = second - 0.4 * (0.1 * (second + 0.8) + 0.9 * (second - 1) / 0.8)  # the first of two steps is controlled
    z = z - 0.4 * (z + 0.4)
    assert method.reconstruct(inversion, predictor, steps).item() == pytest.approx(z, rel=1e-12)


def test_rf_inversion_with_full_strength_reaches_its_targets():
    denoiser, z0 = velocity(batch=2)
    steps = flow_schedule(7)
    predictor = NoisePredictor(denoiser)
    inversion = RFInversion(gamma=1.0, eta=1.0, stop=1.0).invert(z0, predictor, steps)
    torch.testing.assert_close(inversion.seed, draw_noise(z0, 1, 0).expand_as(z0), rtol=0, atol=1e-12)
    reconstruction = RFInversion(gamma=1.0, eta=1.0, stop=1.0).reconstruct(inversion, predictor, steps)
    torch.testing.assert_close(reconstruction, z0, rtol=0, atol=1e-12)


def test_rf_inversion_uses_the_empty_prompt():
    @torch.no_grad()
    def seed(guided):
        from rnri.models.predictor import Condition
        from tests.rnri.methods.test_published_methods import Prompted

        text = Condition(torch.full((1,), 5.0).double())
        empty = Condition(torch.zeros(1).double())
        denoiser = Prompted(1e-3, text, empty, 3.0) if guided else Prompted(1e-3, empty)
        predictor = NoisePredictor(denoiser)
        inversion = RFInversion().invert(scalar(1.0), predictor, flow_schedule(3)).seed
        assert predictor.forward_evaluations == 3
        return inversion

    assert torch.equal(seed(True), seed(False))


@pytest.mark.parametrize(("steps", "shift"), [(2, 1.0), (5, 1.0), (12, 3.0)])
def test_closed_form_is_the_inverse_of_euler(steps, shift):
    denoiser, z0 = velocity(batch=2)
    schedule = flow_schedule(steps, shift)
    predictor = NoisePredictor(denoiser)
    seed = denoiser.seed(z0, schedule)
    torch.testing.assert_close(sample(seed, predictor, schedule), z0, rtol=0, atol=1e-10)
    solver = SafeguardedAnderson(200, 1e-13)
    inversion = ImplicitInverter(solver).invert(z0, predictor, schedule)
    torch.testing.assert_close(inversion.seed, seed, rtol=0, atol=1e-9)


LABELS = ["Euler", "Uni-Inv", "RF-Solver", "FireFlow", "exact midpoint"]
INVERTERS = [ImplicitInverter(FixedPoint(1)), UniInv(), RFSolver(), FireFlow(), EXACT]


def order(inverter, predictor, z0, exact):
    """Order of convergence to the flow at sigma 1/2, from 20 to 40 steps."""
    seeds = [inverter.invert(z0, predictor, flow_schedule(2 * count).tail(count)).seed for count in (20, 40)]
    errors = [(seed - exact).abs().max().item() for seed in seeds]
    return torch.tensor(errors[0] / errors[1]).log2().item()


@pytest.mark.parametrize(("inverter", "expected"), list(zip(INVERTERS, [1, 1, 3, 2, 3], strict=True)), ids=LABELS)
def test_convergence_order_on_gaussian_data(inverter, expected):
    """The midpoint's leading error, ``a'' + 6 a a' + 4 a^3`` for ``v = a z``, cancels on Gaussian data: order 3."""
    denoiser, z0 = velocity(batch=2)
    measured = order(inverter, NoisePredictor(denoiser), z0, denoiser.flow(z0, 0.5))
    assert measured == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize(("inverter", "expected"), list(zip(INVERTERS, [1, 1, 2, 2, 2], strict=True)), ids=LABELS)
def test_convergence_order_on_nonlinear_velocity(inverter, expected):
    predictor = function_predictor(wavy, 2)
    z0 = gaussian(batch=2)[1]
    exact = RFSolver().invert(z0, predictor, flow_schedule(1_000).tail(500)).seed
    assert order(inverter, predictor, z0, exact) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (4, 1.0), (9, 3.0)])
def test_midpoint_inverse_is_exact(steps, shift):
    denoiser, z0 = velocity(batch=2)
    schedule = flow_schedule(steps, shift)
    predictor = NoisePredictor(denoiser)
    inversion = EXACT.invert(z0, predictor, schedule)
    inversion_nfe = predictor.forward_evaluations
    reconstruction = EXACT.reconstruct(inversion, predictor, schedule)
    torch.testing.assert_close(reconstruction, z0, rtol=0, atol=1e-10)
    assert inversion.residual_converged.all() and not inversion.seed_only and inversion.residual.isnan().all()
    assert inversion.nfe.sum() == inversion_nfe and predictor.forward_evaluations - inversion_nfe == 2 * 2 * steps


def test_midpoint_sampler_is_differentiable():
    denoiser, z0 = velocity(batch=2)
    schedule = flow_schedule(3)
    predictor = NoisePredictor(denoiser)
    seed = z0.clone().requires_grad_()
    midpoint = MidpointPredictor.from_predictor(predictor, schedule)
    (gradient,) = torch.autograd.grad(sample(seed, midpoint, schedule).sum(), seed)
    difference = sample(z0 + 1, midpoint, schedule) - sample(z0, midpoint, schedule)  # the sampler is affine here
    torch.testing.assert_close(gradient, difference, rtol=0, atol=1e-10)
    assert predictor.backward_evaluations == 2 * 2 * 3


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_batch_independence_and_counts(method):
    denoiser, z0 = velocity(batch=3)
    schedule = flow_schedule(5, 3.0)
    predictor = NoisePredictor(denoiser)
    steps = []
    together = method.invert(z0, predictor, schedule, lambda k, z: steps.append((k, z)))
    assert [k for k, _ in steps] == list(range(5)) and torch.equal(steps[-1][1], together.seed)
    assert together.nfe.sum().item() == predictor.forward_evaluations
    images = method.reconstruct(together, predictor, schedule)
    for i in range(3):
        selected = predictor.select(torch.tensor([i]))
        alone = method.invert(z0[i : i + 1], selected, schedule)
        torch.testing.assert_close(together.seed[i], alone.seed[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(images[i], method.reconstruct(alone, selected, schedule)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", NEEDS_FLOW, ids=str)
def test_noise_schedules_are_rejected(method):
    with pytest.raises(ValueError, match="needs a flow-matching model"):
        check_schedule(method, schedule(4))
    with pytest.raises(ValueError, match="needs a flow-matching model"):
        method.invert(torch.zeros(1, 2, 3, 3), NoisePredictor(gaussian(1)[0]), schedule(4))


def test_uni_inv_beats_ddim_on_noise_schedules():
    denoiser, z0 = gaussian(batch=2)
    steps = schedule(20)
    predictor = NoisePredictor(denoiser)
    exact = denoiser.seed(z0, steps)
    errors = [
        (method.invert(z0, predictor, steps).seed - exact).norm()
        for method in (UniInv(), ImplicitInverter(FixedPoint(1)))
    ]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.5}, "gamma: .*, got 1.5"),
        ({"eta": -0.1}, "eta: .*, got -0.1"),
        ({"start": 0.5}, "start: must be <= stop=0.25, got 0.5"),
    ],
)
def test_invalid_rf_inversion_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RFInversion(**settings)


def test_midpoint_seeds_have_a_more_typical_norm():
    denoiser, z0 = velocity(batch=4)
    denoiser = replace(denoiser, mean=0 * denoiser.mean, variance=0 * denoiser.variance + 0.05)
    z0 = 0.05**0.5 * torch.randn(z0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = denoiser.flow(z0).norm()
    euler = denoiser.seed(z0, flow_schedule(8))
    midpoint = EXACT.invert(z0, NoisePredictor(denoiser), flow_schedule(8))
    assert isinstance(denoiser, GaussianVelocity)
    assert (midpoint.seed.norm() / exact - 1).abs() < (euler.norm() / exact - 1).abs() / 3


@pytest.mark.parametrize("inverter", [RFSolver(), FireFlow(), EXACT], ids=["rf_solver", "fireflow", "midpoint"])
def test_seed_only_uses_the_schedules_sampler(inverter):
    denoiser, z0 = velocity(batch=2)
    predictor = NoisePredictor(denoiser)
    steps = flow_schedule(4)
    expected = inverter.invert(z0, predictor, steps)
    inversion = SeedOnly(inverter).invert(z0, predictor, steps)
    assert torch.equal(inversion.seed, expected.seed)
    assert inversion.seed_only and not inversion.residual_converged.any()
    reconstruction = SeedOnly(inverter).reconstruct(inversion, predictor, steps)
    assert torch.equal(reconstruction, sample(expected.seed, predictor, steps))
    assert not torch.allclose(reconstruction, inverter.reconstruct(expected, predictor, steps))


def test_seed_only_rejects_methods_with_aux():
    denoiser, z0 = gaussian(batch=2)
    with pytest.raises(ValueError, match=r"EDICT stores .* in addition to the seed"):
        SeedOnly(EDICT()).invert(z0, NoisePredictor(denoiser), schedule(4))
