"""Rex, SelFix, FlowOpt, SlerpFlow, PMI, PreciseInv and TABA: steps computed by hand, round trips, rejected settings."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import rnri
from rnri import (
    GNRI,
    ImplicitInverter,
    NoisePredictor,
    PreciseInv,
    PromptAware,
    ReNoise,
    RNRIPaper,
    RNRISign,
    RoundTripCorrected,
    Schedule,
    SelFix,
    anderson_inverter,
    check_schedule,
    sample,
)
from rnri.methods import ALL_METHODS, EDICT, PMI, FlowOpt, ForwardSteps, Rex, SeedOnly, SlerpFlow, UniInv
from rnri.methods.common import ddim
from rnri.methods.noise_maps import draw_noise
from tests.pipelines import tiny_stable_diffusion
from tests.problems import flow_schedule, function_predictor, gaussian, schedule, scheduler, velocity, wavy
from tests.rnri.methods.test_flow_methods import two_steps
from tests.rnri.methods.test_published_methods import STEPS, assert_close, predictor, value

REX = [Rex(), Rex(form="noise"), Rex(zeta=0.9), Rex("midpoint"), Rex("midpoint", "noise")]
NOISE_REX = [method for method in REX if method.tableau == "euler"]
ANY_MODEL = [
    Rex(),
    ImplicitInverter(SelFix(4)),
    ImplicitInverter(PreciseInv(4)),
    FlowOpt(3, 0.3),
    ForwardSteps(ddim(), 2),
    ForwardSteps(anderson_inverter(2), 1),
    ForwardSteps(EDICT(), 2),
]
FLOW_ONLY = [Rex("midpoint"), SlerpFlow(1), PMI(), PMI("rf_solver"), PMI("fireflow"), SeedOnly(SlerpFlow(1))]


def euler_network(timesteps: list[float] | None = None) -> tuple[NoisePredictor, Schedule]:
    """Return ``v(z, t) = z + t / 1000`` with one step from sigma 0.8 to 0.4."""
    network, steps = two_steps(timesteps)
    return network, steps.head(1)


def test_rex_in_noise_form_by_hand():
    """The times sigma / alpha are 4/3, 3/4 and 0; the noise is t z, and 0 at the timestep 0 of the clean latent."""
    method = Rex(form="noise", zeta=0.5)
    inversion = method.invert(value(1), predictor(), STEPS)
    # y = 0.8 + 0.8 * 0.75 * 0 and x = 0.8 * 2 - 0.8 + 1.6 * 0.75 * 0.8, then
    # y = 0.75 * 0.8 + 0.6 * 7/12 * 1.76 and x = 0.75 * 1.76 * 2 - 1.216 + 1.2 * 7/12 * 2 * 1.216
    assert_close(inversion.aux["partner"], 1.216)
    assert_close(inversion.seed, 3.1264)
    assert inversion.nfe.flatten().tolist() == [2, 2] and inversion.residual_converged.all()
    assert_close(method.reconstruct(inversion, predictor(), STEPS), 1)


def test_rex_in_data_form_by_hand():
    """The times alpha / sigma are 1/4 and 3/2; the clean latent is (1 - sigma) z - sigma^2."""
    timesteps: list[float] = []
    network, steps = euler_network(timesteps)
    inversion = Rex(zeta=0.5).invert(value(1), network, steps)
    # y = 2 - 0.8 * 1.25 * 0.44; x = 2 * 2 - 1.56 - 1.6 * 1.25 * (0.2 * 1.56 - 0.64)
    assert_close(inversion.aux["partner"], 1.56)
    assert_close(inversion.seed, 3.096)
    assert timesteps == pytest.approx([400, 800])


def test_rex_midpoint_by_hand():
    """The time in the middle is 7/8, so that sigma is 8/15 there."""
    timesteps: list[float] = []
    network, steps = euler_network(timesteps)
    inversion = Rex("midpoint", zeta=0.5).invert(value(1), network, steps)
    middle = 7 / 15 * (8 / 15 * (1 / 0.4 - 0.625 * 0.44)) - (8 / 15) ** 2
    y = 2 - 0.8 * 1.25 * middle
    middle = 7 / 15 * (8 / 15 * (y / 0.8 + 0.625 * (0.2 * y - 0.64))) - (8 / 15) ** 2
    assert_close(inversion.aux["partner"], y)
    assert_close(inversion.seed, 4 - y - 1.6 * 1.25 * middle)
    assert timesteps == pytest.approx([400, 1000 * 8 / 15, 800, 1000 * 8 / 15])
    assert inversion.nfe.item() == 4 == Rex("midpoint").nfe_per_step


@pytest.mark.parametrize("method", NOISE_REX, ids=str)
@pytest.mark.parametrize("final", [False, True], ids=["noisy end", "clean end"])
def test_rex_round_trip_with_noise_prediction(method, final):
    steps = Schedule.from_scheduler(scheduler(set_alpha_to_one=final), 10)
    assert_round_trip(method, steps)


@pytest.mark.parametrize("method", REX, ids=str)
def test_rex_round_trip_with_flow_matching(method):
    """In the noise form, the first sampling step multiplies by the ratio of ``alpha``, 0.036 / 2e-4."""
    assert_round_trip(method, flow_schedule(10, 3.0), atol=1e-9 if method.form == "data" else 1e-7)


def assert_round_trip(method: Rex, steps: Schedule, atol: float = 1e-9) -> None:
    """Assert that Rex is exact up to rounding errors, in contrast to DDIM inversion."""
    z0 = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    network = function_predictor(wavy, 2)
    inversion = method.invert(z0, network, steps)
    torch.testing.assert_close(method.reconstruct(inversion, network, steps), z0, rtol=0, atol=atol)
    assert inversion.residual_converged.all() and not inversion.seed_only and inversion.aux_bytes == 8 * 18
    plain = ddim().invert(z0, network, steps).seed
    assert (sample(plain, network, steps) - z0).abs().max() > 1e-3


@pytest.mark.parametrize(("tableau", "order"), [("euler", 1), ("midpoint", 2)])
def test_rex_has_the_order_of_its_tableau(tableau, order):
    method = Rex(tableau, "noise", 1.0)
    network = function_predictor(wavy, 2)
    z0 = gaussian(batch=2)[1]
    exact = Rex("midpoint", "noise", 1.0).invert(z0, network, flow_schedule(1_000).tail(500)).seed
    seeds = [method.invert(z0, network, flow_schedule(2 * count).tail(count)).seed for count in (40, 80)]
    errors = [(seed - exact).abs().max().item() for seed in seeds]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def test_selfix_by_hand():
    """Three steps of 0.2 with v = z; only the third step has an anchor, 1.3456 + 0.2 * (1.3456 - 1.16) / 0.2."""
    sigmas = torch.tensor([0.6, 0.4, 0.2, 0], dtype=torch.float64)
    steps = Schedule.flow(1000 * sigmas[:-1], sigmas)
    network = function_predictor(lambda z, _: z, 1)
    latents = []
    inverter = ImplicitInverter(SelFix(2, momentum=0.5, strength=0.5, decay=1.0))
    inversion = inverter.invert(value(1), network, steps, lambda _, z: latents.append(z.item()))
    # f = 1.2, m = z = 1.1; f = 1.22, m = (1.1 + 1.22) / 2; the second step is the first times 1.16
    assert latents[:2] == pytest.approx([1.16, 1.16**2], rel=1e-12)
    # m = 1.48016, weights 1/2 and 1/4: z = (1.48016 + 1.5312) / 2, f = 1.646736, m = 1.563448
    assert latents[2] == pytest.approx(0.75 * 1.563448 + 0.25 * 1.5312, rel=1e-12)
    assert inversion.nfe.flatten().tolist() == [2, 2, 2]


def record_item(latents: list[float], k: int, z: Tensor) -> None:
    latents[k + 1] = z.item()


def test_selfix_selects_the_straight_root():
    """``z = z_s + h v(z)`` has several roots; the anchor leads to the root that continues the trajectory."""
    steps = flow_schedule(4)
    network = function_predictor(lambda z, _: 3 * torch.sin(4 * z), 1)
    straightness = {}
    for strength in (1e-9, 0.9):
        latents = [0.3, 0, 0, 0, 0]
        solver = SelFix(60, momentum=0.5, strength=strength, decay=2.0)
        record = partial(record_item, latents)
        ImplicitInverter(solver).invert(value(0.3), network, steps, record)
        velocities = [(b - a) / 0.25 for a, b in pairwise(latents)]
        straightness[strength] = sum(abs(b - a) for a, b in pairwise(velocities))
    assert straightness[0.9] < straightness[1e-9]


def test_precise_inv_by_hand():
    """The noise starts at 1.8, so that z = 1.72 and mu(z) = 0.712 < 1; Adam's first update is the learning rate."""
    network, steps = euler_network()
    inversion = ImplicitInverter(PreciseInv(2, learning_rate=0.1)).invert(value(1), network, steps)
    assert_close(inversion.seed, 1 + 0.4 * 1.9, atol=1e-8)
    assert (inversion.nfe.item(), inversion.backward.item()) == (2, 1)
    assert network.forward_evaluations == 2 and network.backward_evaluations == 1


