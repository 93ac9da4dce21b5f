"""NAO's centroids: closed forms, rotation, independence, and descent in all dimensions."""

import pytest
import torch

from nao import (
    center,
    centroid,
    centroid_seeds,
    interpolate,
    log_density,
    mean,
    path_seeds,
    project,
    spherical_mean,
    typical_norm,
)
from nao.polyline import descend_centroid
from tests.nao.problems import SHAPE, D, price, seeds, slerp_energy, turned


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_moving_the_centroid_anywhere_costs_more(n, scale):
    x = scale * seeds(n)
    found = centroid(x)
    assert found.converged and price(x, found.point) == pytest.approx(found.energy.item(), rel=1e-8)
    for away in project(seeds(30, key=7)):
        for size in (1e-3, 0.1):
            assert price(x, found.point + size * away) > found.energy.item() * (
                1 - 1e-9
            )  # two seeds: all their path costs the same


@pytest.mark.parametrize("scale", [0.9, 1.0])
def test_descent_in_all_dimensions_finds_nothing_cheaper(scale):
    x = scale * project(seeds(3))
    found = centroid(x)
    point, energy = descend_centroid(x, 7, 300, 100)
    assert energy == pytest.approx(found.energy.item(), rel=0.005)
    assert price(x, point) >= found.energy.item()
    assert torch.cosine_similarity(point.flatten(), found.point.flatten(), 0) > 0.9999


@pytest.mark.parametrize("scale", [0.8, 1.0])
def test_direction_is_the_geometric_median_on_the_sphere(scale):
    # all paths reach the waist, where a radian costs the same whatever the seed: Weiszfeld's iteration, in all d
    x = scale * seeds(5, shape=(4, 64, 64))
    units = torch.nn.functional.normalize(x.flatten(1), dim=1)
    direction = units.mean(0)
    for _ in range(200):
        cosines = units @ (direction / direction.norm())
        direction = (units / (1 - cosines.square()).sqrt()[:, None]).sum(0)
    found = centroid(x).point.flatten()
    torch.testing.assert_close(found / found.norm(), direction / direction.norm(), rtol=0, atol=1e-9)


def test_centroid_turns_with_its_seeds():
    for n in (3, 4):
        x = seeds(n)
        found, other = centroid(x), centroid(turned(x))
        assert other.energy.item() == pytest.approx(found.energy.item(), rel=1e-12)
        torch.testing.assert_close(other.point, turned(found.point), rtol=0, atol=1e-7)


def test_centroid_of_orthogonal_seeds_points_at_their_mean():
    x = torch.zeros(3, *SHAPE, dtype=torch.float64)
    for k in range(3):
        x[k].view(-1)[k] = typical_norm(D)
    found = centroid(x)
    assert torch.cosine_similarity(found.point.flatten(), mean(x).flatten(), 0).item() == pytest.approx(1, abs=1e-12)
    assert found.point.norm().item() == pytest.approx(typical_norm(D), rel=0.05)


@pytest.mark.parametrize("scale", [0.8, 1.0])
def test_centroid_of_two_is_halfway_along_their_path(scale):
    a, b = scale * project(seeds(2))
    found = centroid(torch.stack([a, b]))
    path = interpolate(a, b, 3)
    # the norm is settled by the point's own likelihood, a little outside the waist
    torch.testing.assert_close(found.point, path.points[1], rtol=0, atol=0.05)
    assert found.lengths.sum().item() == pytest.approx(path.length.item(), rel=1e-2)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_centroid_of_one_seed_however_often_keeps_its_direction(copies, scale):
    x = scale * project(seeds(1))
    found = centroid(x.repeat(copies, 1, 1, 1))
    assert torch.isfinite(found.paths).all() and found.converged
    assert torch.cosine_similarity(found.point.flatten(), x.flatten(), 0).item() == pytest.approx(1, abs=1e-9)
    ratio = found.point.norm().item() / typical_norm(D)
    assert min(scale, 1) - 0.02 <= ratio <= max(scale, 1) + 0.02


