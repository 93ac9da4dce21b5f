"""The density of the norm (chi distribution), compared with scipy and with exact properties."""

import math

import pytest
import torch
from scipy.stats import chi

from nao import log_density, norm_penalty, project, relative_log_density, typical_norm
from nao.norm import peak_log_density, seed_norm

SIZES = [64, 1024, 4096, 16_384, 65_536]


def seeds(n: int, key: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, 4, 4, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("span", [1e-3, 0.1, 0.9], ids=["near", "middle", "far"])
def test_log_density_equals_scipy(d, span):
    norms = typical_norm(d) * (1 + span * torch.linspace(-1, 1, 21, dtype=torch.float64))
    expected = torch.from_numpy(chi(d).logpdf(norms.numpy()))
    # the tolerance covers the rounding of scipy, which sums terms of up to d log d
    torch.testing.assert_close(log_density(norms, d), expected, rtol=1e-10, atol=1e-15 * d * math.log(d))


@pytest.mark.parametrize("d", [2, *SIZES])
def test_log_density_equals_scipy_around_the_mode(d):
    norms = typical_norm(d) * torch.linspace(0.5, 1.5, 11, dtype=torch.float64)
    expected = torch.from_numpy(chi(d).logpdf(norms.numpy()))
    torch.testing.assert_close(log_density(norms, d), expected, rtol=1e-9, atol=1e-6)


def test_log_density_resolves_neighboring_float32_norms():
    mode = typical_norm(16_384)
    values = log_density(torch.tensor([mode, mode + 1e-4, mode + 2e-4]), 16_384)
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("d", SIZES)
def test_relative_density_is_zero_at_the_mode_and_negative_elsewhere(d):
    mode = torch.tensor(typical_norm(d), dtype=torch.float64)
    assert relative_log_density(mode, d).item() == 0
    assert log_density(mode, d).item() == peak_log_density(d)
    away = mode * torch.tensor([0.1, 0.5, 0.999, 1 - 1e-6, 1 + 1e-6, 1.001, 2, 10], dtype=torch.float64)
    assert (relative_log_density(away, d) < 0).all()


@pytest.mark.parametrize("d", SIZES)
def test_density_near_the_mode_follows_its_curvature(d):
    # the second derivative of log chi_d at its mode is -2 for every d; naive sums lose these values for d >= 4096
    mode = typical_norm(d)
    away = torch.tensor([1e-3, 1e-2], dtype=torch.float64)
    torch.testing.assert_close(relative_log_density(mode + away, d), -away.square(), rtol=1e-3, atol=0)


def test_cost_of_length_is_positive_and_tends_to_its_limit():
    costs = [-peak_log_density(d) for d in SIZES]
    assert all(cost > 0 for cost in costs)
    assert costs == sorted(costs)
    assert costs[-1] == pytest.approx(math.log(math.pi) / 2, abs=1e-4)


def test_density_of_extreme_norms_is_float64_and_not_nan():
    values = log_density(torch.tensor([0.0, 1e-30, 1e4]), 16_384)
    assert values.dtype == torch.float64
    assert values[0] == -torch.inf and torch.isfinite(values[2])


def test_gradients_pass_gradcheck():
    norms = torch.tensor([3.0, 7.0, 7.9, 12.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda n: relative_log_density(n, 64), norms)
    assert torch.autograd.gradcheck(lambda n: log_density(n, 64), norms)
    x = (seeds(3) * torch.tensor([0.5, 1.0, 2.0]).view(-1, 1, 1, 1)).requires_grad_()
    assert torch.autograd.gradcheck(norm_penalty, x)
    assert norm_penalty(project(seeds(3))).abs().max() < 1e-12


def test_penalties_of_a_batch_are_independent():
    x = seeds(4)
    alone = torch.cat([norm_penalty(x[k : k + 1]) for k in range(4)])
    assert torch.equal(norm_penalty(x), alone)
    assert (norm_penalty(x) > 0).all()
    torch.testing.assert_close(norm_penalty(x), -relative_log_density(x.flatten(1).norm(dim=1), 64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_project_changes_only_the_norm(dtype):
    x = seeds(6).view(2, 3, 4, 4, 4).to(dtype)
    for norm in (None, 5.0):
        y = project(x, norm)
        assert y.dtype == dtype and y.shape == x.shape
        tolerance = {"rel": 1e-3 if dtype == torch.float16 else 1e-6}
        assert seed_norm(y).flatten().tolist() == pytest.approx([norm or math.sqrt(63)] * 6, **tolerance)
        cosine = torch.cosine_similarity(x.double().flatten(2), y.double().flatten(2), -1)
        assert (cosine > 1 - 1e-5).all()


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_error_names_a_seed_without_a_direction(value):
    x = seeds(3)
    x[2] = value
    with pytest.raises(ValueError, match="seed 2 has norm"):
        project(x)


@pytest.mark.parametrize("d", [1, 0])
def test_too_few_components_raise_an_error(d):
    with pytest.raises(ValueError, match=f"d={d}: a seed must have >= 2 components"):
        typical_norm(d)
