"""NAO centroids: closed forms, invariances, independence, and comparison with descent in all dimensions."""

import pytest
import torch

from nao import (
    centroid,
    centroid_seeds,
    frechet_mean,
    interpolate,
    log_density,
    mean,
    path_seeds,
    project,
    spherical_mean,
    typical_norm,
)
from nao.polyline import descend_centroid
from tests.nao.problems import SHAPE, D, centroid_energy, rotate, seeds, slerp_energy


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_perturbed_centroid_has_a_higher_energy(n, scale):
    x = scale * seeds(n)
    result = centroid(x)
    assert result.converged and centroid_energy(x, result.point) == pytest.approx(result.energy.item(), rel=1e-8)
    lower_bound = result.energy.item() * (1 - 1e-9)  # two seeds: all points of their path have the same energy
    for direction in project(seeds(30, key=7)):
        for size in (1e-3, 0.1):
            assert centroid_energy(x, result.point + size * direction) > lower_bound


@pytest.mark.parametrize("scale", [0.9, 1.0])
def test_published_descent_does_not_find_a_lower_energy(scale):
    x = scale * project(seeds(3))
    result = centroid(x)
    point, energy = descend_centroid(x, 7, 300, history=100)
    assert energy == pytest.approx(result.energy.item(), rel=0.005)
    assert centroid_energy(x, point) >= result.energy.item()
    assert torch.cosine_similarity(point.flatten(), result.point.flatten(), 0) > 0.9999


@pytest.mark.parametrize("scale", [0.8, 1.0])
def test_direction_is_the_geometric_median_on_the_sphere(scale):
    # All paths reach the waist, where the cost per radian is the same for all seeds. The reference is Weiszfeld's
    # iteration in d dimensions.
    x = scale * seeds(5, shape=(4, 64, 64))
    units = torch.nn.functional.normalize(x.flatten(1), dim=1)
    direction = units.mean(0)
    for _ in range(200):
        cosines = units @ (direction / direction.norm())
        direction = (units / (1 - cosines.square()).sqrt()[:, None]).sum(0)
    result = centroid(x).point.flatten()
    torch.testing.assert_close(result / result.norm(), direction / direction.norm(), rtol=0, atol=1e-9)


def test_centroid_is_rotation_equivariant():
    for n in (3, 4):
        x = seeds(n)
        result = centroid(x)
        rotated = centroid(rotate(x))
        assert rotated.energy.item() == pytest.approx(result.energy.item(), rel=1e-12)
        torch.testing.assert_close(rotated.point, rotate(result.point), rtol=0, atol=1e-7)


def test_centroid_of_orthogonal_seeds_is_parallel_to_their_mean():
    x = torch.zeros(3, *SHAPE, dtype=torch.float64)
    for k in range(3):
        x[k].view(-1)[k] = typical_norm(D)
    result = centroid(x)
    assert torch.cosine_similarity(result.point.flatten(), mean(x).flatten(), 0).item() == pytest.approx(1, abs=1e-12)
    assert result.point.norm().item() == pytest.approx(typical_norm(D), rel=0.05)


@pytest.mark.parametrize("scale", [0.8, 1.0])
def test_centroid_of_two_is_halfway_along_their_path(scale):
    a, b = scale * project(seeds(2))
    result = centroid(torch.stack([a, b]))
    path = interpolate(a, b, 3)
    # the cost of its own norm moves the centroid slightly outside the waist
    torch.testing.assert_close(result.point, path.points[1], rtol=0, atol=0.05)
    assert result.lengths.sum().item() == pytest.approx(path.length.item(), rel=1e-2)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_centroid_of_identical_seeds_has_their_direction(copies, scale):
    x = scale * project(seeds(1))
    result = centroid(x.repeat(copies, 1, 1, 1))
    assert torch.isfinite(result.paths).all() and result.converged
    assert torch.cosine_similarity(result.point.flatten(), x.flatten(), 0).item() == pytest.approx(1, abs=1e-9)
    ratio = result.point.norm().item() / typical_norm(D)
    assert min(scale, 1) - 0.02 <= ratio <= max(scale, 1) + 0.02


