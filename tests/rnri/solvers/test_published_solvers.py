"""Solvers of other authors, each against its published definition on cases computed by hand."""

import math

import pytest
import torch

from rnri import GNRI, ForwardStep, ImplicitInverter, ImplicitStep, ReNoise, RNRIMeanSign, RNRISign
from rnri.solvers.implicit import SampleCounts
from rnri.solvers.renoise import published_correlation, published_divergence, published_regularizer
from tests.problems import function_predictor, schedule, wavy


def scalar(z):
    return torch.tensor([[[[z]]]], dtype=torch.float64)


def halving(timestep=500, z_0=None, levels=(0.6, 0.8, math.inf, 0)):
    """``f(z) = -z / 2`` at ``z_s = 1``, and the places where it was evaluated."""
    seen = []

    def network(z, _):
        seen.append(z.item())
        return -z / 2

    rows, counts = torch.arange(1), SampleCounts.zeros(1)
    problem = ImplicitStep(function_predictor(network, 1), timestep, 0.0, 1.0, scalar(1.0), rows, counts, z_0, levels)
    return problem, seen


def test_renoise_goes_on_from_its_last_value_and_ends_in_the_mean():
    problem, seen = halving()
    solution = ReNoise(5, 0, average_from=0)(problem, scalar(1.0))
    assert seen == [1, -0.5, 0.25, -0.125, 0.0625]
    assert solution.z.item() == pytest.approx((-0.5 + 0.25 - 0.125 + 0.0625 - 0.03125) / 5)


@pytest.mark.parametrize(
    ("timestep", "nfe", "averaged"),
    [(500, 10, (8, 9)), (250, 10, (8, 9)), (249, 6, (0, 1, 2, 3, 4)), (1, 6, (0, 1, 2, 3, 4))],
)
def test_renoise_has_the_authors_windows(timestep, nfe, averaged):
    problem, seen = halving(timestep)
    solution = ReNoise(tolerance=0)(problem, scalar(1.0))
    assert len(seen) == nfe == solution.nfe.item()
    values = [(-0.5) ** (k + 1) for k in averaged]
    assert solution.z.item() == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_renoise_returns_its_last_value_where_the_window_is_not_reached():
    problem, seen = halving()
    assert ReNoise(2, 0)(problem, scalar(1.0)).z.item() == 0.25
    assert seen == [1, -0.5]


def test_renoise_refuses_an_empty_window():
    with pytest.raises(ValueError, match="average_from=9 must be below average_to=9"):
        ReNoise(average_from=9, average_to=9)


def test_published_divergence_by_hand():
    # One channel and patch each of two, the halves of the first at -1 and 1, of the second at -2 and 2.
    first = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat_interleave(8).view(1, 1, 4, 4).repeat(1, 2, 1, 1)
    variance, variance_r = 16 / 15 + 1e-6, 4 * 16 / 15 + 1e-6
    one = abs(torch.tensor(variance_r / variance).log().item() + 16 / 15 / variance_r - 1)
    assert published_divergence(first, 2 * first).item() == pytest.approx(2 * one, rel=1e-6)
    assert published_divergence(first, first).item() == pytest.approx(0, abs=1e-5)


def test_published_correlation_by_hand():
    # A channel of ones of the least side: whatever the shift, the mean product is 1 along both axes; a pyramid of one.
    ones = torch.ones(1, 3, 8, 8, dtype=torch.float64)
    assert published_correlation(ones, torch.Generator().manual_seed(0)).item() == 3 * 2
    assert published_correlation(torch.ones(1, 1, 16, 16).double(), torch.Generator().manual_seed(0)).item() == 4


