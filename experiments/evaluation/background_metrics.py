"""How well an edit keeps the background: as PIE-Bench's own code counts it, and over the background alone.

The original multiplies both images by ``1 - mask`` and averages over all pixels, so the masked ones count as perfectly
kept: the larger the mask, the better the score. The corrected figures average over the background's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


@dataclass(frozen=True)
class Background:
    """Figures of each image, float64 ``[B]``; NaN where an image has no background. PSNR in dB.

    ``original_*`` are by PIE-Bench's definition; MSE and PSNR are of images in [0, 1].
    """

    psnr: Tensor
    mse: Tensor
    ssim: Tensor
    original_psnr: Tensor
    original_mse: Tensor
    original_ssim: Tensor


def background_scores(images: Tensor, originals: Tensor, masks: Tensor) -> Background:
    """Of ``images`` and ``originals`` ``[B,3,H,W]`` in [0, 1]; ``masks`` bool ``[B,H,W]``, True is to be edited.

    PSNR of equal backgrounds is infinite. The corrected SSIM averages the map of the whole images over the background,
    so what lies outside reaches as far in as its window.
    """
    kept = (~masks)[:, None].to(images.device)
    images, originals = images.double(), originals.double()
    error = ((images - originals).square() * kept).sum((1, 2, 3))
    pixels = 3 * kept.sum((1, 2, 3)).double()
    nothing = torch.where(pixels > 0, 1.0, torch.nan)
    mse, original = error / pixels, nothing * error / images[0].numel()
    whole = structural_similarity_index_measure(
        images * kept, originals * kept, data_range=1.0, reduction="none", return_full_image=False
    )
    maps = structural_similarity_index_measure(
        images, originals, data_range=1.0, reduction="none", return_full_image=True
    )[1]
    return Background(
        psnr=-10 * mse.log10(),
        mse=mse,
        ssim=(maps * kept).sum((1, 2, 3)) / pixels,
        original_psnr=-10 * original.log10(),
        original_mse=original,
        original_ssim=nothing * whole.view(-1),
    )
