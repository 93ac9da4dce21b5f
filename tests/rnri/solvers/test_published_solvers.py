"""Published solvers, compared with their definitions on cases that are computed by hand."""

import math

import pytest
import torch

from rnri import GNRI, ForwardStep, ImplicitInverter, ImplicitStep, ReNoise, RNRIMeanSign, RNRISign
from rnri.solvers.extrapolation import PredictionHistory
from rnri.solvers.implicit import EvaluationCounter, Prior
from rnri.solvers.renoise import published_correlation, published_divergence, published_regularizer
from tests.problems import function_predictor, schedule, wavy


def scalar(z):
    return torch.tensor([[[[z]]]], dtype=torch.float64)


def halving(timestep=500, z_0=None):
    """Return the equation with ``f(z) = -z / 2`` and ``z_s = 1``, and a list of the values of ``z`` evaluated."""
    evaluated = []

    def network(z, _):
        evaluated.append(z.item())
        return -z / 2

    z_s = scalar(1.0)
    prior = Prior(z_s, z_0, alpha=0.6, sigma=0.8, alpha_s=math.inf, sigma_s=0)
    counter = EvaluationCounter.zeros(1)
    return ImplicitStep(function_predictor(network, 1), timestep, 0.0, 1.0, z_s, prior, counter), evaluated


def test_renoise_returns_the_mean_of_its_values():
    problem, evaluated = halving()
    solution = ReNoise(5, 0, average_from=0)(problem, scalar(1.0))
    assert evaluated == [1, -0.5, 0.25, -0.125, 0.0625]
    assert solution.z.item() == pytest.approx((-0.5 + 0.25 - 0.125 + 0.0625 - 0.03125) / 5)


@pytest.mark.parametrize(
    ("timestep", "nfe", "averaged"),
    [(500, 10, (8, 9)), (250, 10, (8, 9)), (249, 6, (0, 1, 2, 3, 4)), (1, 6, (0, 1, 2, 3, 4))],
)
def test_renoise_averages_the_published_window(timestep, nfe, averaged):
    problem, evaluated = halving(timestep)
    solution = ReNoise(tolerance=0)(problem, scalar(1.0))
    assert len(evaluated) == nfe == solution.nfe.item()
    values = [(-0.5) ** (k + 1) for k in averaged]
    assert solution.z.item() == pytest.approx(sum(values) / len(values), rel=1e-12)


def zero_noise_predictor(evaluated):
    """Return a predictor of ``-z / 2`` on latents ``[1,1,8,8]`` that records the mean of the latents it evaluates."""

    def network(z, _):
        evaluated.append(z.mean().item())
        return -z / 2

    return function_predictor(network, 1)


@pytest.mark.parametrize(
    ("timestep", "iterations", "nfe", "averaged"),
    [(500, 10, 11, (8, 9)), (249, 10, 7, (0, 1, 2, 3, 4)), (500, 1, 2, (0,)), (500, 2, 3, (1,))],
)
def test_reference_of_renoise_does_not_count_among_its_iterations(timestep, iterations, nfe, averaged):
    """With weights of 0 the regularization changes nothing: the result is the mean of the published window."""
    evaluated = []
    one = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    prior = Prior(one, one, alpha=0.6, sigma=0.8, alpha_s=1.0, sigma_s=0.0)
    predictor = zero_noise_predictor(evaluated)
    problem = ImplicitStep(predictor, timestep, 0.0, 1.0, one, prior, EvaluationCounter.zeros(1))
    solver = ReNoise(iterations, 0, rounds=4, kl_weight=0, correlation_weight=0)
    solution = solver(problem, one)
    assert len(evaluated) == nfe == solution.nfe.item()
    iterates = [value for k, value in enumerate(evaluated) if k != 1]  # the second evaluation is the reference
    assert iterates == pytest.approx([(-0.5) ** k for k in range(nfe - 1)])
    values = [(-0.5) ** (k + 1) for k in averaged]
    assert solution.z.mean().item() == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_reference_of_renoise_counts_in_the_cost():
    assert ImplicitInverter(ReNoise()).nfe_per_step == 10
    assert ImplicitInverter(ReNoise(rounds=4)).nfe_per_step == 11


