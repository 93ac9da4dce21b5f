"""Functions of ``nao`` reject arguments with which the result would be wrong or NaN."""

import math

import pytest
import torch

import nao
from nao import centroid, centroid_seeds, cog, interpolate, lerp, mean, path_seeds, project, slerp, spherical_mean

SEEDS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
A, B = SEEDS


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interpolate((10 * A).int(), (10 * B).int()), r"a: must have a floating-point dtype, got torch.int32"),
        (lambda: interpolate(A.to(torch.complex64), B), "a: must have a floating-point dtype"),
        (lambda: interpolate(A, B[:, :4]), r"a and b: must have the same shape, got \[4, 8, 8\] and \[4, 4, 8\]"),
        (lambda: interpolate(A.numpy(), B), "a: must be a tensor .* got ndarray"),
        (lambda: interpolate(A, B, num_points=2.5), "num_points=2.5: must be an integer >= 2"),
        (lambda: lerp(A, B[:1], 3), "a and b: must have the same shape"),
        (lambda: slerp(A[0], B[0], 3), r"a: must have the shape \[C,h,w\], got \[8, 8\]"),
        (lambda: lerp(A, B, 2.0), "num_points: must be an integer >= 2, got 2.0"),
        (lambda: cog(SEEDS, torch.tensor([1.0, math.nan])), "weights: must be finite"),
        (lambda: mean(SEEDS[:0]), "seeds: must have the shape .* pass at least one seed"),
        (lambda: spherical_mean(SEEDS[:0]), "pass at least one seed"),
        (lambda: project(SEEDS, -1.0), "norm: must be a finite number > 0, got -1.0"),
        (lambda: project(SEEDS, math.nan), "norm: must be a finite number > 0"),
        (lambda: centroid(A), r"seeds: must have the shape \[...,n,C,h,w\], got \[4, 8, 8\]"),
        (lambda: centroid_seeds(SEEDS, 7), r"seeds: must have the shape \[G,n,C,h,w\], got \[2, 4, 8, 8\]"),
        (lambda: path_seeds(SEEDS[None], 2.5), "count=2.5: must be an integer >= 1"),
    ],
)
def test_bad_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_weights_may_be_a_list():
    torch.testing.assert_close(nao.cog(SEEDS, [1.0, 2.0]), nao.cog(SEEDS, torch.tensor([1.0, 2.0])))
