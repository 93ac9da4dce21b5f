"""Confidence intervals, distances and image metrics, compared with closed forms."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from experiments.evaluation.classifier import load_classifier
from experiments.evaluation.metrics import (
    bootstrap_interval,
    frechet_distance,
    kernel_distance,
    perceptual_distance,
    psnr,
    roc_auc,
    ssim,
)


def test_bootstrap_interval_matches_the_normal_approximation():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values, seed=1)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_bootstrap_resamples_whole_groups():
    values = [0.0] * 40 + [1.0] * 40
    groups = ["a"] * 40 + ["b"] * 40
    assert bootstrap_interval(values, groups, seed=0) == (0.0, 1.0)
    low, high = bootstrap_interval(values, seed=0)
    assert 0.3 < low < high < 0.7


def test_interval_of_equal_values_and_of_no_values():
    assert bootstrap_interval([1.0, 1.0], seed=0) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([], seed=0)


def test_frechet_distance_matches_the_formula():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    b = 1.5 * torch.randn(50, 5, generator=generator, dtype=torch.float64) + 0.3
    ca = np.cov(a.numpy(), rowvar=False)
    cb = np.cov(b.numpy(), rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_is_nonnegative():
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(6, 40, generator=generator, dtype=torch.float64)  # singular covariance
    for seed in range(5):
        a = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed))
        assert frechet_distance(a, a) >= 0 and frechet_distance(a, a.flip(0)) >= 0
    assert frechet_distance(few, few) >= 0


def test_kernel_distance_of_equal_distributions_is_unbiased():
    """Values are around 0, some of them negative."""
    generator = torch.Generator().manual_seed(0)
    sets = torch.randn(2, 20, 40, 4, generator=generator)
    distances = torch.tensor([kernel_distance(a, b) for a, b in zip(*sets, strict=True)])
    assert (distances < 0).any() and (distances > 0).any()
    assert distances.mean().abs() < 3 * distances.std() / 20**0.5


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e200])
def test_non_finite_features_are_rejected(distance, value):
    fine = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    damaged = fine.clone()
    damaged[7, 3] = value
    with pytest.raises(ValueError, match="1 of 20 real images are not finite, first at index 7"):
        distance(damaged, fine)
    with pytest.raises(ValueError, match="1 of 20 generated images are not finite"):
        distance(fine, damaged)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize("count", [0, 1])
def test_distances_need_two_images_per_set(distance, count):
    fine = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=f"at least two generated images, got {count}"):
        distance(fine, fine[:count])
    with pytest.raises(ValueError, match=f"at least two real images, got {count}"):
        distance(fine[:count], fine)


def test_kernel_distance_keeps_the_global_generator_unchanged():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(80, 8, generator=generator)
    b = torch.randn(80, 8, generator=generator)
    before = torch.get_rng_state()
    near = kernel_distance(a, b)
    far = kernel_distance(a, b + 1)
    assert (torch.get_rng_state() == before).all()
    assert far > 5 * abs(near) and kernel_distance(a, b + 1) == far


def test_psnr_is_computed_per_image():
    images = torch.zeros(2, 3, 4, 4)
    targets = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    torch.testing.assert_close(psnr(images, targets), torch.tensor([20.0, 40.0]))


def random_images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_ssim_is_computed_per_image():
    images = random_images(3, 0)
    targets = images.clone()
    targets[1] = (targets[1] + 0.2 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    values = ssim(targets, images)
    assert values[0] == values[2] == 1 and values[1] < 0.95
    torch.testing.assert_close(ssim(targets[1:2], images[1:2]), values[1:2])


def test_perceptual_distance_is_symmetric_and_per_image():
    classifier = load_classifier("assets/models/classifier")
    images = random_images(3, 0)
    others = random_images(3, 1)
    assert torch.equal(perceptual_distance(classifier, images, images), torch.zeros(3))
    values = perceptual_distance(classifier, images, others)
    torch.testing.assert_close(values, perceptual_distance(classifier, others, images))
    torch.testing.assert_close(
        perceptual_distance(classifier, images[1:2], others[1:2]), values[1:2], rtol=1e-4, atol=1e-6
    )
    slight = perceptual_distance(classifier, images, 0.95 * images + 0.05 * others)
    assert (slight > 0).all() and (slight < 0.5 * values).all()


def test_perceptual_distance_by_hand():
    class TwoLayers(torch.nn.Module):
        def feature_maps(self, images):
            return [images[:, :2], images[:, 2:]]

    a = torch.zeros(1, 4, 1, 2)
    b = torch.zeros(1, 4, 1, 2)
    a[0, 0], b[0, 1] = 3.0, 0.5  # orthogonal in the first layer: squared distance 2
    a[0, 2, 0, 0], b[0, 2, 0, 0] = 1.0, 7.0  # parallel in the second layer: distance 0
    torch.testing.assert_close(perceptual_distance(TwoLayers(), a, b), torch.tensor([1.0]))


@pytest.mark.parametrize(
    ("positives", "negatives", "area"),
    [
        ([2, 3], [0, 1], 1.0),
        ([0, 1], [2, 3], 0.0),
        ([1, 1], [1, 1], 0.5),
        ([1, 3], [2], 0.5),
        ([2, 3, 1], [1, 0], 5.5 / 6),
    ],
)
def test_roc_auc_by_hand(positives, negatives, area):
    assert roc_auc(positives, negatives) == pytest.approx(area)


def test_roc_auc_needs_both_classes():
    with pytest.raises(ValueError, match="at least one positive"):
        roc_auc([1.0], [])
