import pytest
import torch

from nao import interpolate, lerp, mean, seeds_at, seeds_between, slerp


def groups() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def test_between_are_the_inner_points_of_the_path_of_each_group():
    seeds = groups()
    found = seeds_between(seeds, 3, path=slerp)
    assert found.shape == (2, 3, 4, 4, 4)
    for group, points in zip(seeds, found, strict=True):
        torch.testing.assert_close(points, slerp(group[0], group[1], 5)[1:-1])


def test_between_takes_nao_paths():
    seeds = groups()
    found = seeds_between(seeds, 4, path=interpolate)
    torch.testing.assert_close(found[1], interpolate(seeds[1, 0], seeds[1, 1], 6).points[1:-1])


def test_the_average_of_each_group():
    seeds = groups()
    found = seeds_at(seeds, 1, average=mean)
    assert found.shape == (2, 1, 4, 4, 4)
    torch.testing.assert_close(found[:, 0], seeds.mean(1))


def test_what_cannot_be_asked_for():
    with pytest.raises(ValueError, match="count=0"):
        seeds_between(groups(), 0, path=lerp)
    with pytest.raises(ValueError, match="two seeds"):
        seeds_between(groups()[:, :1], 2, path=lerp)
    with pytest.raises(ValueError, match="count=2"):
        seeds_at(groups(), 2, average=mean)