def test_precise_inv_finds_the_root():
    """The root of z = 1 + 0.4 (z + 0.8) is 2.2."""
    network, steps = euler_network()
    inversion = ImplicitInverter(PreciseInv(400, learning_rate=0.05)).invert(value(1), network, steps)
    assert_close(inversion.seed, 2.2, atol=1e-3)


def test_flow_opt_by_hand():
    """Uni-Inv's seed is 3.016. Sampling gives 1.4896 and 0.73376, then 1.569472 and 0.7816832 from the second seed."""
    method = FlowOpt(2, eta=0.5)
    latents: list[float] = []
    inversion = method.invert(value(1), *two_steps(), lambda k, z: latents.append(z.item()))
    second = 3.016 - 0.5 * (0.73376 - 1)
    assert_close(inversion.seed, second - 0.5 * (0.7816832 - 1))
    assert latents == pytest.approx([1.569472, inversion.seed.item()])
    assert inversion.nfe.flatten().tolist() == [2 + 2, 1 + 2]


def test_flow_opt_approaches_the_image():
    denoiser, z0 = velocity(batch=2)
    steps = flow_schedule(5)
    network = NoisePredictor(denoiser)

    def error(method):
        return (sample(method.invert(z0, network, steps).seed, network, steps) - z0).norm()

    assert error(FlowOpt(40, eta=0.5)) < 0.01 * error(UniInv())


