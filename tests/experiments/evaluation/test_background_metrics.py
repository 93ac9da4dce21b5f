"""Scores of backgrounds, by PIE-Bench's definition and over the background alone."""

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from experiments.editing import background_scores


def pictures(count=2, side=24):
    random = torch.Generator().manual_seed(0)
    return torch.rand(2, count, 3, side, side, generator=random, dtype=torch.float64)


def half(count=2, side=24):
    mask = torch.zeros(count, side, side, dtype=torch.bool)
    mask[:, :, : side // 2] = True
    return mask


def test_a_constant_error_is_known():
    images = torch.full((1, 3, 24, 24), 0.5)
    found = background_scores(images + 0.1, images, half(1))
    torch.testing.assert_close(found.mse, torch.tensor([0.01]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.psnr, torch.tensor([20.0]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.original_mse, found.mse / 2)  # masked pixels count as kept


def test_what_is_edited_does_not_count():
    images, originals = pictures()
    mask = half()
    changed = torch.where(mask[:, None], torch.rand_like(images), images)
    one, other = background_scores(images, originals, mask), background_scores(changed, originals, mask)
    for name in ("psnr", "mse", "original_psnr", "original_mse", "original_ssim"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_the_original_ssim_is_of_images_times_the_background():
    images, originals = pictures()
    kept = (~half())[:, None]
    whole = structural_similarity_index_measure(images * kept, originals * kept, data_range=1.0, reduction="none")
    torch.testing.assert_close(background_scores(images, originals, half()).original_ssim, whole)


def test_without_a_mask_the_definitions_agree():
    images, originals = pictures()
    found = background_scores(images, originals, torch.zeros(2, 24, 24, dtype=torch.bool))
    torch.testing.assert_close(found.psnr, found.original_psnr)
    torch.testing.assert_close(found.mse, found.original_mse)


def test_an_image_without_background_has_no_score_and_spoils_no_other():
    images, originals = pictures()
    mask = half()
    mask[0] = True
    found = background_scores(images, originals, mask)
    alone = background_scores(images[1:], originals[1:], mask[1:])
    for name in vars(found):
        assert getattr(found, name)[0].isnan()
        torch.testing.assert_close(getattr(found, name)[1:], getattr(alone, name))


def test_an_untouched_image_scores_best():
    images, _ = pictures()
    found = background_scores(images, images, half())
    assert (found.psnr == torch.inf).all() and (found.mse == 0).all()
    torch.testing.assert_close(found.ssim, torch.ones(2).double())
    torch.testing.assert_close(found.original_ssim, torch.ones(2).double())
