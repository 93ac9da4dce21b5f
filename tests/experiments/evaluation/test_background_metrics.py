"""Metrics of the background and of the edited region, by PIE-Bench's definition and averaged over the region only."""

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from experiments.evaluation.background_metrics import background_scores, region_scores, ssim_map


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


def test_error_of_the_edited_region():
    images = torch.full((1, 3, 24, 24), 0.5)
    mask = torch.zeros(1, 24, 24, dtype=torch.bool)
    mask[:, :, :8] = True
    scores = region_scores(torch.where(mask[:, None], images + 0.3, images), images, mask)
    torch.testing.assert_close(scores.mse, torch.tensor([0.09]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(scores.psnr, -10 * scores.mse.log10())
    torch.testing.assert_close(scores.original_mse, scores.mse / 3)  # the other pixels count as preserved
    assert background_scores(images, images, mask).psnr == torch.inf


def test_background_is_the_region_outside_of_the_mask():
    images, originals = random_images()
    mask = left_half_mask()
    maps = ssim_map(images, originals)
    for similarities in (None, maps):
        region = vars(region_scores(images, originals, ~mask, similarities=similarities))
        torch.testing.assert_close(region, vars(background_scores(images, originals, mask)), rtol=0, atol=0)
    edited = region_scores(images, originals, mask, similarities=maps)
    torch.testing.assert_close(edited.ssim, maps[:, :, :, :12].mean((1, 2, 3)))


def test_ssim_is_that_of_torchmetrics():
    images, originals = random_images()
    flat = torch.full_like(images, 0.95)  # variances are cancelled; float32 is wrong by 1e-3 here
    for a, b in ((images, originals), (flat, flat + 0.01 * images), (flat.float(), originals.float())):
        similarity, maps = structural_similarity_index_measure(
            a.double(), b.double(), data_range=1.0, reduction="none", return_full_image=True
        )
        torch.testing.assert_close(ssim_map(a, b), maps, rtol=0, atol=1e-10)
        scores = background_scores(a, b, torch.zeros(2, 24, 24, dtype=torch.bool))
        torch.testing.assert_close(scores.original_ssim, similarity, rtol=0, atol=1e-10)


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
    assert all(values[0].isnan() for values in vars(region_scores(images, originals, ~mask)).values())
    for name in vars(scores):
        assert getattr(scores, name)[0].isnan()
        torch.testing.assert_close(getattr(scores, name)[1:], getattr(alone, name))


def test_unchanged_image_has_the_best_scores():
    images, _ = random_images()
    scores = background_scores(images, images, left_half_mask())
    assert (scores.psnr == torch.inf).all() and (scores.mse == 0).all()
    torch.testing.assert_close(scores.ssim, torch.ones(2).double())
    torch.testing.assert_close(scores.original_ssim, torch.ones(2).double())
