"""Seeds from paths and averages of groups of inverted seeds."""

import pytest
import torch

from nao import average_seeds, interpolate, lerp, mean, seeds_between, slerp


def groups() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def test_seeds_between_are_inner_points_of_each_path():
    seeds = groups()
    result = seeds_between(seeds, 3, path=slerp)
    assert result.shape == (2, 3, 4, 4, 4)
    for group, points in zip(seeds, result, strict=True):
        torch.testing.assert_close(points, slerp(group[0], group[1], 5)[1:-1])


def test_seeds_between_accepts_nao_paths():
    seeds = groups()
    result = seeds_between(seeds, 4, path=interpolate)
    torch.testing.assert_close(result[1], interpolate(seeds[1, 0], seeds[1, 1], 6).points[1:-1])


def test_average_seeds_returns_the_average_per_group():
    seeds = groups()
    result = average_seeds(seeds, 1, average=mean)
    assert result.shape == (2, 1, 4, 4, 4)
    torch.testing.assert_close(result[:, 0], seeds.mean(1))


def test_invalid_counts_and_groups_raise_an_error():
    with pytest.raises(ValueError, match="count=0"):
        seeds_between(groups(), 0, path=lerp)
    with pytest.raises(ValueError, match="two seeds"):
        seeds_between(groups()[:, :1], 2, path=lerp)
    with pytest.raises(ValueError, match="count=2"):
        average_seeds(groups(), 2, average=mean)