def test_the_published_regularizer_takes_its_losses_in_turn():
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
    found = published_regularizer(x, reference, weights, torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("regularizer", ["published", "gentle"])
def test_regularized_renoise_treats_each_image_alone(regularizer):
    z_s = torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solver = ReNoise(iterations=5, rounds=2, average_from=1, tolerance=0, regularizer=regularizer)
    inverter, steps = ImplicitInverter(solver), schedule(4)
    together = inverter.invert(z_s, function_predictor(wavy, 3), steps)
    alone = inverter.invert(z_s[:1], function_predictor(wavy, 1), steps)
    torch.testing.assert_close(together.seed[:1], alone.seed, rtol=1e-9, atol=1e-9)


def test_exact_dpm_starts_at_f_and_is_damped_from_there():
    # Its step is z - rate (z - f(z)) / A; here A is 1 and f(z) = 1 - z / 2.
    rows, counts = torch.arange(1), SampleCounts.zeros(1)
    problem = ImplicitStep(function_predictor(lambda z, _: -z / 2, 1), 1, 1.0, 1.0, scalar(1.0), rows, counts)
    starts = [1.0, 0.5]  # z_s, f(z_s)
    second = starts[1] - 0.5 * (starts[1] - 0.75)
    for iterations, expected in [(1, 0.5), (2, second), (3, second - 0.5 * (second - (1 - second / 2)))]:
        assert ForwardStep(iterations, 0)(problem, scalar(1.0)).z.item() == pytest.approx(expected, rel=1e-12)
    damped = ForwardStep(1, 0, from_f=False)(problem, scalar(1.0)).z.item()
    assert damped == 0.75


def test_rnri_sign_is_the_published_code():
    # At z = 1: f = -1/2, |z - f| = 3/2; the marginal has mean 0.6 z_0 = 1.2 and variance 0.64:
    # F = 3/2 + lam (-1/2 - 1.2)^2 / 1.28. The residual's sign is positive, d the authors' constant.
    problem, seen = halving(z_0=scalar(2.0))
    value = 1.5 + 0.1 * 1.7**2 / 1.28
    assert RNRISign(1, 0, keep_best=False)(problem, scalar(1.0)).z.item() == pytest.approx(
        1 - value / 16_384, rel=1e-12
    )
    seen.clear()
    solution = RNRISign(2, 0, d=1)(problem, scalar(1.0))
    at = 1 - value  # where it is evaluated next: F there is |3/2 at| + the prior at -at / 2
    assert seen == [1, pytest.approx(at)]
    again = abs(1.5 * at) + 0.1 * (-at / 2 - 1.2) ** 2 / 1.28
    assert again < value and solution.z.item() == pytest.approx(-at / 2, rel=1e-12)


def test_rnri_sign_keeps_the_value_of_the_smallest_f_not_of_the_smallest_residual():
    # z_0 so far to the left that the prior prefers f(1) = -1/2 to later values, whose residuals are smaller.
    problem, _ = halving(z_0=scalar(-1_000.0))
    solution = RNRISign(2, 0, d=2_000_000)(problem, scalar(1.0))
    assert solution.z.item() == -0.5


def test_rnri_sign_asks_for_the_clean_latent():
    with pytest.raises(ValueError, match="give ImplicitStep the clean latent z_0"):
        RNRISign()(halving()[0], scalar(1.0))


def test_on_latents_of_the_authors_size_ours_differs_from_the_published_rule_by_the_prior_alone():
    z0 = torch.randn(2, 4, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    published, ours = (
        ImplicitInverter(kind(3, 0, prior_weight=0)).invert(z0, function_predictor(wavy, 2), schedule(5)).seed
        for kind in (RNRISign, RNRIMeanSign)
    )
    torch.testing.assert_close(published, ours, rtol=1e-9, atol=1e-9)


def test_gnri_is_eq_8_with_the_prior_of_the_clean_latent():
    # At z = 1: f = -1/2; the marginal has mean 0.6 z_0 = 1.2 and variance 0.64: F = 3/2 + lam 0.2^2 / 1.28, and its
    # derivative, with f' = -1/2, 3/2 - lam 0.2 / 0.64.
    problem, seen = halving(z_0=scalar(2.0))
    step = (1.5 + 0.1 * 0.2**2 / 1.28) / (1.5 - 0.1 * 0.2 / 0.64 + 1e-6)
    solution = GNRI(1, 0, keep_best=False)(problem, scalar(1.0))
    assert solution.z.item() == pytest.approx(1 - step, rel=1e-12)
    assert seen == [1] and solution.nfe.item() == solution.backward.item() == 1


def test_gnri_asks_for_the_clean_latent():
    with pytest.raises(ValueError, match="give ImplicitStep the clean latent z_0"):
        GNRI()(halving()[0], scalar(1.0))