def test_seed_halfway_between_two_others_is_the_centroid():
    a, b = project(seeds(2))
    between = interpolate(a, b, 3).points[1]
    result = centroid(torch.stack([a, between, b]))
    assert result.converged
    torch.testing.assert_close(result.point, between, rtol=0, atol=1e-9)


def test_more_seeds_than_components_have_a_centroid():
    result = centroid(seeds(70), num_points=3)
    assert result.converged and result.paths.shape == (70, 3, *SHAPE)
    for direction in seeds(5, key=9):
        assert centroid_energy(seeds(70), result.point + 0.1 * direction) > result.energy.item()


def test_centroid_is_cheaper_than_the_spherical_mean():
    x = 0.8 * seeds(3)
    result = centroid(x, num_points=5)
    start = spherical_mean(x)
    spherical_energy = sum(slerp_energy(a, start) for a in x) + (
        log_density(torch.tensor(typical_norm(D)), D) - log_density(start.norm(), D)
    )
    assert result.energy < spherical_energy
    assert torch.equal(result.paths[:, 0], x)
    torch.testing.assert_close(result.paths[:, -1], result.point.expand(3, *SHAPE))


def test_paths_lead_from_the_seeds_to_the_centroid():
    x = 0.8 * seeds(3)
    result = centroid(x, num_points=6)
    for k in range(3):
        path = interpolate(x[k], result.point, 6)
        torch.testing.assert_close(result.paths[k], path.points, rtol=0, atol=1e-6)
        assert result.lengths[k].item() == pytest.approx(path.length.item(), rel=1e-8)


def test_paths_have_the_input_dtype_and_exact_ends():
    x = seeds(3, shape=(4, 16, 16)).float()
    result = centroid(x, num_points=5)
    assert result.point.dtype == result.paths.dtype == torch.float32
    assert result.paths.shape == (3, 5, 4, 16, 16)
    assert (result.paths[:, 0] == x).all()
    torch.testing.assert_close(result.paths[:, -1], result.point.expand(3, -1, -1, -1))


@pytest.mark.parametrize("side", [4, 16, 64, 128])
@pytest.mark.parametrize("spread", [(0.4, 1.0, 3.0), (1.0, 1.0, 1.0)], ids=["atypical", "typical"])
def test_centroid_converges_for_all_sizes_and_norms(side, spread):
    d = 4 * side * side
    x = project(seeds(3, shape=(4, side, side))) * torch.tensor(spread).view(3, 1, 1, 1)
    result = centroid(x)
    assert result.converged and torch.isfinite(result.paths).all()
    assert result.point.norm().item() == pytest.approx(typical_norm(d), rel=0.01)
    assert torch.equal(result.paths[:, 0], x)


def test_centroids_of_a_batch_are_independent():
    x = torch.stack([seeds(3, key) for key in range(4)])
    x[2] = x[2, :1]  # identical seeds
    x[3, 1] *= 2
    together = centroid(x)
    assert together.paths.shape == (4, 3, 8, *SHAPE) and together.energy.shape == (4,)
    for k in range(4):
        alone = centroid(x[k])
        torch.testing.assert_close(together.point[k], alone.point, rtol=0, atol=1e-12)
        torch.testing.assert_close(together.energy[k], alone.energy, rtol=1e-13, atol=0)
    nested = centroid(x.view(2, 2, 3, *SHAPE))
    torch.testing.assert_close(nested.point.flatten(0, 1), together.point, rtol=0, atol=0)


def test_centroid_without_enough_iterations_is_not_converged(monkeypatch):
    x = seeds(3)
    assert centroid(x).converged
    monkeypatch.setattr(frechet_mean, "MAX_ITERATIONS", 1)
    assert not centroid(x).converged


def test_centroid_seeds_start_with_the_centroid():
    x = torch.stack([seeds(3, key) for key in range(3)])
    together = centroid_seeds(x, 6)
    assert together.shape == (3, 6, *SHAPE)
    for k in range(3):
        torch.testing.assert_close(centroid_seeds(x[k : k + 1], 6)[0], together[k], rtol=0, atol=1e-12)
        torch.testing.assert_close(together[k, 0], centroid(x[k]).point, rtol=0, atol=1e-12)
        assert (together[k, 1:] - together[k, :1]).flatten(1).norm(dim=1).min() > 0
    torch.testing.assert_close(centroid_seeds(x.flip(0), 6).flip(0), together, rtol=0, atol=1e-12)


