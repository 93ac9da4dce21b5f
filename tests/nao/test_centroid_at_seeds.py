"""NAO centroids where the energy has kinks or is flat: seeds that (almost) coincide or lie on one path."""

import pytest
import torch

from nao import centroid, interpolate, project
from tests.nao.problems import SHAPE, centroid_energy, seeds

A, B, C = project(seeds(3))


def pattern(word: str, scale: float = 1.0, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """One seed per letter of ``word``, equal for equal letters, with ``scale`` times the typical norm."""
    distinct = scale * project(seeds(4, shape=shape))
    return torch.stack([distinct["abcd".index(letter)] for letter in word])


def assert_minimum(x: torch.Tensor) -> torch.Tensor:
    """Check that the centroid converged and that nearby points and the seeds have no lower energy; return it."""
    result = centroid(x, num_points=3)
    assert result.converged
    # a path of zero length is solved with an angle of 1e-9 radians
    assert centroid_energy(x, result.point) == pytest.approx(result.energy.item(), rel=1e-7)
    others = [
        result.point + size * direction
        for size in (1e-3, 0.1)
        for direction in project(seeds(5, key=7, shape=x.shape[1:]))
    ]
    for other in [*others, *x]:
        assert centroid_energy(x, other) > result.energy.item() * (1 - 1e-3)
    assert min(centroid_energy(x, other) for other in others) > result.energy.item() * (1 - 1e-8)
    return result.point


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("word", ["aab", "aba", "baa", "aaab", "abbba", "aaabc", "baaacad"])
def test_majority_of_equal_typical_seeds_is_the_centroid(word, dtype):
    x = pattern(word).to(dtype)
    result = centroid(x)
    majority = x[max(range(len(word)), key=lambda i: word.count(word[i]))]
    assert result.converged
    torch.testing.assert_close(result.point, majority, rtol=0, atol=1e-6)
    rest = sum(interpolate(majority, seed).energy for seed in x if not torch.equal(seed, majority))
    assert result.energy.item() == pytest.approx(rest.item(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.8, 1.2])
@pytest.mark.parametrize("word", ["aab", "aaab", "aaabb", "aabc", "aabbc", "aabbcd"])
def test_equal_seeds_with_atypical_norms_converge_to_the_minimum(word, scale):
    assert_minimum(pattern(word, scale))


@pytest.mark.parametrize("word", ["ab", "aabb", "aaabbb"])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_equal_counts_at_both_ends_give_the_middle(word, scale):
    x = pattern(word, scale)
    result = centroid(x)
    path = interpolate(x[0], x[-1], 3)
    assert result.converged
    torch.testing.assert_close(result.point, path.points[1], rtol=0, atol=0.05)
    torch.testing.assert_close(result.lengths, result.lengths[:1].expand(len(word)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.999, 1.0, 1.001, 1.3, 3.0])
def test_centroid_of_two_different_norms_is_on_their_path(ratio):
    """The energy is that of the path plus at most a small cost of the centroid's norm."""
    x = torch.stack([A, ratio * B])
    result = centroid(x)
    path = interpolate(x[0], x[1])
    assert result.converged
    assert path.energy.item() * (1 - 1e-9) <= result.energy.item() <= path.energy.item() * (1 + 2e-4)


@pytest.mark.parametrize("norms", [(0.9, 1.2), (1.0, 1.1), (0.8, 0.9), (0.9, 1.0, 1.2), (0.6, 0.7, 0.8), (1, 1, 1.5)])
def test_centroid_of_parallel_seeds_has_their_direction(norms):
    x = torch.stack([norm * A for norm in norms])
    point = assert_minimum(x)
    assert torch.cosine_similarity(point.flatten(), A.flatten(), 0).item() == pytest.approx(1, abs=1e-12)
    assert min(norms) - 1e-9 <= point.norm() / A.norm() <= max(norms) + 1e-9


def test_centroid_of_seeds_along_a_path_is_their_median():
    path = interpolate(A, B, 5).points
    odd, even = centroid(path), centroid(path[:4])
    assert odd.converged and even.converged
    torch.testing.assert_close(odd.point, path[2], rtol=0, atol=1e-6)
    cost = interpolate(path[0], path[3]).energy + interpolate(path[1], path[2]).energy
    assert even.energy.item() == pytest.approx(cost.item(), rel=1e-3)  # up to the cost of its norm


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
@pytest.mark.parametrize("distance", [1e-12, 1e-9, 1e-7, 1e-6, 1e-5, 1e-3, 0.1])
def test_almost_coinciding_seeds_converge_to_the_minimum(distance, scale):
    assert_minimum(scale * torch.stack([A, A + distance * C, B]))


@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_cluster_with_atypical_norms_converges_to_the_minimum(scale):
    """At d = 16,384 the path to the typical norm and back dominates the energy, and the mean direction uses it."""
    a, b = scale * project(seeds(2, shape=(4, 64, 64)))
    x = torch.stack([a, a + 1e-3 * b, b])
    result = centroid(x)
    assert result.converged and result.energy < min(centroid_energy(x, seed) for seed in x) * (1 + 1e-9)
    assert torch.cosine_similarity(result.point.flatten(), a.flatten(), 0) > 1 - 1e-5


def test_centroids_of_a_batch_are_independent():
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
