"""Background metrics by PIE-Bench's definition and averaged over the background only."""

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from experiments.evaluation.background_metrics import background_scores


def random_images(count=2, side=24):
    random = torch.Generator().manual_seed(0)
    return torch.rand(2, count, 3, side, side, generator=random, dtype=torch.float64)


def left_half_mask(count=2, side=24):
    mask = torch.zeros(count, side, side, dtype=torch.bool)
    mask[:, :, : side // 2] = True
    return mask


def test_constant_error():
    images = torch.full((1, 3, 24, 24), 0.5)
    scores = background_scores(images + 0.1, images, left_half_mask(1))
    torch.testing.assert_close(scores.mse, torch.tensor([0.01]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(scores.psnr, torch.tensor([20.0]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(scores.original_mse, scores.mse / 2)  # masked pixels count as preserved


def test_edited_region_does_not_affect_scores():
    images, originals = random_images()
    mask = left_half_mask()
    changed = torch.where(mask[:, None], torch.rand_like(images), images)
    scores = background_scores(images, originals, mask)
    changed_scores = background_scores(changed, originals, mask)
    for name in ("psnr", "mse", "original_psnr", "original_mse", "original_ssim"):
        torch.testing.assert_close(getattr(scores, name), getattr(changed_scores, name))


def test_original_ssim_is_that_of_masked_images():
    images, originals = random_images()
    background = (~left_half_mask())[:, None]
    expected = structural_similarity_index_measure(
        images * background, originals * background, data_range=1.0, reduction="none"
    )
    torch.testing.assert_close(background_scores(images, originals, left_half_mask()).original_ssim, expected)


def test_definitions_agree_without_a_mask():
    images, originals = random_images()
    scores = background_scores(images, originals, torch.zeros(2, 24, 24, dtype=torch.bool))
    torch.testing.assert_close(scores.psnr, scores.original_psnr)
    torch.testing.assert_close(scores.mse, scores.original_mse)


def test_image_without_background_is_nan_and_affects_no_other():
    images, originals = random_images()
    mask = left_half_mask()
    mask[0] = True
    scores = background_scores(images, originals, mask)
    alone = background_scores(images[1:], originals[1:], mask[1:])
    for name in vars(scores):
        assert getattr(scores, name)[0].isnan()
        torch.testing.assert_close(getattr(scores, name)[1:], getattr(alone, name))


def test_unchanged_image_has_the_best_scores():
    images, _ = random_images()
    scores = background_scores(images, images, left_half_mask())
    assert (scores.psnr == torch.inf).all() and (scores.mse == 0).all()
    torch.testing.assert_close(scores.ssim, torch.ones(2).double())
    torch.testing.assert_close(scores.original_ssim, torch.ones(2).double())
