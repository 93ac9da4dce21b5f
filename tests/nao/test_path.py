"""NAO paths: closed forms, invariances, and comparison with the published energy in all dimensions."""

import math

import pytest
import torch

from nao import centroid, geodesic, interpolate, log_density, path_energy, project, slerp, typical_norm
from nao.polyline import descend_path
from tests.nao.problems import SHAPE, D, angle_between, curve_energy, plane_curve, rotate, seeds, slerp_energy


@pytest.mark.parametrize("key", range(4))
@pytest.mark.parametrize("scale", [0.7, 0.8, 1.0, 1.2, 1.3])
def test_path_has_exact_ends_and_at_most_the_energy_of_slerp(key, scale):
    a, b = scale * seeds(2, key)
    path = interpolate(a, b, 8)
    assert torch.equal(path.points[0], a) and torch.equal(path.points[-1], b)
    assert path.energy <= slerp_energy(a, b)
    assert path.converged


def test_path_between_atypical_norms_is_cheaper_than_slerp():
    a, b = 0.7 * seeds(2)
    assert interpolate(a, b).energy < 0.95 * slerp_energy(a, b)


@pytest.mark.parametrize("side", [4, 16, 64, 128])
@pytest.mark.parametrize("scales", [(1, 1), (0.5, 1.4), (2, 2)], ids=["near", "across", "far"])
def test_energy_length_and_norms_equal_those_of_the_curve(side, scales):
    a, b = torch.tensor(scales, dtype=torch.float64).view(2, 1, 1, 1) * project(seeds(2, shape=(4, side, side)))
    path = interpolate(a, b, 9)
    points = plane_curve(a.numel(), scales, angle_between(a, b), 4001)
    torch.testing.assert_close(points[::500].norm(dim=1), path.norms, rtol=1e-7, atol=0)
    assert path_energy(points, a.numel(), torch.tensor(torch.inf)).item() == pytest.approx(path.energy.item(), rel=1e-5)
    assert points.diff(dim=0).norm(dim=1).sum().item() == pytest.approx(path.length.item(), rel=1e-5)
    torch.testing.assert_close(path.norms, path.points.flatten(1).norm(dim=1))


def test_points_are_evenly_spaced():
    a, b = seeds(2) * torch.tensor([0.6, 1.3]).view(2, 1, 1, 1)
    path = interpolate(a, b, 200)
    segments = path.points.flatten(1).diff(dim=0).norm(dim=1)
    torch.testing.assert_close(segments, torch.full_like(segments, path.length.item() / 199), rtol=5e-3, atol=0)
    assert interpolate(a, b, 9).points.flatten(1).diff(dim=0).norm(dim=1).max() <= path.length / 8 * (1 + 1e-5)
    # the points of a coarser path are a subset of those of a finer one
    torch.testing.assert_close(interpolate(a, b, 9).points, interpolate(a, b, 17).points[::2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [4, 64])
@pytest.mark.parametrize("scales", [(0.8, 1.2), (0.9, 0.9)], ids=["across", "same side"])
def test_clairauts_momentum_is_constant_along_the_path(side, scales):
    # Clairaut's relation: norm * unit cost * sine of the angle to the radius is constant along a geodesic. The ends are
    # close to each other, because a longer path is a great circle along the waist, where the test would be trivial.
    d = 4 * side * side
    x = plane_curve(d, scales, 0.6 / typical_norm(d), 4001)
    middle, step = (x[1:] + x[:-1]) / 2, x.diff(dim=0)
    norm_times_sine = (middle[:, 0] * step[:, 1] - middle[:, 1] * step[:, 0]) / step.norm(dim=1)
    momentum = -log_density(middle.norm(dim=1), d) * norm_times_sine
    torch.testing.assert_close(momentum, momentum.mean().expand(4000), rtol=2e-4, atol=0)


def test_path_between_typical_norms_is_almost_a_great_circle():
    # the waist is below the mode by c0 / (2 sqrt(d)) = 0.0022 at d = 16,384
    a, b = project(seeds(2, shape=(4, 64, 64)))
    path = interpolate(a, b, 9)
    torch.testing.assert_close(path.points, slerp(a, b, 9), rtol=0, atol=1e-3)
    angle = torch.acos(torch.cosine_similarity(a.flatten(), b.flatten(), 0)).item()
    unit_cost = -log_density(torch.tensor(typical_norm(16_384)), 16_384).item()
    assert path.energy.item() == pytest.approx(unit_cost * angle * typical_norm(16_384), rel=1e-4)


def test_energy_of_a_radial_path_is_the_integral_of_the_cost():
    a = project(seeds(1))[0]
    path = interpolate(0.6 * a, 1.3 * a, 4)
    norms = typical_norm(D) * torch.linspace(0.6, 1.3, 20_001, dtype=torch.float64)
    expected = torch.trapezoid(-log_density(norms, D), norms).item()
    assert path.energy.item() == pytest.approx(expected, rel=1e-7)
    assert path.length.item() == pytest.approx(0.7 * typical_norm(D), rel=1e-7)


def test_middle_of_a_path_has_the_typical_norm():
    path = interpolate(*(0.8 * seeds(2, shape=(4, 16, 16))), 12)
    middles = ((path.points[1:] + path.points[:-1]) / 2).flatten(1).norm(dim=1)[2:-2]
    assert (middles / typical_norm(1024) - 1).abs().max() < 0.05 < 0.2 - 0.05


def test_normalize_rescales_the_ends_to_the_typical_norm():
    path = interpolate(*(0.8 * seeds(2)), 4, normalize=True)
    assert path.norms[[0, -1]].tolist() == pytest.approx([typical_norm(D)] * 2)


def test_path_is_rotation_equivariant():
    a, b = 0.8 * seeds(2)
    path = interpolate(a, b, 6)
    rotated = interpolate(rotate(a), rotate(b), 6)
    assert rotated.energy.item() == pytest.approx(path.energy.item(), rel=1e-12)
    torch.testing.assert_close(rotated.points, rotate(path.points), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.1])
