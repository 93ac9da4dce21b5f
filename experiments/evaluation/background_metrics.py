"""Metrics of how well an edit preserves the background: PIE-Bench's definitions and corrected definitions.

PIE-Bench's code multiplies both images by ``1 - mask`` and averages the error over all pixels. The masked pixels then
have no error, so that a larger mask gives a better score. The corrected metrics average over background pixels only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


@dataclass(frozen=True)
class BackgroundScores:
    """Background metrics of each image, float64 ``[B]``. They are NaN for an image without background pixels.

    Attributes:
        psnr: PSNR over the background pixels, in dB.
        mse: mean squared error over the background pixels of images in [0, 1].
        ssim: SSIM averaged over the background pixels.
        original_psnr: PSNR as defined by PIE-Bench, in dB.
        original_mse: mean squared error as defined by PIE-Bench.
        original_ssim: SSIM as defined by PIE-Bench.
    """

    psnr: Tensor
    mse: Tensor
    ssim: Tensor
    original_psnr: Tensor
    original_mse: Tensor
    original_ssim: Tensor


def background_scores(images: Tensor, originals: Tensor, masks: Tensor) -> BackgroundScores:
    """Compute the background metrics of edited images.

    The PSNR of two equal backgrounds is infinite. The corrected SSIM is the SSIM map of the full images, averaged over
    the background pixels. Edited pixels therefore affect the SSIM of background pixels in the same SSIM window.

    Args:
        images: edited images ``[B,3,H,W]`` in [0, 1].
        originals: source images ``[B,3,H,W]`` in [0, 1].
        masks: bool ``[B,H,W]``, True in the region that is to be edited.
    """
    background = (~masks)[:, None].to(images.device)
    images = images.double()
    originals = originals.double()
    error = ((images - originals).square() * background).sum((1, 2, 3))
    pixels = 3 * background.sum((1, 2, 3)).double()
    nan_if_empty = torch.where(pixels > 0, 1.0, torch.nan)
    mse = error / pixels
    original_mse = nan_if_empty * error / images[0].numel()
    original_ssim = structural_similarity_index_measure(
        images * background, originals * background, data_range=1.0, reduction="none", return_full_image=False
    )
    maps = structural_similarity_index_measure(
        images, originals, data_range=1.0, reduction="none", return_full_image=True
    )[1]
    return BackgroundScores(
        psnr=-10 * mse.log10(),
        mse=mse,
        ssim=(maps * background).sum((1, 2, 3)) / pixels,
        original_psnr=-10 * original_mse.log10(),
        original_mse=original_mse,
        original_ssim=nan_if_empty * original_ssim.view(-1),
    )