def test_slerp_flow_by_hand():
    """The velocities are (1, 0), (0, 2) and (3, 0) at the timesteps 0, 400 and 800: each step bisects a right angle."""
    velocities = {0: (1, 0), 400: (0, 2), 800: (3, 0)}
    seen = []

    class Network:
        def __call__(self, z: Tensor, t: float) -> Tensor:
            seen.append((round(t), z.flatten().tolist()))
            return torch.tensor(velocities[round(t)], dtype=z.dtype).view(1, 2, 1, 1)

    steps = two_steps()[1]
    inversion = SlerpFlow(1).invert(torch.ones(1, 2, 1, 1), NoisePredictor(Network()), steps)
    first = 1 + 0.4 * 2 / 2**0.5
    seed = first + 0.4 * 3 / 2**0.5
    assert_close(inversion.seed, seed, seed)
    assert [t for t, _ in seen] == [0, 400, 800] and inversion.nfe.tolist() == [[2], [1]]
    assert seen[1][1] == pytest.approx([1.4, 1]) and seen[2][1] == pytest.approx([first, first + 0.4 * 2])
    # sampling visits the timesteps 800, 400 and 0, with the lengths 2 and 1
    result = SlerpFlow(1).reconstruct(inversion, NoisePredictor(Network()), steps)
    assert_close(result, *[seed - 0.4 * (2 + 1) / 2**0.5] * 2)


