"""NAO's centroids where the energy has kinks or is flat: seeds that coincide, nearly so, or lie on one path."""

import pytest
import torch

from nao import centroid, interpolate, project
from tests.nao.problems import SHAPE, price, seeds

A, B, C = project(seeds(3))


def pattern(word: str, scale: float = 1.0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """Seeds at ``scale`` times the typical norm, equal letters being equal seeds."""
    drawn = scale * project(seeds(4, shape=shape))
    return torch.stack([drawn["abcd".index(letter)] for letter in word])


def assert_cheapest(x: torch.Tensor) -> torch.Tensor:
    """Converged, at what its energy says, and no dearer than points nearby and the seeds themselves."""
    found = centroid(x, points=3)
    assert found.converged
    # a path that has no length is counted as one of 1e-9 radians
    assert price(x, found.point) == pytest.approx(found.energy.item(), rel=1e-7)
    others = [found.point + size * away for size in (1e-3, 0.1) for away in project(seeds(5, key=7, shape=x.shape[1:]))]
    for other in [*others, *x]:
        assert price(x, other) > found.energy.item() * (1 - 1e-3)
    assert min(price(x, other) for other in others) > found.energy.item() * (1 - 1e-8)
    return found.point


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("word", ["aab", "aba", "baa", "aaab", "abbba", "aaabc", "baaacad"])
def test_a_majority_of_equal_typical_seeds_is_the_centroid(word, dtype):
    x = pattern(word).to(dtype)
    found = centroid(x)
    most = x[max(range(len(word)), key=lambda i: word.count(word[i]))]
    assert found.converged
    torch.testing.assert_close(found.point, most, rtol=0, atol=1e-6)
    rest = sum(interpolate(most, seed).energy for seed in x if not torch.equal(seed, most))
    assert found.energy.item() == pytest.approx(rest.item(), rel=1e-6)


@pytest.mark.parametrize("scale", [0.8, 1.2])
@pytest.mark.parametrize("word", ["aab", "aaab", "aaabb", "aabc", "aabbc", "aabbcd"])
def test_equal_seeds_off_the_typical_norm(word, scale):
    assert_cheapest(pattern(word, scale))


@pytest.mark.parametrize("word", ["ab", "aabb", "aaabbb"])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_as_many_at_one_end_as_at_the_other_is_halfway(word, scale):
    x = pattern(word, scale)
    found, path = centroid(x), interpolate(x[0], x[-1], 3)
    assert found.converged
    torch.testing.assert_close(found.point, path.points[1], rtol=0, atol=0.05)
    torch.testing.assert_close(found.lengths, found.lengths[:1].expand(len(word)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.999, 1.0, 1.001, 1.3, 3.0])
def test_two_seeds_of_different_norms(ratio):
    """The centroid is on their path, to which its own norm adds little or nothing."""
    x = torch.stack([A, ratio * B])
    found, path = centroid(x), interpolate(x[0], x[1])
    assert found.converged
    assert path.energy.item() * (1 - 1e-9) <= found.energy.item() <= path.energy.item() * (1 + 2e-4)


@pytest.mark.parametrize("norms", [(0.9, 1.2), (1.0, 1.1), (0.8, 0.9), (0.9, 1.0, 1.2), (0.6, 0.7, 0.8), (1, 1, 1.5)])
def test_seeds_of_one_direction_have_their_centroid_in_it(norms):
    x = torch.stack([norm * A for norm in norms])
    point = assert_cheapest(x)
    assert torch.cosine_similarity(point.flatten(), A.flatten(), 0).item() == pytest.approx(1, abs=1e-12)
    assert min(norms) - 1e-9 <= point.norm() / A.norm() <= max(norms) + 1e-9


def test_of_seeds_along_one_path_it_is_the_middle_one_or_between_the_middle_two():
    path = interpolate(A, B, 5).points
    odd, even = centroid(path), centroid(path[:4])
    assert odd.converged and even.converged
    torch.testing.assert_close(odd.point, path[2], rtol=0, atol=1e-6)
    cost = interpolate(path[0], path[3]).energy + interpolate(path[1], path[2]).energy
    assert even.energy.item() == pytest.approx(cost.item(), rel=1e-3)  # but for the likelihood of its norm


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
@pytest.mark.parametrize("distance", [1e-12, 1e-9, 1e-7, 1e-6, 1e-5, 1e-3, 0.1])
def test_seeds_that_all_but_coincide(distance, scale):
    assert_cheapest(scale * torch.stack([A, A + distance * C, B]))


@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_a_cluster_far_off_the_typical_norm_is_cheaper_than_the_likely_norms(scale):
    """At d = 16,384 the way to the shell and back costs more than all else; the mean direction leads there."""
    a, b = scale * project(seeds(2, shape=(4, 64, 64)))
    x = torch.stack([a, a + 1e-3 * b, b])
    found = centroid(x)
    assert found.converged and found.energy < min(price(x, seed) for seed in x) * (1 + 1e-9)
    assert torch.cosine_similarity(found.point.flatten(), a.flatten(), 0) > 1 - 1e-5


def test_each_of_a_batch_is_what_it_is_alone():
    between = interpolate(A, B, 3).points[1]
    x = torch.stack(
        [
            *(pattern(word) for word in ("aab", "aba", "aaa", "abc")),
            0.8 * pattern("abb"),
            torch.stack([A, between, B]),
            torch.stack([A, 1.1 * A, B]),
            torch.stack([A, A + 1e-6 * C, 2 * B]),
            1.3 * pattern("abc"),
        ]
    )
    together = centroid(x)
    assert together.converged.all()
    for k in range(len(x)):
        alone = centroid(x[k])
        torch.testing.assert_close(together.point[k], alone.point, rtol=0, atol=1e-9)
        torch.testing.assert_close(together.energy[k], alone.energy, rtol=1e-12, atol=0)
        assert alone.converged
