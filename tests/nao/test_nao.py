"""NAO against closed forms, scipy, and the same problem solved in full dimension."""

import pytest
import torch
from scipy.stats import chi

from nao import (
    centroid,
    centroid_seeds,
    interpolate,
    lerp,
    log_density,
    mean,
    norm_penalty,
    normalised_mean,
    path_energy,
    project,
    slerp,
    spherical_mean,
    typical_norm,
)
from nao.path import _spacing, reduce

D = 4 * 4 * 4


def seeds(n: int, side: int = 4, key: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, side, side, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


@pytest.mark.parametrize("d", [2, 64, 1024, 16_384, 65_536])
def test_log_density_is_scipys_chi(d):
    norms = typical_norm(d) * torch.linspace(0.5, 1.5, 11, dtype=torch.float64)
    expected = torch.from_numpy(chi(d).logpdf(norms.numpy()))
    torch.testing.assert_close(log_density(norms, d), expected, rtol=1e-9, atol=1e-6)


def test_log_density_tells_neighbouring_float32_norms_apart():
    mode = typical_norm(16_384)
    values = log_density(torch.tensor([mode, mode + 1e-4, mode + 2e-4]), 16_384)
    assert values[0] > values[1] > values[2]


def test_norm_penalty_has_the_right_gradient_and_vanishes_at_the_mode():
    x = seeds(3).requires_grad_()
    assert torch.autograd.gradcheck(norm_penalty, x)
    assert norm_penalty(project(seeds(3))).abs().max() < 1e-12


def test_path_energy_has_the_right_gradient():
    points = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    spacing = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: path_energy(p, 3, spacing), points)


def test_spherical_mean_of_two_is_the_middle_of_their_great_circle():
    a, b = project(seeds(2))
    torch.testing.assert_close(spherical_mean(torch.stack([a, b])), slerp(a, b, 3)[1])


def test_baselines_have_the_norms_they_promise():
    x = seeds(5)
    assert normalised_mean(x).norm().item() == pytest.approx(typical_norm(D))
    assert spherical_mean(x).norm().item() == pytest.approx(x.flatten(1).norm(dim=1).mean().item())
    assert mean(x).norm() < 0.7 * typical_norm(D)
    assert lerp(x[0], x[1], 3)[1].norm() < slerp(x[0], x[1], 3)[1].norm()


@pytest.mark.parametrize("scale", [1.0, 0.8, 1.2])
def test_path_keeps_its_ends_and_costs_no_more_than_slerp(scale):
    a, b = seeds(2) * scale
    path = interpolate(a, b, 8)
    assert (path.points[0] == a).all() and (path.points[-1] == b).all()
    start = slerp(a, b, 8).flatten(1)
    assert path.energy <= path_energy(start, D, _spacing(start)).item()


def test_paths_middle_is_typical_though_its_ends_are_not():
    a, b = 0.8 * seeds(2, side=16)
    path = interpolate(a, b, 12)
    middles = ((path.points[1:] + path.points[:-1]) / 2).flatten(1).norm(dim=1)[2:-2]
    assert (middles / typical_norm(1024) - 1).abs().max() < 0.05 < 0.2 - 0.05


def test_typical_option_moves_the_ends_to_the_typical_norm():
    path = interpolate(*(0.8 * seeds(2)), 4, typical=True)
    assert path.norms[[0, -1]].tolist() == pytest.approx([typical_norm(D)] * 2)


def test_reduced_problem_is_the_full_one():
    x = seeds(3)
    coordinates, lift = reduce(x)
    torch.testing.assert_close(lift(coordinates), x)
    torch.testing.assert_close(coordinates @ coordinates.T, x.flatten(1) @ x.flatten(1).T)
    # The gradient in all 64 dimensions is that in the plane, so no descent ever leaves it.
    plane, lift = reduce(x[:2])
    start = slerp(*plane[:, :, None, None], 6)[..., 0, 0].requires_grad_()
    full = lift(start.detach()).flatten(1).requires_grad_()
    for points in (start, full):
        path_energy(points, D, _spacing(start.detach())).backward()
    torch.testing.assert_close(lift(start.grad).flatten(1), full.grad)


def test_leaving_the_span_makes_a_path_dearer():
    a, b = seeds(2)
    path = interpolate(a, b, 6).points.flatten(1)
    spacing = _spacing(slerp(a, b, 6).flatten(1))
    basis, _ = torch.linalg.qr(torch.stack([a, b]).flatten(1).T)
    for key in range(20):
        away = 0.3 * torch.randn(6, D, dtype=torch.float64, generator=torch.Generator().manual_seed(key))
        away[[0, -1]] = 0
        away -= away @ basis @ basis.T
        assert path_energy(path + away, D, spacing) > path_energy(path, D, spacing)


def test_centroid_turns_with_the_seeds():
    x = seeds(3)
    rotation, _ = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))

    def turn(z):
        return (z.flatten(-3) @ rotation).unflatten(-1, (4, 4, 4))

    one, other = centroid(x), centroid(turn(x))
    assert other.energy == pytest.approx(one.energy, rel=1e-6)
    torch.testing.assert_close(other.point, turn(one.point), rtol=0, atol=1e-2)


def test_centroid_of_orthogonal_seeds_points_at_their_mean():
    x = torch.zeros(3, 4, 4, 4, dtype=torch.float64)
    for k in range(3):
        x[k].view(-1)[k] = typical_norm(D)
    found = centroid(x)
    assert torch.cosine_similarity(found.point.flatten(), mean(x).flatten(), 0).item() == pytest.approx(1, abs=1e-6)
    assert found.point.norm().item() == pytest.approx(typical_norm(D), rel=0.05)


@pytest.mark.parametrize("x", [seeds(1), seeds(1).repeat(3, 1, 1, 1)], ids=["one", "identical"])
def test_centroid_of_what_is_one_seed_stays_there(x):
    found = centroid(project(x))
    assert torch.cosine_similarity(found.point.flatten(), x[0].flatten(), 0).item() == pytest.approx(1, abs=1e-6)
    assert found.point.norm().item() == pytest.approx(typical_norm(D), rel=0.02)


def test_centroid_keeps_dtype_and_fixed_ends():
    x = seeds(3, side=16).float()
    found = centroid(x, points=5)
    assert found.point.dtype == found.paths.dtype == torch.float32
    assert found.paths.shape == (3, 5, 4, 16, 16)
    assert (found.paths[:, 0] == x).all()
    torch.testing.assert_close(found.paths[:, -1], found.point.expand(3, -1, -1, -1))


def test_centroid_seeds_start_with_the_centroid_and_do_not_depend_on_neighbours():
    x = torch.stack([seeds(3), seeds(3, key=1)])
    both, alone = centroid_seeds(x, 6), centroid_seeds(x[1:], 6)
    assert both.shape == (2, 6, 4, 4, 4)
    torch.testing.assert_close(both[1], alone[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(both[0, 0], centroid(x[0]).point)
    assert (both[0, 1:] - both[0, :1]).flatten(1).norm(dim=1).min() > 0


def test_impossible_seeds_are_explained():
    a, b = seeds(2)
    zero = torch.zeros_like(a)
    with pytest.raises(ValueError, match="seed 1 has norm 0"):
        centroid(torch.stack([a, zero]))
    with pytest.raises(ValueError, match="opposite"):
        slerp(a, -a, 3)
    with pytest.raises(ValueError, match="cancel out"):
        centroid(torch.stack([a, -a]))
    with pytest.raises(ValueError, match="at least one seed"):
        centroid(seeds(0))
    with pytest.raises(ValueError, match="points=1"):
        interpolate(a, b, 1)
