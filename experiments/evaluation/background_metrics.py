"""Metrics of the background and of the edited region of an image, as in PIE-Bench and with corrected definitions.

A region is either the background or the edited part of an image. The code of PIE-Bench sets the pixels outside the
region to 0 in both images and averages the error over all pixels of the image. Pixels outside the region then have no
error, so that the score of a smaller region is better. The corrected definitions average the error only over the pixels
of the region.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW_RADIUS, WINDOW_STD = 5, 1.5  # radius and standard deviation of the Gaussian window of SSIM, in pixels
SSIM_CONSTANTS = 0.01**2, 0.03**2  # the constants C1 and C2 in the definition of SSIM, for pixel values in [0, 1]


@dataclass(frozen=True)
class RegionScores:
    """Metrics that compare one region of each of B images with the original. Each metric is a tensor float64 ``[B]``.

    If the region of an image has no pixels, all metrics of the image are NaN.

    Attributes:
        psnr: PSNR over the pixels of the region, in dB.
        mse: mean squared error over the pixels of the region, for images in [0, 1].
        ssim: structural similarity (SSIM), averaged over the pixels of the region.
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


def background_scores(images: Tensor, originals: Tensor, masks: Tensor) -> RegionScores:
    """Compute the metrics of the background of edited images, see :func:`region_scores`.

    Args:
        images: edited images ``[B,3,H,W]`` in [0, 1].
        originals: source images ``[B,3,H,W]`` in [0, 1].
        masks: bool ``[B,H,W]``, True for pixels that the edit should change; the other pixels are the background.
    """
    return region_scores(images, originals, ~masks)


def region_scores(
    images: Tensor, originals: Tensor, regions: Tensor, *, similarities: Tensor | None = None
) -> RegionScores:
    """Compute the metrics that compare a region of the edited images with the same region of the source images.

    The PSNR of two equal regions is infinite. The corrected SSIM is the SSIM map of the full images, averaged over the
    pixels of the region. Pixels outside the region affect the SSIM of nearby pixels in the region, because SSIM is
    computed in windows.

    Args:
        images: edited images ``[B,3,H,W]`` in [0, 1].
        originals: source images ``[B,3,H,W]`` in [0, 1].
        regions: bool ``[B,H,W]``, True for the pixels of the region.
        similarities: the :func:`ssim_map` of ``images`` and ``originals``; if None, the map is computed.
    """
    region = regions[:, None].to(images.device)
    images = images.double()
    originals = originals.double()
    if similarities is None:
        similarities = ssim_map(images, originals)
    error = ((images - originals).square() * region).sum((1, 2, 3))
    pixels = 3 * region.sum((1, 2, 3)).double()
    nan_if_empty = torch.where(pixels > 0, 1.0, torch.nan)
    mse = error / pixels
    original_mse = nan_if_empty * error / images[0].numel()
    original_ssim = ssim_map(images * region, originals * region).mean((1, 2, 3))
    return RegionScores(
        psnr=-10 * mse.log10(),
        mse=mse,
        ssim=(similarities * region).sum((1, 2, 3)) / pixels,
        original_psnr=-10 * original_mse.log10(),
        original_mse=original_mse,
        original_ssim=nan_if_empty * original_ssim,
    )


def ssim_map(images: Tensor, originals: Tensor) -> Tensor:
    """Return the SSIM of each pixel, float64 ``[B,C,H,W]``, of ``images`` and ``originals [B,C,H,W]`` in [0, 1].

    SSIM is defined as by Wang et al. 2004, with a Gaussian window of 11 x 11 pixels and reflected borders, as in
    torchmetrics. The window is applied along rows and then along columns, which is 20 times faster in float64 than a
    convolution with the two-dimensional window. SSIM is computed in float64, because the error in float32 reaches 2e-3
    in almost constant regions.
    """
    channels = zip(images.double().flatten(0, 1), originals.double().flatten(0, 1), strict=True)
    return torch.stack([_channel_ssim(a[None], b[None]) for a, b in channels]).view(images.shape)


def _channel_ssim(image: Tensor, original: Tensor) -> Tensor:
    """Return the SSIM map of one channel ``[1,H,W]``.

    Channels are processed one by one, so that the temporary tensors fit into the CPU cache.
    """
    a, b = (F.pad(channel, [WINDOW_RADIUS] * 4, mode="reflect") for channel in (image, original))
    mean_a, mean_b, square_a, square_b, product = map(_blur, (a, b, a * a, b * b, a * b))
    covariance = product - mean_a * mean_b
    variances = (square_a - mean_a.square()).clamp(min=0) + (square_b - mean_b.square()).clamp(min=0)
    c1, c2 = SSIM_CONSTANTS
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return similarity / ((mean_a.square() + mean_b.square() + c1) * (variances + c2))


def _blur(maps: Tensor) -> Tensor:
    """Blur ``maps [1,h,w]`` with the Gaussian window of SSIM.

    The result is smaller than ``maps`` by the radius of the window on each side.
    """
    distances = torch.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1, dtype=torch.float64)
    weights = (-(distances / WINDOW_STD).square() / 2).exp()
    weights /= weights.sum()
    for dim in (-1, -2):
        length = maps.shape[dim] - 2 * WINDOW_RADIUS
        blurred = torch.zeros_like(maps.narrow(dim, 0, length))
        for k, weight in enumerate(weights.tolist()):
            blurred.add_(maps.narrow(dim, k, length), alpha=weight)
        maps = blurred
    return maps