def test_slerp_flow_computes_tokens_of_four_elements():
    def network(z: Tensor, _: Tensor) -> Tensor:
        return torch.sin(3 * z)

    z0 = torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = flow_schedule(4)
    tokens = SlerpFlow(2).invert(z0, function_predictor(network, 2), steps).seed
    channels = SlerpFlow(1).invert(z0.view(2, 4, 1, 1), function_predictor(network, 2), steps).seed
    torch.testing.assert_close(tokens.view(2, 4, 1, 1), channels)
    assert not torch.allclose(tokens, SlerpFlow(1).invert(z0, function_predictor(network, 2), steps).seed)


def test_slerp_flow_rejects_sizes_without_whole_tokens():
    with pytest.raises(ValueError, match=r"token_size: must divide .*, got 2 for 3 x 3; choose token_size=1"):
        SlerpFlow().invert(torch.zeros(1, 2, 3, 3), NoisePredictor(velocity(1)[0]), flow_schedule(2))


def test_pmi_by_hand():
    """In the second step g = sign(v - v_0) + (v - mean) / 0.8 = (2, 3), and r = sqrt(4 + 3 * 2) * 0.4 / 2."""
    timesteps: list[float] = []
    z0 = torch.tensor([1.0, 3.0], dtype=torch.float64).view(1, 2, 1, 1)
    inversion = PMI(lam=0.8).invert(z0, *two_steps(timesteps))
    radius = 10**0.5 * 0.2 / 13**0.5
    assert_close(inversion.seed, 1.4 + 0.4 * (1.8 - 2 * radius), 4.2 + 0.4 * (4.6 - 3 * radius))
    assert timesteps == [0, 400] and inversion.nfe.tolist() == [[1], [1]] and inversion.seed_only


@pytest.mark.parametrize(("base", "second", "nfe"), [("rf_solver", 2.552, [2, 2]), ("fireflow", 2.44, [2, 1])])
def test_pmi_corrects_other_methods_by_hand(base, second, nfe):
    """One element: the correction is r; the first step of both methods leads to 1.56, see their own tests."""
    inversion = PMI(base).invert(value(1), *two_steps())
    radius = (2 + 3 * 2**0.5) ** 0.5 * 0.2
    assert_close(inversion.seed, 1.56 + 0.4 * (second - radius))
    assert inversion.nfe.flatten().tolist() == nfe and not inversion.seed_only


def test_pmi_samples_with_the_sampler_of_its_base():
    network, steps = two_steps()
    for base, name in (("rf_solver", "rf_solver"), ("fireflow", "fireflow"), ("euler", "ddim")):
        inversion = PMI(base).invert(value(1), network, steps)
        expected = ALL_METHODS[name]().reconstruct(inversion, network, steps)
        assert torch.equal(PMI(base).reconstruct(inversion, network, steps), expected)


def test_taba_by_hand():
    """The cleanest step is replaced: z = 0.8 + 0.6 n; the other step of DDIM inversion is 0.75 z + 0.35 * 2 z."""
    noise = draw_noise(value(1), 1, 5).item()
    method = ForwardSteps(ddim(), 1, seed=5)
    latents: list[float] = []
    inversion = method.invert(value(1), predictor(), STEPS, lambda k, z: latents.append(z.item()))
    assert latents == pytest.approx([0.8 + 0.6 * noise, 1.45 * (0.8 + 0.6 * noise)])
    assert_close(inversion.seed, latents[1])
    assert_close(inversion.z0, 1)
    assert inversion.nfe.flatten().tolist() == [0, 1] and inversion.seed_only
    assert_close(method.reconstruct(inversion, predictor(), STEPS), sample(inversion.seed, predictor(), STEPS).item())


