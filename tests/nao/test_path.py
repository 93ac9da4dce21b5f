"""NAO's paths and centroids, against slerp, rotation, and the same problem solved in full dimension."""

import pytest
import torch

from nao import (
    centroid,
    centroid_seeds,
    interpolate,
    log_density,
    path_energy,
    slerp,
    spherical_mean,
    typical_norm,
)
from nao import path as module
from nao.path import reduce

SHAPE = (4, 4, 4)
D = 64


def seeds(n: int, key: int = 0) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def turned(x: torch.Tensor, key: int = 5) -> torch.Tensor:
    matrix = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(key))
    return (x.flatten(-3) @ torch.linalg.qr(matrix)[0]).unflatten(-1, SHAPE)


def spacing(points: torch.Tensor) -> torch.Tensor:
    return 2 * points.diff(dim=-2).norm(dim=-1).mean(-1)


def slerp_energy(a: torch.Tensor, b: torch.Tensor, points: int) -> float:
    start = slerp(a, b, points).flatten(1)
    return path_energy(start, D, spacing(start)).item()


def all_elements(x: torch.Tensor):
    """In place of ``reduce``: the elements of the seeds themselves as coordinates."""
    return x.double().flatten(1), lambda points: points.unflatten(-1, x.shape[1:])


def all_dimensions(x: torch.Tensor):
    """In place of ``reduce``: all d coordinates in a basis that begins with that of the span."""
    flat = x.double().flatten(1)
    basis, _ = torch.linalg.qr(flat.T, mode="complete")
    return flat @ basis, lambda points: (points @ basis.T).unflatten(-1, x.shape[1:])


def test_energy_by_hand():
    points = torch.tensor([[3.0, 0.0], [3.0, 4.0], [0.0, 4.0]], dtype=torch.float64)
    middles = torch.tensor([(9 + 4) ** 0.5, (2.25 + 16) ** 0.5], dtype=torch.float64)
    cost = -(torch.tensor([4.0, 3.0]) * log_density(middles, D)).sum()
    torch.testing.assert_close(path_energy(points, D, torch.tensor(10.0)), cost)
    # segments of 4 and 3 exceed a spacing of 2.5 by 1.5 and 0.5
    torch.testing.assert_close(path_energy(points, D, torch.tensor(2.5)), cost + 2.0)


def test_energy_has_the_right_gradient_and_a_finite_one_where_points_coincide():
    points = seeds(2)[:, 0, 0].repeat(2, 1).requires_grad_()
    limit = torch.tensor(0.3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: path_energy(p, 4, limit), points)
    same = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    path_energy(same, 4, limit).backward()
    assert torch.isfinite(same.grad).all()


@pytest.mark.parametrize("key", range(4))
@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
def test_path_keeps_its_ends_and_never_costs_more_than_slerp(key, scale):
    a, b = scale * seeds(2, key)
    path = interpolate(a, b, 7)
    assert torch.equal(path.points[0], a) and torch.equal(path.points[-1], b)
    assert path.energy <= slerp_energy(a, b, 7)


def test_path_far_off_the_shell_costs_clearly_less_than_slerp():
    a, b = 0.7 * seeds(2)
    assert interpolate(a, b, 7).energy < 0.95 * slerp_energy(a, b, 7)


def test_reported_energy_is_that_of_the_points():
    a, b = 0.8 * seeds(2)
    path = interpolate(a, b, 6)
    limit = spacing(slerp(a, b, 6).flatten(1))
    assert path_energy(path.points.flatten(1), D, limit).item() == pytest.approx(path.energy, rel=1e-9)
    assert path.length == pytest.approx(path.points.flatten(1).diff(dim=0).norm(dim=1).sum().item())
    torch.testing.assert_close(path.norms, path.points.flatten(1).norm(dim=1))