def test_renoise_without_window_returns_the_last_value():
    problem, evaluated = halving()
    assert ReNoise(2, 0)(problem, scalar(1.0)).z.item() == 0.25
    assert evaluated == [1, -0.5]


def test_renoise_rejects_an_empty_window():
    with pytest.raises(ValueError, match="average_from: must be less than average_to=9, got 9"):
        ReNoise(average_from=9, average_to=9)


def test_published_divergence_by_hand():
    # One channel and patch each of two, the halves of the first at -1 and 1, of the second at -2 and 2.
    first = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat_interleave(8).view(1, 1, 4, 4).repeat(1, 2, 1, 1)
    variance, variance_r = 16 / 15 + 1e-6, 4 * 16 / 15 + 1e-6
    one = abs(torch.tensor(variance_r / variance).log().item() + 16 / 15 / variance_r - 1)
    assert published_divergence(first, 2 * first).item() == pytest.approx(2 * one, rel=1e-6)
    assert published_divergence(first, first).item() == pytest.approx(0, abs=1e-5)


def test_published_correlation_by_hand():
    # A channel of ones of the minimum side: for every shift the mean product is 1 along both axes; one pyramid level.
    ones = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    assert published_correlation(ones, torch.Generator().manual_seed(0)).item() == 3 * 2
    assert published_correlation(torch.ones(1, 1, 16, 16).double(), torch.Generator().manual_seed(0)).item() == 4