def test_taba_with_an_exact_method_reaches_the_noisy_latent():
    denoiser, z0 = gaussian(batch=2)
    steps = schedule(6)
    network = NoisePredictor(denoiser)
    method = ForwardSteps(EDICT(), 2)
    path: list[Tensor] = []
    inversion = method.invert(z0, network, steps, lambda _, z: path.append(z))
    assert not inversion.seed_only and len(path) == 6
    remaining = steps.head(4)
    torch.testing.assert_close(EDICT().reconstruct(inversion, network, remaining), path[1], rtol=0, atol=1e-9)
    expected = sample(path[1], network, steps.tail(2))
    torch.testing.assert_close(method.reconstruct(inversion, network, steps), expected, rtol=0, atol=1e-9)


def test_taba_rejects_unsupported_schedules():
    with pytest.raises(
        ValueError, match=r"^steps: must be less than the number of sampler steps \(4\), got 4; use fewer"
    ):
        check_schedule(ForwardSteps(ddim(), 4), schedule(4))
    with pytest.raises(ValueError, match="Uni-Inv starts at the clean latent"):
        check_schedule(ForwardSteps(UniInv(), 2), schedule(10))
    check_schedule(ForwardSteps(UniInv(), 2), flow_schedule(10))


@pytest.mark.parametrize(
    "around", [ForwardSteps, PromptAware, lambda inverter: ForwardSteps(RoundTripCorrected(inverter))]
)
@pytest.mark.parametrize("solver", [GNRI(), RNRISign(), ReNoise(rounds=4)], ids=lambda solver: type(solver).__name__)
def test_solvers_that_need_the_clean_latent_cannot_start_at_a_noisy_latent(around, solver):
    name = type(solver).__name__
    message = rf"^inverter: must not need the clean latent, .* got the solver {name}, .*; use another solver"
    denoiser, z0 = gaussian(batch=1)
    with pytest.raises(ValueError, match=message) as error:
        around(ImplicitInverter(solver)).invert(z0, NoisePredictor(denoiser), schedule(4))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("solver", [GNRI(prior_weight=0), RNRISign(prior_weight=0), RNRIPaper(), ReNoise()], ids=str)
def test_solvers_without_the_clean_latent_start_at_a_noisy_latent(solver):
    check_schedule(ForwardSteps(ImplicitInverter(solver)), schedule(4))
    check_schedule(PromptAware(ImplicitInverter(GNRI()), reuse=False), schedule(4))