def test_published_descent_converges_to_the_path(scale):
    # the gap between the published energy of K points and the energy of the curve decreases with K
    a, b = scale * project(seeds(2))
    path = interpolate(a, b, 65)
    gaps = [
        abs(descend_path(a, b, num_points, 3000, history=100)[1] / path.energy.item() - 1) for num_points in (17, 65)
    ]
    assert gaps[1] < 0.002 and gaps[1] < 0.5 * gaps[0]


def test_perturbed_path_has_a_higher_energy():
    a, b = 0.8 * seeds(2)
    path = interpolate(a, b, 1001)
    arc = torch.sin(math.pi * torch.linspace(0, 1, 1001, dtype=torch.float64)).view(-1, 1, 1, 1)
    for direction in seeds(20, key=3):
        for size in (0.02, -0.02):
            assert curve_energy(path.points + size * arc * direction) > curve_energy(path.points)


def test_perturbation_out_of_the_plane_has_a_higher_energy():
    a, b = seeds(2)
    path = interpolate(a, b, 301).points.flatten(1)
    basis, _ = torch.linalg.qr(torch.stack([a, b]).flatten(1).T)
    for key in range(20):
        offset = 0.01 * torch.randn(301, D, dtype=torch.float64, generator=torch.Generator().manual_seed(key))
        offset[[0, -1]] = 0
        offset -= offset @ basis @ basis.T
        assert curve_energy((path + offset).unflatten(1, SHAPE)) > curve_energy(path.unflatten(1, SHAPE))


def test_path_of_two_points_consists_of_its_ends():
    a, b = seeds(2)
    path = interpolate(a, b, 2)
    assert torch.equal(path.points, torch.stack([a, b])) and path.converged
    assert path.energy.item() == pytest.approx(interpolate(a, b, 50).energy.item(), rel=1e-12)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
def test_path_from_a_seed_to_itself_is_constant(scale):
    a = scale * seeds(1)[0]
    path = interpolate(a, a, 5)
    torch.testing.assert_close(path.points, a.expand(5, *SHAPE), rtol=0, atol=1e-6)
    assert path.energy.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_points_have_the_dtype_of_the_seeds(dtype):
    a, b = seeds(2).to(dtype)
    path = interpolate(a, b, 5)
    assert path.points.dtype == dtype and path.energy.dtype == torch.float64
    assert torch.equal(path.points[-1], b)


def test_paths_of_a_batch_are_independent():
    a, b = (seeds(6, key).view(2, 3, *SHAPE) for key in (0, 1))
    a = a * torch.linspace(0.5, 2, 6).view(2, 3, 1, 1, 1)
    together = interpolate(a, b, 5)
    assert together.points.shape == (2, 3, 5, *SHAPE) and together.norms.shape == (2, 3, 5)
    for i in range(2):
        for j in range(3):
            alone = interpolate(a[i, j], b[i, j], 5)
            torch.testing.assert_close(together.points[i, j], alone.points, rtol=0, atol=1e-12)
            for name in ("energy", "length", "converged"):
                torch.testing.assert_close(getattr(together, name)[i, j], getattr(alone, name), rtol=1e-13, atol=0)


def test_path_without_enough_iterations_is_not_converged(monkeypatch):
    a, b = 0.8 * seeds(2)
    assert interpolate(a, b).converged
    monkeypatch.setattr(geodesic, "MAX_NEWTON_STEPS", 1)
    assert not interpolate(a, b).converged


@pytest.mark.parametrize(("ratio", "limit"), [(0.05, 0.35), (30.0, 10.0)])
def test_norms_beyond_the_tables_add_a_radial_segment(ratio, limit):
    a, b, c = project(seeds(3))  # three, because the centroid of two is not unique
    path = interpolate(a, ratio * b, 6)
    clamped = interpolate(a, limit * b, 6)
    assert path.converged and torch.equal(path.points[-1], ratio * b)
    torch.testing.assert_close(path.points[:-1], clamped.points[:-1])
    norms = typical_norm(a.numel()) * torch.linspace(ratio, limit, 200_001, dtype=torch.float64)
    cost = torch.trapezoid(-log_density(norms, a.numel()), norms).abs().item()
    assert (path.energy - clamped.energy).item() == pytest.approx(cost, rel=1e-6)
    assert (path.length - clamped.length).item() == pytest.approx((norms[-1] - norms[0]).abs().item())
    far = centroid(torch.stack([a, c, ratio * b]))
    near = centroid(torch.stack([a, c, limit * b]))
    torch.testing.assert_close(far.point, near.point)
    assert (far.energy - near.energy).item() == pytest.approx(cost, rel=1e-6)


def test_invalid_seeds_and_point_counts_raise_an_error():
    a, b = seeds(2)
    zero = torch.zeros_like(a)
    for call, message in [
        (lambda: interpolate(a, zero), "seed 1 has norm 0"),
        (lambda: interpolate(a, -a), "opposite"),
        (lambda: interpolate(a, -3 * a), "opposite"),
        (lambda: interpolate(a, b, 1), "num_points=1"),
        (lambda: interpolate(a[:1, :1], b[:1, :1]), "d=4"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert interpolate(0.1 * a, 20 * b, 5, normalize=True).converged
