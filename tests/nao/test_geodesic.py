"""The closed form of a path and its derivatives, over norms and angles of nine orders of magnitude."""

import math

import pytest
import torch

from nao import log_density, typical_norm
from nao.geodesic import join
from nao.shell import shell_of

SIZES = [64, 1024, 16_384, 65_536]


def ends(d, count=400, least=0.4, most=3.0):
    """Heights of two ends and angles, small ones among them."""
    generator = torch.Generator().manual_seed(d)
    t = torch.empty(2, count, dtype=torch.float64).uniform_(math.log(least), math.log(most), generator=generator)
    angle = torch.empty(count, dtype=torch.float64).uniform_(0, math.pi, generator=generator)
    angle[::2] = 10 ** -(9 * angle[::2] / math.pi)
    t[1, ::5] = t[0, ::5]
    return t, angle


@pytest.mark.parametrize("d", SIZES)
def test_height_is_the_cost_of_circles(d):
    shell = shell_of(d)
    t = torch.linspace(math.log(0.4), math.log(9), 1001, dtype=torch.float64)
    norm = typical_norm(d) * t.exp()
    alpha = shell.alpha(t)
    torch.testing.assert_close(shell.waist_cost * alpha.cosh(), -norm * log_density(norm, d), rtol=1e-9, atol=0)
    assert (alpha.diff() > 0).all() and shell.alpha(torch.tensor(shell.waist, dtype=torch.float64)).item() == 0
    torch.testing.assert_close(shell.t(alpha), t, rtol=0, atol=1e-6)
    near = shell.waist + shell.waist_slope * torch.linspace(-3, 3, 1001, dtype=torch.float64)
    torch.testing.assert_close(shell.t(shell.alpha(near)), near, rtol=0, atol=1e-9 * shell.waist_slope)
    steps = 1e-5 * torch.ones_like(alpha)
    slope = (shell.t(alpha + steps) - shell.t(alpha - steps)) / (2 * steps)
    torch.testing.assert_close(shell.slope(alpha), slope, rtol=1e-4, atol=0)


@pytest.mark.parametrize("d", SIZES)
def test_every_path_is_found_whatever_its_ends(d):
    t, angle = ends(d, 500, least=0.351, most=9.9)
    shell = shell_of(d)
    paths = join(shell, *shell.alpha(t), angle)
    assert paths.converged.all() and torch.isfinite(paths.energy).all() and (paths.energy >= 0).all()
    # turned round it costs the same
    torch.testing.assert_close(join(shell, *shell.alpha(t.flip(0)), angle).energy, paths.energy, rtol=1e-9, atol=0)


@pytest.mark.parametrize("d", SIZES)
def test_derivatives_are_those_of_the_energy(d):
    t, angle = ends(d)
    far = angle > 1e-3
    t, angle = t[:, far], angle[far]
    shell = shell_of(d)

    def energy(rise=0.0, turn=0.0):
        return join(shell, shell.alpha(t[0]), shell.alpha(t[1] + rise), angle + turn)

    paths, step = energy(), 1e-5
    across = (energy(turn=step).energy - energy(turn=-step).energy) / (2 * step) / shell.waist_cost
    along = (energy(rise=step).energy - energy(rise=-step).energy) / (2 * step) / shell.waist_cost
    turn = 1e-5 * angle  # the momentum changes within small angles
    turned, risen = (energy(turn=turn), energy(turn=-turn)), (energy(rise=step), energy(rise=-step))
    stiffness = (turned[0].momentum - turned[1].momentum) / (2 * turn)
    coupling = (risen[0].momentum - risen[1].momentum) / (2 * step)
    radial_stiffness = (risen[0].end_slope - risen[1].end_slope) / (2 * step)
    scale = paths.b.cosh()  # differences of large energies have their rounding
    torch.testing.assert_close(across / scale, paths.momentum / scale, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(along / scale, paths.end_slope / scale, rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(stiffness / scale, paths.stiffness / scale, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(coupling / scale, paths.coupling / scale, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(radial_stiffness / scale, paths.radial_stiffness / scale, rtol=1e-3, atol=1e-3)
    pull = torch.hypot(paths.momentum, paths.end_slope)
    torch.testing.assert_close(pull, scale, rtol=1e-12, atol=0)


def test_near_ends_are_joined_by_what_is_all_but_a_chord():
    t = torch.tensor([0.9, 0.900001], dtype=torch.float64).log()
    shell = shell_of(1024)
    path = join(shell, *shell.alpha(t), torch.tensor(1e-6, dtype=torch.float64))
    norm = 0.9 * typical_norm(1024)
    chord = norm * math.hypot(1e-6, 1e-6 / 0.9)
    price = -log_density(torch.tensor(norm), 1024).item()
    assert path.energy.item() == pytest.approx(price * chord, rel=1e-4)


def test_a_start_from_other_paths_changes_nothing():
    t, angle = ends(16_384)
    shell = shell_of(16_384)
    alpha = shell.alpha(t)
    fresh = join(shell, *alpha, angle)
    other = join(shell, *alpha, (0.9 * angle).clamp_min(1e-9))
    torch.testing.assert_close(join(shell, *alpha, angle, other).energy, fresh.energy, rtol=1e-9, atol=0)