@pytest.mark.parametrize("steps", [schedule(5), flow_schedule(5, 3.0)], ids=["noise", "flow"])
@pytest.mark.parametrize("method", [*ANY_MODEL, *FLOW_ONLY], ids=str)
def test_batch_independence_and_counts(method, steps):
    try:
        check_schedule(method, steps)
    except ValueError as error:
        assert method in FLOW_ONLY and "needs a flow-matching model" in str(error) and "\n" not in str(error)
        return
    denoiser, z0 = velocity(batch=3) if steps.predicts == "flow" else gaussian(batch=3)
    network = NoisePredictor(denoiser)
    path: list[tuple[int, Tensor]] = []
    together = method.invert(z0, network, steps, lambda k, z: path.append((k, z)))
    assert [k for k, _ in path] == list(range(5)) and torch.equal(path[-1][1], together.seed)
    assert together.nfe.sum() == network.forward_evaluations
    assert together.backward.sum() == network.backward_evaluations
    assert together.seed_only == method.seed_only and together.seed.dtype == torch.float64
    images = method.reconstruct(together, network, steps)
    for i in range(3):
        selected = network.select(torch.tensor([i]))
        alone = method.invert(z0[i : i + 1], selected, steps)
        torch.testing.assert_close(together.seed[i], alone.seed[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(images[i], method.reconstruct(alone, selected, steps)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("method", [*ANY_MODEL[:4], *FLOW_ONLY], ids=str)
def test_few_steps(method, steps):
    denoiser, z0 = velocity(batch=2)
    network = NoisePredictor(denoiser)
    inversion = method.invert(z0, network, flow_schedule(steps))
    assert inversion.nfe.shape == (steps, 2)
    assert method.reconstruct(inversion, network, flow_schedule(steps)).isfinite().all()


@pytest.mark.parametrize("name", ["rex", "rex_midpoint", "slerp_flow", "slerp_flow_seed", "pmi", "taba"])
def test_methods_with_a_fixed_number_refuse_others(name):
    with pytest.raises(ValueError, match="fixed number of network evaluations") as error:
        ALL_METHODS[name]().with_nfe(7)
    assert "\n" not in str(error.value)


def test_with_nfe_changes_the_number_of_evaluations():
    assert FlowOpt().with_nfe(5) == FlowOpt(4)
    assert ForwardSteps(anderson_inverter(2)).with_nfe(5) == ForwardSteps(anderson_inverter(5))
    with pytest.raises(ValueError, match="FlowOpt needs at least 2 network evaluations per step, got 1"):
        FlowOpt().with_nfe(1)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: Rex(tableau="rk4"), "tableau: .*, got 'rk4'"),
        (lambda: Rex(zeta=0.0), "zeta: .*, got 0.0"),
        (lambda: SelFix(momentum=1.0), "momentum: .*, got 1.0"),
        (lambda: SelFix(strength=0.0), "strength: .*, got 0.0"),
        (lambda: FlowOpt(eta=-1.0), "eta: .*, got -1.0"),
        (lambda: FlowOpt(iterations=0), "iterations: .*, got 0"),
        (lambda: PMI(base="heun"), "base: .*, got 'heun'"),
        (lambda: PMI(lam=0.0), "lam: .*, got 0.0"),
        (lambda: PreciseInv(learning_rate=0.0), "learning_rate: .*, got 0.0"),
        (lambda: ForwardSteps(ddim(), 0), "steps: .*, got 0"),
        (lambda: SlerpFlow(0), "token_size: .*, got 0"),
    ],
)
def test_invalid_settings(factory, message):
    with pytest.raises(ValueError, match=message):
        factory()


def test_nan_sample_is_isolated():
    denoiser, z0 = gaussian(batch=3)
    with_nan = z0.clone()
    with_nan[1] = torch.nan
    network = NoisePredictor(denoiser)
    for method in ANY_MODEL:
        inversion = method.invert(with_nan, network, schedule(4))
        expected = method.invert(z0, network, schedule(4))
        torch.testing.assert_close(inversion.seed[[0, 2]], expected.seed[[0, 2]])
        assert inversion.seed[1].isnan().any() and not inversion.residual_converged[1]


def test_invert_with_forward_steps():
    """``forward_steps`` of ``rnri.invert`` is the same as the wrapped method."""
    pipe = tiny_stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 4, "round_trip": False}
    expected = rnri.invert(pipe, image, "a cat", method=ForwardSteps(anderson_inverter(2), 2), **options)
    inversion = rnri.invert(pipe, image, "a cat", forward_steps=2, **options)
    assert torch.equal(inversion.seed, expected.seed) and inversion.nfe[:2].sum() == 0
    with pytest.raises(ValueError, match=r"forward_steps: must be an integer >= 0, got -1"):
        rnri.invert(pipe, image, "a cat", forward_steps=-1, **options)
    with pytest.raises(ValueError, match=r"steps: must be less than the number of sampler steps \(4\), got 4"):
        rnri.invert(pipe, image, "a cat", forward_steps=4, **options)
