"""Geodesics and their derivatives, over a wide range of norms and nine orders of magnitude of angles."""

import math

import pytest
import torch

from nao import log_density, typical_norm
from nao.geodesic import solve_geodesics
from nao.radial_metric import radial_metric

SIZES = [64, 1024, 16_384, 65_536]


def random_ends(d, count=400, min_ratio=0.4, max_ratio=3.0):
    """Log norms ``t [2,count]`` of two ends, and angles, half of them log-uniform and small."""
    generator = torch.Generator().manual_seed(d)
    t = torch.empty(2, count, dtype=torch.float64).uniform_(
        math.log(min_ratio), math.log(max_ratio), generator=generator
    )
    angle = torch.empty(count, dtype=torch.float64).uniform_(0, math.pi, generator=generator)
    angle[::2] = 10 ** -(9 * angle[::2] / math.pi)
    t[1, ::5] = t[0, ::5]
    return t, angle


@pytest.mark.parametrize("d", SIZES)
def test_alpha_tabulates_the_cost_of_circles(d):
    metric = radial_metric(d)
    t = torch.linspace(math.log(0.4), math.log(9), 1001, dtype=torch.float64)
    norm = typical_norm(d) * t.exp()
    alpha = metric.alpha(t)
    torch.testing.assert_close(metric.waist_cost * alpha.cosh(), -norm * log_density(norm, d), rtol=1e-9, atol=0)
    assert (alpha.diff() > 0).all() and metric.alpha(torch.tensor(metric.waist, dtype=torch.float64)).item() == 0
    torch.testing.assert_close(metric.t(alpha), t, rtol=0, atol=1e-6)
    near = metric.waist + metric.waist_slope * torch.linspace(-3, 3, 1001, dtype=torch.float64)
    torch.testing.assert_close(metric.t(metric.alpha(near)), near, rtol=0, atol=1e-9 * metric.waist_slope)
    steps = 1e-5 * torch.ones_like(alpha)
    slope = (metric.t(alpha + steps) - metric.t(alpha - steps)) / (2 * steps)
    torch.testing.assert_close(metric.slope(alpha), slope, rtol=1e-4, atol=0)


@pytest.mark.parametrize("d", SIZES)
def test_every_path_converges(d):
    t, angle = random_ends(d, 500, min_ratio=0.351, max_ratio=9.9)
    metric = radial_metric(d)
    paths = solve_geodesics(metric, *metric.alpha(t), angle)
    assert paths.converged.all() and torch.isfinite(paths.energy).all() and (paths.energy >= 0).all()
    # the energy is symmetric in the ends
    torch.testing.assert_close(
        solve_geodesics(metric, *metric.alpha(t.flip(0)), angle).energy, paths.energy, rtol=1e-9, atol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("d", SIZES)
def test_derivatives_equal_finite_differences_of_the_energy(d):
    t, angle = random_ends(d)
    is_large = angle > 1e-3
    t, angle = t[:, is_large], angle[is_large]
    metric = radial_metric(d)

    def energy(rise=0.0, turn=0.0):
        return solve_geodesics(metric, metric.alpha(t[0]), metric.alpha(t[1] + rise), angle + turn)

    paths = energy()
    step = 1e-5
    angle_derivative = (energy(turn=step).energy - energy(turn=-step).energy) / (2 * step) / metric.waist_cost
    norm_derivative = (energy(rise=step).energy - energy(rise=-step).energy) / (2 * step) / metric.waist_cost
    turn = 1e-5 * angle  # relative, because the momentum varies quickly at small angles
    turned = energy(turn=turn), energy(turn=-turn)
    risen = energy(rise=step), energy(rise=-step)
    stiffness = (turned[0].momentum - turned[1].momentum) / (2 * turn)
    coupling = (risen[0].momentum - risen[1].momentum) / (2 * step)
    radial_stiffness = (risen[0].end_slope - risen[1].end_slope) / (2 * step)
    scale = paths.b.cosh()  # differences of large energies have large rounding errors
    torch.testing.assert_close(angle_derivative / scale, paths.momentum / scale, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm_derivative / scale, paths.end_slope / scale, rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(stiffness / scale, paths.stiffness / scale, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(coupling / scale, paths.coupling / scale, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(radial_stiffness / scale, paths.radial_stiffness / scale, rtol=1e-3, atol=1e-3)
    gradient_norm = torch.hypot(paths.momentum, paths.end_slope)
    torch.testing.assert_close(gradient_norm, scale, rtol=1e-12, atol=0)


def test_path_between_close_ends_is_almost_a_chord():
    t = torch.tensor([0.9, 0.900001], dtype=torch.float64).log()
    metric = radial_metric(1024)
    path = solve_geodesics(metric, *metric.alpha(t), torch.tensor(1e-6, dtype=torch.float64))
    norm = 0.9 * typical_norm(1024)
    chord = norm * math.hypot(1e-6, 1e-6 / 0.9)
    unit_cost = -log_density(torch.tensor(norm), 1024).item()
    assert path.energy.item() == pytest.approx(unit_cost * chord, rel=1e-4)


def test_warm_start_does_not_change_the_solution():
    t, angle = random_ends(16_384)
    metric = radial_metric(16_384)
    alpha = metric.alpha(t)
    cold = solve_geodesics(metric, *alpha, angle)
    similar = solve_geodesics(metric, *alpha, (0.9 * angle).clamp_min(1e-9))
    torch.testing.assert_close(
        solve_geodesics(metric, *alpha, angle, warm_start=similar).energy, cold.energy, rtol=1e-9, atol=0
    )