def test_nan_in_a_batch_raises_an_error():
    x = torch.stack([seeds(3), seeds(3, 1)])
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="seed 5 has norm nan"):
        centroid_seeds(x, 4)


@pytest.mark.parametrize("count", [1, 2, 4, 7, 20, 40])
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("make", [centroid_seeds, path_seeds])
def test_requested_number_of_distinct_seeds_is_returned(make, n, count):
    result = make(seeds(n)[None] * 1.5, count)[0]
    assert result.shape == (count, *SHAPE)
    distances = torch.cdist(result.flatten(1), result.flatten(1)) + 1e3 * torch.eye(count)
    assert distances.min() > 1e-6


@pytest.mark.parametrize("make", [centroid_seeds, path_seeds])
def test_single_reference_gives_the_requested_number_of_seeds(make):
    x = seeds(1)
    result = make(x[None], 5)[0]
    assert result.shape == (5, *SHAPE)
    assert (torch.cosine_similarity(result.flatten(1), x.flatten(1)) > 1 - 1e-9).all()


def test_centroid_seeds_alternate_between_paths_from_the_centroid_outwards():
    x = seeds(3)
    expected_centroid = centroid(x, num_points=9)
    result = centroid_seeds(x[None], 10, num_points=9)[0]
    torch.testing.assert_close(result[0], expected_centroid.point, rtol=0, atol=1e-12)
    # three points per path, of nine: indices 6, 4 and 2 from the reference
    expected = [expected_centroid.paths[path, index] for index in (6, 4, 2) for path in range(3)]
    torch.testing.assert_close(result[1:], torch.stack(expected), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        centroid_seeds(x[None], 1, num_points=9)[0, 0], expected_centroid.point, rtol=0, atol=1e-12
    )


def test_path_seeds_are_inner_points_of_the_paths():
    x = seeds(3)
    result = path_seeds(x[None], 8)[0]
    three, two = centroid(x, num_points=5).paths[:, 1:-1], centroid(x, num_points=4).paths[:, 1:-1]
    torch.testing.assert_close(result, torch.cat([three[0], three[1], two[2]]), rtol=0, atol=1e-9)
    # two references: the 96 inner points of the path between them without its middle, which is the centroid
    a, b = project(seeds(2, key=4))
    pair = path_seeds(torch.stack([a, b])[None], 96)[0]
    path = interpolate(a, b, 99)
    torch.testing.assert_close(pair[:48], path.points[1:49], rtol=0, atol=0.05)
    torch.testing.assert_close(pair[48:].flip(0), path.points[50:-1], rtol=0, atol=0.05)


def test_normalize_rescales_the_references_first():
    x = seeds(3) * torch.tensor([0.6, 1.0, 1.4]).view(-1, 1, 1, 1)
    ends = centroid(x, normalize=True).paths[:, 0]
    torch.testing.assert_close(ends.flatten(1).norm(dim=1), torch.full((3,), typical_norm(D), dtype=torch.float64))
    for make in (centroid_seeds, path_seeds):
        scaled = make(torch.stack([x, 2 * x]), 3, normalize=True)
        torch.testing.assert_close(scaled[0], scaled[1], rtol=0, atol=1e-9)


def test_invalid_arguments_raise_an_error():
    a, b = seeds(2)
    zero = torch.zeros_like(a)
    for call, message in [
        (lambda: centroid(torch.stack([zero, a])), "seed 0 has norm 0"),
        (lambda: centroid(torch.stack([a, zero])), "seed 1 has norm 0"),
        (lambda: centroid(torch.stack([a, -a])), "cancel out"),
        (lambda: centroid(torch.stack([a, b, -a, -b])), "cancel out"),
        (lambda: centroid(seeds(3), num_points=1), "num_points=1"),
        (lambda: centroid(seeds(0)), "at least one seed"),
        (lambda: centroid_seeds(seeds(0)[None], 2), "at least one seed"),
        (lambda: centroid_seeds(seeds(2)[None], 0), "count=0"),
        (lambda: path_seeds(seeds(2)[None], 0), "count=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
