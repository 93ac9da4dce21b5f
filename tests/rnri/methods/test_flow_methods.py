"""Flow matching's own methods: closed forms on Gaussian data, single steps by hand, round trips, refusals."""

from dataclasses import replace

import pytest
import torch

from rnri import FixedPoint, ImplicitInverter, NoisePredictor, SafeguardedAnderson, Schedule, check_schedule, sample
from rnri.methods import EDICT, FireFlow, Midpoint, RFInversion, RFSolver, SeedOnly, UniInv
from rnri.methods.edit_friendly_ddpm import draw_noise
from rnri.models.midpoint import MidpointPredictor
from tests.problems import GaussianVelocity, flow_schedule, function_predictor, gaussian, schedule, velocity, wavy

EXACT = Midpoint(ImplicitInverter(SafeguardedAnderson(200, 1e-13), "extrapolated"))
OWN = [UniInv(), RFSolver(), FireFlow(), RFInversion(), Midpoint()]
NEEDS_FLOW = [RFSolver(), FireFlow(), RFInversion(), Midpoint()]


def scalar(z):
    return torch.tensor([[[[z]]]], dtype=torch.float64)


def by_hand(seen=None):
    """``v(z, t) = z + t / 1000`` at sigma 0.8, 0.4 and 0."""

    class Network:
        def __call__(self, z, t):
            if seen is not None:
                seen.append(t)
            return z + t / 1000

        def select(self, rows):
            return self

        def unguided(self):
            return self

    sigmas = torch.tensor([0.8, 0.4, 0], dtype=torch.float64)
    return NoisePredictor(Network()), Schedule.flow(1000 * sigmas[:-1], sigmas)


def test_uni_inv_by_hand():
    seen = []
    found = UniInv().invert(scalar(1.0), *by_hand(seen))
    # y = 1 at 0; guess 1.4, y = 1.8, z = 1.72; guess 1.72 + 0.4 * 1.8 = 2.44, y = 3.24, z = 1.72 + 0.4 * 3.24
    assert found.seed.item() == pytest.approx(3.016, rel=1e-12)
    assert seen == [0, 400, 800] and found.nfe.tolist() == [[2], [1]]


def test_rf_solver_by_hand():
    seen = []
    method, (predictor, steps) = RFSolver(), by_hand(seen)
    found = method.invert(scalar(1.0), predictor, steps)
    # v = 1, middle 1.2, v = 1.4, z = 1.56; v = 1.96, middle 1.952, v = 2.552, z = 1.56 + 0.4 * 2.552
    assert found.seed.item() == pytest.approx(2.5808, rel=1e-12)
    assert seen == pytest.approx([0, 200, 400, 600])
    # down: v = 3.3808, middle 2.5808 - 0.2 * 3.3808 = 1.90464, v = 2.50464, z = 1.578944; ...
    middle = 1.578944 - 0.2 * (1.578944 + 0.4)
    assert method.reconstruct(found, predictor, steps).item() == pytest.approx(1.578944 - 0.4 * (middle + 0.2))


def test_fireflow_by_hand():
    seen = []
    method, (predictor, steps) = FireFlow(), by_hand(seen)
    found = method.invert(scalar(1.0), predictor, steps)
    # p = 1, middle 1.2, v = 1.4, z = 1.56; middle 1.56 + 0.2 * 1.4 = 1.84, v = 2.44, z = 1.56 + 0.4 * 2.44
    assert found.seed.item() == pytest.approx(2.536, rel=1e-12)
    assert seen == pytest.approx([0, 200, 600]) and found.nfe.tolist() == [[2], [1]]
    first = 2.536 - 0.2 * (2.536 + 0.8) + 0.6
    z = 2.536 - 0.4 * first
    second = z - 0.2 * first + 0.2
    seen.clear()
    assert method.reconstruct(found, predictor, steps).item() == pytest.approx(z - 0.4 * second)
    assert seen == pytest.approx([800, 600, 200])


def test_rf_inversion_by_hand():
    seen = []
    method, (predictor, steps) = RFInversion(gamma=0.5, eta=0.9, stop=0.5, seed=3), by_hand(seen)
    found = method.invert(scalar(1.0), predictor, steps)
    y1 = draw_noise(scalar(0.0), 1, 3).item()
    first = 1 + 0.4 * (0.5 * 1 + 0.5 * (y1 - 1))
    second = first + 0.4 * (0.5 * (first + 0.4) + 0.5 * (y1 - first) / 0.6)
    assert found.seed.item() == pytest.approx(second, rel=1e-12)
    assert seen == [0, 400] and found.nfe.tolist() == [[1], [1]]
    z = second - 0.4 * (0.1 * (second + 0.8) + 0.9 * (second - 1) / 0.8)  # the first of two steps is controlled
    z = z - 0.4 * (z + 0.4)
    assert method.reconstruct(found, predictor, steps).item() == pytest.approx(z, rel=1e-12)


