"""Images as bytes. Images with NaN or infinity are never converted."""

from __future__ import annotations

import torch
from torch import Tensor


class NonFiniteError(ValueError):
    """A network returned NaN or infinity; the message is one line."""


def is_finite(tensors: Tensor) -> Tensor:
    """Which of ``tensors [B, ...]`` contain neither NaN nor infinity: bool ``[B]`` on the CPU."""
    return tensors.detach().isfinite().flatten(1).all(1).cpu()


def to_bytes(images: Tensor) -> Tensor:
    """Convert ``images [B, 3, H, W]`` to ``uint8`` on the CPU. Values are clamped to [0, 1].

    A clamped image hides infinity, so pass the decoder's output before clamping (``decode(z, clamp=False)``).

    Raises:
        NonFiniteError: NaN or infinity, which would become black or white pixels.
    """
    invalid = ~is_finite(images)
    if invalid.any():
        raise NonFiniteError(
            f"{int(invalid.sum())} of {len(images)} images are not finite, first at index {int(invalid.nonzero()[0])}: "
            "exclude them, or compute them in float32."
        )
    return (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()


def select_finite(images: Tensor) -> tuple[Tensor, Tensor]:
    """Finite images of ``images [B, 3, H, W]`` as ``uint8 [b, 3, H, W]``, and their mask, bool ``[B]``."""
    finite = is_finite(images)
    return to_bytes(images[finite.to(images.device)]), finite


def mask_nonfinite(images: Tensor) -> Tensor:
    """``images [B, ...]`` clamped to [0, 1]; non-finite images become all NaN, so that all their metrics are NaN."""
    invalid = ~is_finite(images).to(images.device).view(-1, *[1] * (images.ndim - 1))
    return images.clamp(0, 1).masked_fill(invalid, torch.nan)
