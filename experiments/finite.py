"""Images as the bytes that are kept, judged and shown; what is not finite never becomes one."""

from __future__ import annotations

import torch
from torch import Tensor


class NonFiniteError(ValueError):
    """What the networks made holds NaN or infinity; its text is one sentence for the user."""


def is_finite(tensors: Tensor) -> Tensor:
    """Which of ``tensors [B, ...]`` hold neither NaN nor infinity: bool ``[B]`` on the CPU."""
    return tensors.detach().isfinite().flatten(1).all(1).cpu()


def to_bytes(images: Tensor) -> Tensor:
    """``uint8 [B, 3, H, W]`` on the CPU of ``images [B, 3, H, W]``; values outside [0, 1] are cut off.

    Clamping hides infinity: give what the decoder made before it is clamped (``decode(z, clamp=False)``).

    Raises:
        NotFinite: NaN or infinity, which would become black or white pixels.
    """
    lost = ~is_finite(images)
    if lost.any():
        raise NonFiniteError(
            f"{int(lost.sum())} of {len(images)} images are not finite, the first is image {int(lost.nonzero()[0])}: "
            "they would be black; leave them out, or compute them in single precision."
        )
    return (images.detach().float().clamp(0, 1) * 255).round().byte().cpu()


def select_finite(images: Tensor) -> tuple[Tensor, Tensor]:
    """The bytes ``uint8 [b, 3, H, W]`` of those of ``images [B, 3, H, W]`` that are finite, and which, bool ``[B]``."""
    finite = is_finite(images)
    return to_bytes(images[finite.to(images.device)]), finite


def mask_nonfinite(images: Tensor) -> Tensor:
    """``images [B, ...]`` clamped to [0, 1], NaN throughout where not finite: no measure of them is then a number."""
    lost = ~is_finite(images).to(images.device).view(-1, *[1] * (images.ndim - 1))
    return images.clamp(0, 1).masked_fill(lost, torch.nan)