def test_seed_between_two_others_is_their_centroid():
    a, b = project(seeds(2))
    between = interpolate(a, b, 3).points[1]
    found = centroid(torch.stack([a, between, b]))
    assert found.converged
    torch.testing.assert_close(found.point, between, rtol=0, atol=1e-9)


def test_more_seeds_than_components_have_a_centroid():
    found = centroid(seeds(70), points=3)
    assert found.converged and found.paths.shape == (70, 3, *SHAPE)
    for size, away in ((0.1, x) for x in seeds(5, key=9)):
        assert price(seeds(70), found.point + size * away) > found.energy.item()


def test_centroid_costs_no_more_than_the_spherical_mean_and_joins_all_seeds():
    x = 0.8 * seeds(3)
    found, start = centroid(x, points=5), spherical_mean(x)
    before = sum(slerp_energy(a, start) for a in x) + (
        log_density(torch.tensor(typical_norm(D)), D) - log_density(start.norm(), D)
    )
    assert found.energy < before
    assert torch.equal(found.paths[:, 0], x)
    torch.testing.assert_close(found.paths[:, -1], found.point.expand(3, *SHAPE))


def test_paths_are_those_to_the_centroid():
    x = 0.8 * seeds(3)
    found = centroid(x, points=6)
    for k in range(3):
        path = interpolate(x[k], found.point, 6)
        torch.testing.assert_close(found.paths[k], path.points, rtol=0, atol=1e-6)
        assert found.lengths[k].item() == pytest.approx(path.length.item(), rel=1e-8)


def test_centroid_keeps_dtype_and_fixed_ends():
    x = seeds(3, shape=(4, 16, 16)).float()
    found = centroid(x, points=5)
    assert found.point.dtype == found.paths.dtype == torch.float32
    assert found.paths.shape == (3, 5, 4, 16, 16)
    assert (found.paths[:, 0] == x).all()
    torch.testing.assert_close(found.paths[:, -1], found.point.expand(3, -1, -1, -1))


@pytest.mark.parametrize("side", [4, 16, 64, 128])
@pytest.mark.parametrize("spread", [(0.4, 1.0, 3.0), (1.0, 1.0, 1.0)], ids=["far off", "typical"])
def test_stable_for_all_sizes_and_norms(side, spread):
    d = 4 * side * side
    x = project(seeds(3, shape=(4, side, side))) * torch.tensor(spread).view(3, 1, 1, 1)
    found = centroid(x)
    assert found.converged and torch.isfinite(found.paths).all()
    assert found.point.norm().item() == pytest.approx(typical_norm(d), rel=0.01)
    assert torch.equal(found.paths[:, 0], x)


def test_concepts_are_each_what_they_are_alone():
    x = torch.stack([seeds(3, key) for key in range(4)])
    x[2] = x[2, :1]  # identical seeds beside others
    x[3, 1] *= 2
    together = centroid(x)
    assert together.paths.shape == (4, 3, 8, *SHAPE) and together.energy.shape == (4,)
    for k in range(4):
        alone = centroid(x[k])
        torch.testing.assert_close(together.point[k], alone.point, rtol=0, atol=1e-12)
        torch.testing.assert_close(together.energy[k], alone.energy, rtol=1e-13, atol=0)
    nested = centroid(x.view(2, 2, 3, *SHAPE))
    torch.testing.assert_close(nested.point.flatten(0, 1), together.point, rtol=0, atol=0)


def test_spent_budget_does_not_count_as_converged(monkeypatch):
    x = seeds(3)
    assert centroid(x).converged
    monkeypatch.setattr(center, "MOST_ITERATIONS", 1)
    assert not centroid(x).converged


def test_centroid_seeds_start_with_the_centroid_and_do_not_depend_on_neighbors():
    x = torch.stack([seeds(3, key) for key in range(3)])
    together = centroid_seeds(x, 6)
    assert together.shape == (3, 6, *SHAPE)
    for k in range(3):
        torch.testing.assert_close(centroid_seeds(x[k : k + 1], 6)[0], together[k], rtol=0, atol=1e-12)
        torch.testing.assert_close(together[k, 0], centroid(x[k]).point, rtol=0, atol=1e-12)
        assert (together[k, 1:] - together[k, :1]).flatten(1).norm(dim=1).min() > 0
    torch.testing.assert_close(centroid_seeds(x.flip(0), 6).flip(0), together, rtol=0, atol=1e-12)