def test_rf_inversion_ends_where_it_is_drawn_to():
    denoiser, z0 = velocity(batch=2)
    steps, predictor = flow_schedule(7), NoisePredictor(denoiser)
    found = RFInversion(gamma=1.0, eta=1.0, stop=1.0).invert(z0, predictor, steps)
    torch.testing.assert_close(found.seed, draw_noise(z0, 1, 0).expand_as(z0), rtol=0, atol=1e-12)
    again = RFInversion(gamma=1.0, eta=1.0, stop=1.0).reconstruct(found, predictor, steps)
    torch.testing.assert_close(again, z0, rtol=0, atol=1e-12)


def test_rf_inversion_inverts_in_the_empty_prompt():
    @torch.no_grad()
    def seed(guided):
        from rnri.models.predictor import Condition
        from tests.rnri.methods.test_published_methods import Prompted

        text, empty = Condition(torch.full((1,), 5.0).double()), Condition(torch.zeros(1).double())
        denoiser = Prompted(1e-3, text, empty, 3.0) if guided else Prompted(1e-3, empty)
        predictor = NoisePredictor(denoiser)
        found = RFInversion().invert(scalar(1.0), predictor, flow_schedule(3)).seed
        assert predictor.forward_evaluations == 3
        return found

    assert torch.equal(seed(True), seed(False))


@pytest.mark.parametrize(("steps", "shift"), [(2, 1.0), (5, 1.0), (12, 3.0)])
def test_the_closed_form_is_euler_s_exact_inverse(steps, shift):
    denoiser, z0 = velocity(batch=2)
    schedule, predictor = flow_schedule(steps, shift), NoisePredictor(denoiser)
    seed = denoiser.seed(z0, schedule)
    torch.testing.assert_close(sample(seed, predictor, schedule), z0, rtol=0, atol=1e-10)
    solver = SafeguardedAnderson(200, 1e-13)
    found = ImplicitInverter(solver).invert(z0, predictor, schedule)
    torch.testing.assert_close(found.seed, seed, rtol=0, atol=1e-9)


KINDS = ["Euler", "Uni-Inv", "RF-Solver", "FireFlow", "exact midpoint"]
INVERTERS = [ImplicitInverter(FixedPoint(1)), UniInv(), RFSolver(), FireFlow(), EXACT]


def order(inverter, predictor, z0, exact):
    """Of convergence to the flow at sigma 1/2, from 20 steps to 40."""
    seeds = [inverter.invert(z0, predictor, flow_schedule(2 * count).tail(count)).seed for count in (20, 40)]
    errors = [(seed - exact).abs().max().item() for seed in seeds]
    return torch.tensor(errors[0] / errors[1]).log2().item()


@pytest.mark.parametrize(("inverter", "expected"), list(zip(INVERTERS, [1, 1, 3, 2, 3], strict=True)), ids=KINDS)
def test_orders_of_convergence_on_gaussian_data(inverter, expected):
    """The midpoint's leading error, ``a'' + 6 a a' + 4 a^3`` for ``v = a z``, cancels on Gaussian data: order 3."""
    denoiser, z0 = velocity(batch=2)
    found = order(inverter, NoisePredictor(denoiser), z0, denoiser.flow(z0, 0.5))
    assert found == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize(("inverter", "expected"), list(zip(INVERTERS, [1, 1, 2, 2, 2], strict=True)), ids=KINDS)
def test_orders_of_convergence_on_a_velocity_that_is_not_linear(inverter, expected):
    predictor, z0 = function_predictor(wavy, 2), gaussian(batch=2)[1]
    exact = RFSolver().invert(z0, predictor, flow_schedule(1_000).tail(500)).seed
    assert order(inverter, predictor, z0, exact) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (4, 1.0), (9, 3.0)])
def test_the_inverse_of_midpoint_is_exact(steps, shift):
    denoiser, z0 = velocity(batch=2)
    schedule, predictor = flow_schedule(steps, shift), NoisePredictor(denoiser)
    found = EXACT.invert(z0, predictor, schedule)
    spent = predictor.forward_evaluations
    again = EXACT.reconstruct(found, predictor, schedule)
    torch.testing.assert_close(again, z0, rtol=0, atol=1e-10)
    assert found.converged.all() and not found.seed_only and found.residual.isnan().all()
    assert found.nfe.sum() == spent and predictor.forward_evaluations - spent == 2 * 2 * steps


