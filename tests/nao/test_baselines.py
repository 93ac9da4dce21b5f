"""Baseline interpolations and averages, compared with closed forms on circles."""

import math

import pytest
import torch

from nao import (
    cog,
    cog_mean,
    cog_path,
    lerp,
    mean,
    normalized_lerp,
    normalized_mean,
    project,
    slerp,
    spherical_mean,
    typical_norm,
)

SHAPE = (4, 4, 4)


def seeds(n: int, key: int = 0) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def on_circle(degrees: float, radius: float = 1.0) -> torch.Tensor:
    """A seed in the plane of the first two components, at an angle in degrees."""
    x = torch.zeros(SHAPE, dtype=torch.float64)
    x.view(-1)[:2] = radius * torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    return x


def test_slerp_is_evenly_spaced_on_the_circle():
    path = slerp(on_circle(10), on_circle(130), 5)
    expected = torch.stack([on_circle(a) for a in (10, 40, 70, 100, 130)])
    torch.testing.assert_close(path, expected, rtol=0, atol=1e-7)  # on_circle rounds to float32


def test_slerp_interpolates_the_norm_linearly():
    path = slerp(on_circle(0, 2.0), on_circle(90, 6.0), 5)
    torch.testing.assert_close(path.flatten(1).norm(dim=1), torch.linspace(2, 6, 5, dtype=torch.float64))
    torch.testing.assert_close(path[2], on_circle(45, 4.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", [lerp, slerp])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ends_are_bit_identical_to_the_seeds(path, dtype):
    a, b = seeds(2).to(dtype)
    points = path(a, b, 7)
    assert points.shape == (7, *SHAPE) and points.dtype == dtype
    assert torch.equal(points[0], a) and torch.equal(points[-1], b)
    torch.testing.assert_close(points.flip(0), path(b, a, 7))


def test_slerp_between_almost_equal_seeds_equals_lerp():
    a, step = seeds(2)
    torch.testing.assert_close(slerp(a, a, 5), a.expand(5, *SHAPE))
    for distance in (1e-12, 1e-9, 1e-7):
        b = a + distance * step
        torch.testing.assert_close(slerp(a, b, 5), lerp(a, b, 5), rtol=0, atol=1e-9)


def test_slerp_between_almost_opposite_seeds_is_a_half_circle():
    path = slerp(on_circle(0), on_circle(179.9), 3)
    torch.testing.assert_close(path[1], on_circle(89.95), rtol=0, atol=1e-4)


def test_lerp_equals_the_weighted_sum():
    a, b = seeds(2)
    torch.testing.assert_close(lerp(a, b, 5)[1], 0.75 * a + 0.25 * b)


def test_normalized_results_have_the_direction_and_the_typical_norm():
    x = seeds(4)
    for original, normalized in [
        (lerp(x[0], x[1], 5), normalized_lerp(x[0], x[1], 5)),
        (mean(x)[None], normalized_mean(x)[None]),
    ]:
        norms = normalized.flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, typical_norm(64)))
        cosines = torch.cosine_similarity(original.flatten(1), normalized.flatten(1))
        torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_spherical_mean_on_a_circle_is_the_mean_angle():
    # the chordal (normalized arithmetic) mean of these lies at about 30.9 degrees, not at 36
    x = torch.stack([on_circle(a) for a in (0, 10, 98)])
    torch.testing.assert_close(spherical_mean(x), on_circle(36), rtol=0, atol=1e-6)
    assert torch.cosine_similarity(mean(x).flatten(), on_circle(36).flatten(), 0) < 0.9999


def test_spherical_mean_has_the_mean_norm():
    x = torch.stack([on_circle(0, 1.0), on_circle(60, 5.0)])
    torch.testing.assert_close(spherical_mean(x), on_circle(30, 3.0), rtol=0, atol=1e-6)


def test_spherical_mean_of_orthogonal_seeds_is_their_diagonal():
    x = torch.zeros(5, *SHAPE, dtype=torch.float64)
    x.view(5, -1)[:, :5] = 3 * torch.eye(5, dtype=torch.float64)
    expected = torch.zeros(64, dtype=torch.float64)
    expected[:5] = 3 / math.sqrt(5)
    torch.testing.assert_close(spherical_mean(x).flatten(), expected)