def test_published_regularizer_alternates_its_losses():
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reference = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = ReNoise(rounds=1, kl_weight=0.1, correlation_weight=2.0)
    expected = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(published_divergence(expected, reference).sum(), expected)
    expected = (x - 0.1 * slope.clamp(-100, 100)).requires_grad_()
    generator = torch.Generator().manual_seed(7)
    for _ in range(5):
        (slope,) = torch.autograd.grad(published_correlation(expected, generator).sum(), expected)
        expected = (expected.detach() - 2.0 * slope / 5).requires_grad_()
    result = published_regularizer(x, reference, weights, torch.Generator().manual_seed(7))
    torch.testing.assert_close(result, expected.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("regularizer", ["published", "gentle"])
def test_regularized_renoise_does_not_depend_on_batch(regularizer):
    z_s = torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solver = ReNoise(iterations=5, rounds=2, average_from=1, tolerance=0, regularizer=regularizer)
    inverter = ImplicitInverter(solver)
    steps = schedule(4)
    batched = inverter.invert(z_s, function_predictor(wavy, 3), steps)
    alone = inverter.invert(z_s[:1], function_predictor(wavy, 1), steps)
    torch.testing.assert_close(batched.seed[:1], alone.seed, rtol=1e-9, atol=1e-9)


def test_forward_step_starts_at_f_and_is_damped():
    # Its step is z - rate (z - f(z)) / A; here A is 1 and f(z) = 1 - z / 2.
    z_s = scalar(1.0)
    prior = Prior(z_s, None, alpha=0.6, sigma=0.8, alpha_s=0.6, sigma_s=0.8)
    predictor = function_predictor(lambda z, _: -z / 2, 1)
    problem = ImplicitStep(predictor, 1, 1.0, 1.0, z_s, prior, EvaluationCounter.zeros(1))
    starts = [1.0, 0.5]  # z_s, f(z_s)
    second = starts[1] - 0.5 * (starts[1] - 0.75)
    for iterations, expected in [(1, 0.5), (2, second), (3, second - 0.5 * (second - (1 - second / 2)))]:
        assert ForwardStep(iterations, 0)(problem, scalar(1.0)).z.item() == pytest.approx(expected, rel=1e-12)
    damped = ForwardStep(1, 0, from_f=False)(problem, scalar(1.0)).z.item()
    assert damped == 0.75


def test_rnri_sign_matches_published_code():
    # At z = 1: f = -1/2, |z - f| = 3/2; the marginal has mean 0.6 z_0 = 1.2 and variance 0.64:
    # F = 3/2 + lambda (-1/2 - 1.2)^2 / 1.28. The residual's sign is positive, d the authors' constant.
    problem, evaluated = halving(z_0=scalar(2.0))
    value = 1.5 + 0.1 * 1.7**2 / 1.28
    assert RNRISign(1, 0, keep_best=False)(problem, scalar(1.0)).z.item() == pytest.approx(
        1 - value / 16_384, rel=1e-12
    )
    evaluated.clear()
    solution = RNRISign(2, 0, d=1)(problem, scalar(1.0))
    z = 1 - value  # the next iterate: F there is |3/2 z| plus the prior at -z / 2
    assert evaluated == [1, pytest.approx(z)]
    next_value = abs(1.5 * z) + 0.1 * (-z / 2 - 1.2) ** 2 / 1.28
    assert next_value < value
    assert solution.z.item() == pytest.approx(-z / 2, rel=1e-12)


def test_rnri_sign_matches_published_code_in_the_coordinates_of_euler():
    # alpha_t = 1/2, alpha_s = 1, z_s = 1: the published code starts at x = z_s, which is z = 1/2. There
    # f = 1/2 + 1/5 z_s = 0.3 (B = -0.4), |z - f| = 0.2; P = (f - alpha_t z_0)^2 / (2 sigma_t^2) = 1 for z_0 = -0.6 and
    # sigma_t^2 = 0.18. F in x is 0.2 / alpha_t + lambda P = 0.5, and the step in z is alpha_t F = 0.25.
    evaluated = []

    def network(z, _):
        evaluated.append(z.item())
        return torch.full_like(z, 0.5)

    z_s = scalar(1.0)
    prior = Prior(z_s, scalar(-0.6), alpha=0.5, sigma=0.18**0.5, alpha_s=1.0, sigma_s=0.0)
    problem = ImplicitStep(function_predictor(network, 1), 1, 0.5, -0.4, z_s, prior, EvaluationCounter.zeros(1))
    solver = RNRISign(1, 0, keep_best=False, d=1, coordinates="euler")
    start = ImplicitInverter(solver, "scaled").guess(problem, PredictionHistory())
    assert start.item() == 0.5
    assert solver(problem, start).z.item() == pytest.approx(0.5 - 0.25, rel=1e-12)
    assert RNRISign(1, 0, keep_best=False, d=1)(problem, start).z.item() == pytest.approx(0.5 - 0.3, rel=1e-12)
    assert evaluated == [0.5, 0.5]


def test_rnri_sign_minimizes_its_objective():
    # z_0 is so small that the prior prefers f(1) = -1/2 to later values, whose residuals are smaller.
    problem, _ = halving(z_0=scalar(-1_000.0))
    solution = RNRISign(2, 0, d=2_000_000)(problem, scalar(1.0))
    assert solution.z.item() == -0.5


def test_rnri_sign_requires_the_clean_latent():
    with pytest.raises(ValueError, match="needs the clean latent: pass z_0"):
        RNRISign()(halving()[0], scalar(1.0))


def test_rnri_without_prior_equals_rnri_sign():
    """On latents of 64 x 64 x 4 the variants differ in the prior only."""
    z0 = torch.randn(2, 4, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    published, mean_sign = (
        ImplicitInverter(kind(3, 0, prior_weight=0)).invert(z0, function_predictor(wavy, 2), schedule(5)).seed
        for kind in (RNRISign, RNRIMeanSign)
    )
    torch.testing.assert_close(published, mean_sign, rtol=1e-9, atol=1e-9)


def test_gnri_by_hand():
    # At z = 1: f = -1/2; the marginal has mean 0.6 z_0 = 1.2 and variance 0.64: F = 3/2 + lambda 0.2^2 / 1.28, and its
    # derivative, with f' = -1/2, 3/2 - lambda 0.2 / 0.64.
    problem, evaluated = halving(z_0=scalar(2.0))
    step = (1.5 + 0.1 * 0.2**2 / 1.28) / (1.5 - 0.1 * 0.2 / 0.64 + 1e-6)
    solution = GNRI(1, 0, keep_best=False)(problem, scalar(1.0))
    assert solution.z.item() == pytest.approx(1 - step, rel=1e-12)
    assert evaluated == [1] and solution.nfe.item() == solution.backward.item() == 1


def test_gnri_requires_the_clean_latent():
    with pytest.raises(ValueError, match="needs the clean latent: pass z_0"):
        GNRI()(halving()[0], scalar(1.0))