def test_the_midpoint_sampler_is_differentiable():
    denoiser, z0 = velocity(batch=2)
    schedule, predictor = flow_schedule(3), NoisePredictor(denoiser)
    seed, middle = z0.clone().requires_grad_(), MidpointPredictor.from_predictor(predictor, schedule)
    (slope,) = torch.autograd.grad(sample(seed, middle, schedule).sum(), seed)
    difference = sample(z0 + 1, middle, schedule) - sample(z0, middle, schedule)  # the sampler is affine here
    torch.testing.assert_close(slope, difference, rtol=0, atol=1e-10)
    assert predictor.backward_evaluations == 2 * 2 * 3


@pytest.mark.parametrize("method", OWN, ids=str)
def test_an_image_alone_and_in_a_batch_and_counts_are_the_network_s(method):
    denoiser, z0 = velocity(batch=3)
    schedule, predictor, seen = flow_schedule(5, 3.0), NoisePredictor(denoiser), []
    together = method.invert(z0, predictor, schedule, lambda k, z: seen.append((k, z)))
    assert [k for k, _ in seen] == list(range(5)) and torch.equal(seen[-1][1], together.seed)
    assert together.nfe.sum().item() == predictor.forward_evaluations
    images = method.reconstruct(together, predictor, schedule)
    for i in range(3):
        own = predictor.select(torch.tensor([i]))
        alone = method.invert(z0[i : i + 1], own, schedule)
        torch.testing.assert_close(together.seed[i], alone.seed[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(images[i], method.reconstruct(alone, own, schedule)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", NEEDS_FLOW, ids=str)
def test_noise_schedules_are_refused_in_one_sentence(method):
    with pytest.raises(ValueError, match="needs a flow-matching model"):
        check_schedule(method, schedule(4))
    with pytest.raises(ValueError, match="needs a flow-matching model"):
        method.invert(torch.zeros(1, 2, 3, 3), NoisePredictor(gaussian(1)[0]), schedule(4))


def test_uni_inv_serves_noise_schedules_and_is_nearer_than_ddim_inversion():
    denoiser, z0 = gaussian(batch=2)
    steps, predictor = schedule(20), NoisePredictor(denoiser)
    exact = denoiser.seed(z0, steps)
    errors = [
        (method.invert(z0, predictor, steps).seed - exact).norm()
        for method in (UniInv(), ImplicitInverter(FixedPoint(1)))
    ]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gamma": 1.5}, "gamma=1.5"), ({"eta": -0.1}, "eta=-0.1"), ({"start": 0.5}, "start=0.5 lies behind stop=0.25")],
)
def test_settings_of_rf_inversion_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        RFInversion(**settings)


def test_seeds_of_a_coarse_second_order_sampler_have_the_norm_of_noise_and_those_of_euler_s_inverse_do_not():
    denoiser, z0 = velocity(batch=4)
    denoiser = replace(denoiser, mean=0 * denoiser.mean, variance=0 * denoiser.variance + 0.05)
    z0 = 0.05**0.5 * torch.randn(z0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = denoiser.flow(z0).norm()
    euler, midpoint = denoiser.seed(z0, flow_schedule(8)), EXACT.invert(z0, NoisePredictor(denoiser), flow_schedule(8))
    assert isinstance(denoiser, GaussianVelocity)
    assert (midpoint.seed.norm() / exact - 1).abs() < (euler.norm() / exact - 1).abs() / 3


@pytest.mark.parametrize("inverter", [RFSolver(), FireFlow(), EXACT], ids=["rf_solver", "fireflow", "midpoint"])
def test_of_another_samplers_inversion_the_seed_is_a_start_for_eulers(inverter):
    denoiser, z0 = velocity(batch=2)
    predictor, steps = NoisePredictor(denoiser), flow_schedule(4)
    own = inverter.invert(z0, predictor, steps)
    found = SeedOnly(inverter).invert(z0, predictor, steps)
    assert torch.equal(found.seed, own.seed) and found.seed_only and not found.converged.any()
    again = SeedOnly(inverter).reconstruct(found, predictor, steps)
    assert torch.equal(again, sample(own.seed, predictor, steps))
    assert not torch.allclose(again, inverter.reconstruct(own, predictor, steps))


def test_a_method_that_keeps_more_than_a_seed_has_no_seed_alone():
    denoiser, z0 = gaussian(batch=2)
    with pytest.raises(ValueError, match=r"EDICT keeps .* besides the seed"):
        SeedOnly(EDICT()).invert(z0, NoisePredictor(denoiser), schedule(4))