def test_tangent_vectors_cancel_at_the_spherical_mean():
    x = seeds(6)
    center = torch.nn.functional.normalize(spherical_mean(x).flatten(), dim=0)
    units = torch.nn.functional.normalize(x.flatten(1), dim=1)
    cosines = units @ center
    tangents = torch.nn.functional.normalize(units - cosines[:, None] * center, dim=1)
    assert (torch.acos(cosines)[:, None] * tangents).mean(0).norm() < 1e-9


def test_spherical_mean_of_identical_seeds_is_that_seed():
    x = seeds(1)
    torch.testing.assert_close(spherical_mean(x), x[0])
    torch.testing.assert_close(spherical_mean(x.repeat(4, 1, 1, 1)), x[0])


def test_spherical_mean_of_two_is_the_middle_of_slerp():
    a, b = project(seeds(2))
    torch.testing.assert_close(spherical_mean(torch.stack([a, b])), slerp(a, b, 3)[1])


def test_baselines_have_the_documented_norms():
    x = seeds(5)
    assert normalized_mean(x).norm().item() == pytest.approx(typical_norm(64))
    assert spherical_mean(x).norm().item() == pytest.approx(x.flatten(1).norm(dim=1).mean().item())
    assert mean(x).norm() < 0.7 * typical_norm(64)
    assert lerp(x[0], x[1], 3)[1].norm() < slerp(x[0], x[1], 3)[1].norm()


@pytest.mark.parametrize("average", [mean, normalized_mean, spherical_mean])
def test_averages_preserve_the_dtype_and_ignore_the_order(average):
    x = seeds(4).float()
    assert average(x).dtype == torch.float32 and average(x).shape == SHAPE
    torch.testing.assert_close(average(x), average(x.flip(0)))


def test_zero_seeds_raise_an_error():
    a = seeds(1)[0]
    zero = torch.zeros_like(a)
    for call in (lambda: slerp(a, zero, 3), lambda: spherical_mean(torch.stack([a, zero]))):
        with pytest.raises(ValueError, match="seed 1 has norm 0"):
            call()


def test_opposite_seeds_raise_an_error():
    a = seeds(1)[0]
    for b in (-a, -3 * a):
        with pytest.raises(ValueError, match="opposite"):
            slerp(a, b, 3)
    with pytest.raises(ValueError, match="norm 0"):  # the middle of the line is the origin
        normalized_lerp(a, -a, 3)


def test_seeds_that_cancel_out_raise_an_error():
    x = seeds(3)
    with pytest.raises(ValueError, match="cancel out"):
        spherical_mean(torch.cat([x, -x]))
    with pytest.raises(ValueError, match="cancel out"):
        spherical_mean(torch.stack([on_circle(a).double() for a in (0, 180)]))


@pytest.mark.parametrize("path", [lerp, slerp, normalized_lerp])
@pytest.mark.parametrize("num_points", [1, 0, -2])
def test_fewer_than_two_points_raise_an_error(path, num_points):
    with pytest.raises(ValueError, match=f"num_points={num_points}"):
        path(*seeds(2), num_points)


def test_cog_by_hand():
    """The weights 3 and -4 have the norm 5."""
    a, b = seeds(2)
    torch.testing.assert_close(cog(torch.stack([a, b]), torch.tensor([3.0, -4.0])), 0.6 * a - 0.8 * b)


def test_cog_path_by_hand():
    """In the middle the weights are 1/2 and 1/2, with the norm 1 / sqrt(2); the ends are the seeds."""
    a, b = seeds(2)
    path = cog_path(a, b, 5)
    assert torch.equal(path[0], a) and torch.equal(path[-1], b)
    torch.testing.assert_close(path[2], (a + b) / 2**0.5)
    torch.testing.assert_close(path[1], (0.75 * a + 0.25 * b) / (0.75**2 + 0.25**2) ** 0.5)


def test_cog_mean_by_hand():
    points = seeds(9)
    torch.testing.assert_close(cog_mean(points), points.sum(0) / 3)
    assert cog_mean(points.half()).dtype == torch.float16


def test_cog_keeps_the_variance_of_independent_seeds():
    points = torch.randn(20, 8, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = points[0].numel()
    assert cog_mean(points).norm().item() == pytest.approx(typical_norm(d), rel=0.02)
    assert mean(points).norm().item() == pytest.approx(typical_norm(d) / 20**0.5, rel=0.02)


def test_cog_rejects_invalid_weights():
    with pytest.raises(ValueError, match=r"weights: expected the shape \[2\] \(one weight per seed\), got \[3\]"):
        cog(seeds(2), torch.ones(3))
    with pytest.raises(ValueError, match="weights: all weights are zero"):
        cog(seeds(2), torch.zeros(2))