def test_path_turns_with_its_seeds():
    a, b = 0.8 * seeds(2)
    path, other = interpolate(a, b, 6), interpolate(turned(a), turned(b), 6)
    assert other.energy == pytest.approx(path.energy, rel=1e-6)
    torch.testing.assert_close(other.points, turned(path.points), rtol=0, atol=1e-2)


def test_centroid_turns_with_its_seeds():
    x = seeds(4)
    found, other = centroid(x), centroid(turned(x))
    assert other.energy == pytest.approx(found.energy, rel=1e-5)
    torch.testing.assert_close(other.point, turned(found.point), rtol=0, atol=2e-2)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_reduced_path_is_the_one_found_in_all_dimensions(monkeypatch, scale):
    a, b = scale * seeds(2)
    reduced = interpolate(a, b, 6)
    monkeypatch.setattr(module, "reduce", all_dimensions)
    full = interpolate(a, b, 6)
    assert reduced.energy == pytest.approx(full.energy, rel=1e-6)
    torch.testing.assert_close(reduced.points, full.points, rtol=0, atol=1e-2)


def test_reduced_centroid_is_the_one_found_in_all_dimensions(monkeypatch):
    x = seeds(3)
    reduced = centroid(x)
    monkeypatch.setattr(module, "reduce", all_dimensions)
    full = centroid(x)
    assert reduced.energy == pytest.approx(full.energy, rel=1e-5)
    torch.testing.assert_close(reduced.point, full.point, rtol=0, atol=2e-2)


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_optimising_the_elements_themselves_finds_nothing_cheaper(monkeypatch, scale):
    # LBFGS scales its first step by the sum of the gradient's absolute values, which depends on the axes; the
    # spacing penalty has kinks, at which runs that differ end within a per cent of each other
    x = scale * seeds(3)
    path, found = interpolate(x[0], x[1], 6), centroid(x)
    monkeypatch.setattr(module, "reduce", all_elements)
    assert path.energy == pytest.approx(interpolate(x[0], x[1], 6).energy, rel=0.01)
    assert found.energy == pytest.approx(centroid(x).energy, rel=0.01)


@pytest.mark.parametrize("n", [1, 3, 70], ids=["one", "few", "more than d"])
def test_coordinates_keep_lengths_and_angles_and_lead_back(n):
    x = seeds(n)
    coordinates, lift = reduce(x)
    assert coordinates.shape == (n, min(n, D))
    torch.testing.assert_close(lift(coordinates), x)
    torch.testing.assert_close(coordinates @ coordinates.T, x.flatten(1) @ x.flatten(1).T)


def test_path_of_two_points_is_its_ends():
    a, b = seeds(2)
    path = interpolate(a, b, 2)
    assert torch.equal(path.points, torch.stack([a, b])) and path.converged
    assert path.energy == pytest.approx(slerp_energy(a, b, 2))


def test_path_from_a_seed_to_itself_stays_there():
    a = seeds(1)[0]
    path = interpolate(a, a, 5)
    torch.testing.assert_close(path.points, a.expand(5, *SHAPE), rtol=0, atol=1e-6)
    assert path.energy == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_centroid_of_one_seed_however_often_keeps_its_direction(copies, scale):
    x = scale * typical_norm(D) * torch.nn.functional.normalize(seeds(1).flatten(1)).view(1, *SHAPE)
    found = centroid(x.repeat(copies, 1, 1, 1))
    assert torch.isfinite(found.paths).all()
    assert torch.cosine_similarity(found.point.flatten(), x.flatten(), 0).item() == pytest.approx(1, abs=1e-9)
    ratio = found.point.norm().item() / typical_norm(D)
    assert min(scale, 1) - 0.02 <= ratio <= max(scale, 1) + 0.02


def test_centroid_costs_no_more_than_the_spherical_mean_and_joins_all_seeds():
    x = 0.8 * seeds(3)
    found, start = centroid(x, points=5), spherical_mean(x)
    before = sum(slerp_energy(a, start, 5) for a in x) + (
        log_density(torch.tensor(typical_norm(D)), D) - log_density(start.norm(), D)
    )
    assert found.energy < before
    assert torch.equal(found.paths[:, 0], x)
    torch.testing.assert_close(found.paths[:, -1], found.point.expand(3, *SHAPE))