def test_batch_of_nan_is_refused_not_spread():
    x = torch.stack([seeds(3), seeds(3, 1)])
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="seed 5 has norm nan"):
        centroid_seeds(x, 4)


@pytest.mark.parametrize("count", [1, 2, 4, 7, 20, 40])
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("make", [centroid_seeds, path_seeds])
def test_as_many_seeds_as_asked_and_all_differ(make, n, count):
    found = make(seeds(n)[None] * 1.5, count)[0]
    assert found.shape == (count, *SHAPE)
    apart = torch.cdist(found.flatten(1), found.flatten(1)) + 1e3 * torch.eye(count)
    assert apart.min() > 1e-6


@pytest.mark.parametrize("make", [centroid_seeds, path_seeds])
def test_seeds_of_one_reference_are_as_many_as_asked(make):
    x = seeds(1)
    found = make(x[None], 5)[0]
    assert found.shape == (5, *SHAPE)
    assert (torch.cosine_similarity(found.flatten(1), x.flatten(1)) > 1 - 1e-9).all()


def test_centroid_seeds_come_in_turns_from_the_centroid_outwards():
    x = seeds(3)
    whole = centroid(x, points=9)
    found = centroid_seeds(x[None], 10, points=9)[0]
    torch.testing.assert_close(found[0], whole.point, rtol=0, atol=1e-12)
    # thirds of the way out of 8
    expected = [whole.paths[path, place] for place in (6, 4, 2) for path in range(3)]
    torch.testing.assert_close(found[1:], torch.stack(expected), rtol=0, atol=1e-9)
    torch.testing.assert_close(centroid_seeds(x[None], 1, points=9)[0, 0], whole.point, rtol=0, atol=1e-12)


def test_path_seeds_are_the_inner_points_of_the_paths_to_the_centroid():
    x = seeds(3)
    found = path_seeds(x[None], 8)[0]
    three, two = centroid(x, points=5).paths[:, 1:-1], centroid(x, points=4).paths[:, 1:-1]
    torch.testing.assert_close(found, torch.cat([three[0], three[1], two[2]]), rtol=0, atol=1e-9)
    # of two references: their one path, of 96 points and its ends, but for the middle, which the centroid takes
    a, b = project(seeds(2, key=4))
    pair = path_seeds(torch.stack([a, b])[None], 96)[0]
    path = interpolate(a, b, 99)
    torch.testing.assert_close(pair[:48], path.points[1:49], rtol=0, atol=0.05)
    torch.testing.assert_close(pair[48:].flip(0), path.points[50:-1], rtol=0, atol=0.05)


def test_typical_brings_the_references_to_the_shell_first():
    x = seeds(3) * torch.tensor([0.6, 1.0, 1.4]).view(-1, 1, 1, 1)
    ends = centroid(x, typical=True).paths[:, 0]
    torch.testing.assert_close(ends.flatten(1).norm(dim=1), torch.full((3,), typical_norm(D), dtype=torch.float64))
    for make in (centroid_seeds, path_seeds):
        scaled = make(torch.stack([x, 2 * x]), 3, typical=True)
        torch.testing.assert_close(scaled[0], scaled[1], rtol=0, atol=1e-9)


def test_impossible_calls_are_explained():
    a, b = seeds(2)
    zero = torch.zeros_like(a)
    for call, message in [
        (lambda: centroid(torch.stack([zero, a])), "seed 0 has norm 0"),
        (lambda: centroid(torch.stack([a, zero])), "seed 1 has norm 0"),
        (lambda: centroid(torch.stack([a, -a])), "cancel out"),
        (lambda: centroid(torch.stack([a, b, -a, -b])), "cancel out"),
        (lambda: centroid(seeds(3), points=1), "points=1"),
        (lambda: centroid(seeds(0)), "at least one seed"),
        (lambda: centroid_seeds(seeds(0)[None], 2), "at least one seed"),
        (lambda: centroid_seeds(seeds(2)[None], 0), "count=0"),
        (lambda: path_seeds(seeds(2)[None], 0), "count=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
