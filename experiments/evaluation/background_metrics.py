"""How well an edit preserves the background: by PIE-Bench's own definition, and averaged over the background only.

PIE-Bench's code multiplies both images by ``1 - mask`` and averages over all pixels. Masked pixels then count as
perfectly preserved, so a larger mask gives a better score. The corrected metrics average over background pixels only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


@dataclass(frozen=True)
class BackgroundScores:
    """Background metrics per image, float64 ``[B]``; NaN for an image without background.

    PSNR is in dB, MSE is that of images in [0, 1]. ``original_*`` follow PIE-Bench's definition.
    """

    psnr: Tensor
    mse: Tensor
    ssim: Tensor
    original_psnr: Tensor
    original_mse: Tensor
    original_ssim: Tensor


def background_scores(images: Tensor, originals: Tensor, masks: Tensor) -> BackgroundScores:
    """Background metrics of ``images`` edited from ``originals``.

    PSNR of equal backgrounds is infinite. The corrected SSIM averages the SSIM map of the full images over the
    background, so edited pixels still affect background pixels within one SSIM window.

    Args:
        images, originals: ``[B,3,H,W]`` in [0, 1].
        masks: bool ``[B,H,W]``, True where the image is to be edited.
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