def test_spent_budget_does_not_count_as_converged(monkeypatch):
    x = seeds(3)
    assert centroid(x).converged
    monkeypatch.setattr(module, "MOST_EVALUATIONS", 5)
    assert not centroid(x).converged
    monkeypatch.undo()
    monkeypatch.setattr(module, "MOST_ITERATIONS", 3)
    assert not centroid(x).converged


def test_groups_do_not_depend_on_their_neighbours():
    x = torch.stack([seeds(3, key) for key in range(3)])
    together = centroid_seeds(x, 5)
    for k in range(3):
        assert torch.equal(centroid_seeds(x[k : k + 1], 5)[0], together[k])
    assert torch.equal(centroid_seeds(x.flip(0), 5).flip(0), together)


def test_batch_of_nan_is_refused_not_spread():
    x = torch.stack([seeds(3), seeds(3, 1)])
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match="seed 2 has norm nan"):
        centroid_seeds(x, 4)


@pytest.mark.parametrize("count", [1, 2, 4, 7, 20, 40])
@pytest.mark.parametrize("n", [2, 3])
def test_centroid_seeds_are_as_many_as_asked_and_all_differ(n, count):
    found = centroid_seeds(seeds(n)[None] * 1.5, count)[0]
    assert found.shape == (count, *SHAPE)
    apart = torch.cdist(found.flatten(1), found.flatten(1)) + 1e3 * torch.eye(count)
    assert apart.min() > 1e-6


def test_centroid_seeds_of_one_reference_are_as_many_as_asked():
    x = seeds(1)
    found = centroid_seeds(x[None], 5)[0]
    assert found.shape == (5, *SHAPE)
    assert (torch.cosine_similarity(found.flatten(1), x.flatten(1)) > 1 - 1e-9).all()


def test_centroid_seeds_come_in_turns_from_the_centroid_outwards():
    x = seeds(3)
    whole = centroid(x, points=9)
    found = centroid_seeds(x[None], 10, points=9)[0]
    assert torch.equal(found[0], whole.point)
    # thirds of the way out of 8
    expected = [whole.paths[path, place] for place in (6, 4, 2) for path in range(3)]
    assert torch.equal(found[1:], torch.stack(expected))
    assert torch.equal(centroid_seeds(x[None], 1, points=9)[0, 0], whole.point)


def test_typical_brings_the_references_to_the_shell_first():
    x = seeds(3) * torch.tensor([0.6, 1.0, 1.4]).view(-1, 1, 1, 1)
    ends = centroid(x, typical=True).paths[:, 0]
    torch.testing.assert_close(
        ends.flatten(1).norm(dim=1),
        torch.full((3,), typical_norm(D), dtype=torch.float64),
    )
    scaled = centroid_seeds(torch.stack([x, 2 * x]), 3, typical=True)
    torch.testing.assert_close(scaled[0], scaled[1], rtol=0, atol=1e-2)


def test_impossible_calls_are_explained():
    a, b = seeds(2)
    zero = torch.zeros_like(a)
    for call, message in [
        (lambda: interpolate(a, zero), "seed 1 has norm 0"),
        (lambda: interpolate(a, -a), "opposite"),
        (lambda: interpolate(a, b, 1), "points=1"),
        (lambda: centroid(torch.stack([zero, a])), "seed 0 has norm 0"),
        (lambda: centroid(torch.stack([a, b, -a, -b])), "cancel out"),
        (lambda: centroid(seeds(3), points=1), "points=1"),
        (lambda: centroid(seeds(0)), "at least one seed"),
        (lambda: centroid_seeds(seeds(0)[None], 2), "at least one seed"),
        (lambda: centroid_seeds(seeds(2)[None], 0), "count=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
