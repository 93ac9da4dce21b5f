"""Checks of a model's inputs: images, image sizes, prompts and guidance scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

from torch import Tensor


def check_images(images: Tensor, image_size: tuple[int, int]) -> None:
    """Raise ValueError unless ``images`` is a float tensor ``[B,3,H,W]`` in [0, 1] with ``image_size = (H, W)``."""
    expected = (3, *image_size)
    if images.ndim != 4 or images.shape[1:] != expected:
        raise ValueError(
            f"images have the shape {list(images.shape)}, but this checkpoint takes images of the shape "
            f"[B, {', '.join(map(str, expected))}]: resize the images."
        )
    if not images.is_floating_point() or not ((images >= 0) & (images <= 1)).all():
        raise ValueError("images must be floating point with all values in [0, 1]; clamp the values after resizing.")


def check_image_size(image_size: tuple[int, int], multiple: int) -> None:
    """Raise ValueError unless ``image_size`` is ``(height, width)`` with two positive multiples of ``multiple``."""
    valid = len(image_size) == 2 and all(
        isinstance(side, int) and side >= multiple and side % multiple == 0 for side in image_size
    )
    if not valid:
        raise ValueError(f"image_size={image_size!r}: must be (height, width), both multiples of {multiple} pixels.")


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise ValueError unless ``prompts`` is a non-empty sequence of strings."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts={prompts!r}: must be a non-empty list of strings, one per sample.")


def as_guidance(guidance: float) -> float:
    """Return ``guidance`` as a float; raise ValueError unless ``guidance`` is a finite number >= 1."""
    is_number = isinstance(guidance, Real) and not isinstance(guidance, bool)
    if not is_number or not math.isfinite(guidance) or guidance < 1:
        raise ValueError(f"guidance={guidance!r}: must be a finite number >= 1; 1 disables guidance.")
    return float(guidance)


def as_negative_prompts(negative_prompt: str | Sequence[str], batch_size: int) -> list[str]:
    """Return a list with one negative prompt per sample.

    Raises:
        ValueError: ``negative_prompt`` is neither a string nor a list of ``batch_size`` strings.
    """
    if isinstance(negative_prompt, str):
        return [negative_prompt] * batch_size
    is_list = isinstance(negative_prompt, list | tuple) and len(negative_prompt) == batch_size
    if not is_list or not all(isinstance(prompt, str) for prompt in negative_prompt):
        raise ValueError(
            f"negative_prompt={negative_prompt!r}: must be a string, or a list of strings, one for each of the "
            f"{batch_size} prompts."
        )
    return list(negative_prompt)


def check_no_negative_prompts(negative_prompts: Sequence[str], network: str) -> None:
    """Raise ValueError unless all negative prompts are empty, for networks that take the guidance scale as an input."""
    if any(negative_prompts):
        raise ValueError(
            f"negative_prompt has no effect on a network that takes the guidance scale as an input ({network}): "
            "leave negative_prompt empty."
        )
