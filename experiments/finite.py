"""Conversion of images to 8-bit integers, with checks for NaN and infinite values."""

from __future__ import annotations

import torch
from torch import Tensor


class NonFiniteError(ValueError):
    """Error that is raised if the output of a network contains NaN or infinity."""


def is_finite(tensors: Tensor) -> Tensor:
    """Return a mask, bool ``[B]`` on the CPU: True for each sample of ``tensors [B, ...]`` without NaN and infinity."""
    return tensors.detach().isfinite().flatten(1).all(1).cpu()


def to_bytes(images: Tensor) -> Tensor:
    """Return ``images [B, 3, H, W]``, clamped to [0, 1] and scaled to 0..255, as ``uint8`` on the CPU.

    The images must come from the decoder without clamping (``decode(z, clamp=False)``), because clamping hides infinite
    values.

    Raises:
        NonFiniteError: an image contains NaN or infinity.
    """
    invalid = ~is_finite(images)
    if invalid.any():
        raise NonFiniteError(
            f"{int(invalid.sum())} of {len(images)} images are not finite, first at index {int(invalid.nonzero()[0])}: "
            "exclude these images, or compute them in float32."
        )
    return (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()


def select_finite(images: Tensor) -> tuple[Tensor, Tensor]:
    """Select the images of ``images [B, 3, H, W]`` that contain neither NaN nor infinity.

    Returns:
        The b selected images, ``uint8 [b, 3, H, W]``, and the mask of the selected images, bool ``[B]``.
    """
    finite = is_finite(images)
    return to_bytes(images[finite.to(images.device)]), finite


def mask_nonfinite(images: Tensor) -> Tensor:
    """Return ``images [B, ...]`` clamped to [0, 1]. All pixels of an image with NaN or infinity become NaN.

    If the pixels of an image are NaN, all metrics of the image are NaN.
    """
    invalid = ~is_finite(images).to(images.device).view(-1, *[1] * (images.ndim - 1))
    return images.clamp(0, 1).masked_fill(invalid, torch.nan)
