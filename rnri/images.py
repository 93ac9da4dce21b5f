"""Converts PIL images of any mode to upright images with 8 bits per channel.

All image files of this project are converted by this module.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tag numbers
WHITE_IS_ZERO, SIGNED = 0, 2  # values of the TIFF tags PHOTOMETRIC and SAMPLE_FORMAT


def to_rgba(image: Image.Image) -> Image.Image:
    """Return ``image`` in mode ``RGBA`` with 8 bits per channel, rotated by its EXIF orientation.

    Gray levels of more than 8 bits are scaled to 8 bits. If an image has several frames, only its current frame is
    converted; after ``Image.open``, the current frame is the first one.

    Raises:
        ValueError: the gray level of white is unknown, because a gray image with more than 8 bits per pixel has values
            below 0, above the maximum of its format, or only below 256.
    """
    levels = _levels(image)
    inverted = _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO
    upright = ImageOps.exif_transpose(image)
    if levels is not None:
        upright = _eight_bits(upright, levels, inverted)
    return upright.convert("RGBA")


def on_white(image: Image.Image) -> Image.Image:
    """Return ``image`` in mode ``RGB``, converted by :func:`to_rgba` and composited onto white."""
    rgba = to_rgba(image)
    flat = Image.new("RGBA", rgba.size, "white")
    flat.alpha_composite(rgba)
    return flat.convert("RGB")


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return ``image``, converted by :func:`on_white`, resized and center-cropped to ``size`` = ``(H, W)`` pixels."""
    height, width = size
    return ImageOps.fit(on_white(image), (width, height), Image.Resampling.LANCZOS)


def _levels(file: Image.Image) -> int | None:
    """Return the number of gray levels of an image with more than 8 bits per pixel, or 1 if its pixels are floats.

    Return None if Pillow itself converts the image to 8 bits correctly. Pillow would clip gray levels above 255 of
    16-bit, 32-bit and float images. Images in Pillow's 32-bit integer mode are assumed to contain 16-bit values.
    """
    if file.mode.startswith("I;16"):
        return 2 ** (_tag(file, BITS_PER_SAMPLE) or 16)
    if file.mode == "I":
        return 2**15 if (_tag(file, BITS_PER_SAMPLE), _tag(file, SAMPLE_FORMAT)) == (16, SIGNED) else 2**16
    return 1 if file.mode == "F" else None


def _tag(file: Image.Image, number: int) -> int | None:
    """Return the value of TIFF tag ``number``, or the first value if the tag has one value per channel.

    Return None if the file is not a TIFF file or does not contain the tag.
    """
    value = getattr(file, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value


def _eight_bits(image: Image.Image, levels: int, inverted: bool) -> Image.Image:
    """Convert a gray image to 8 bits: mode ``L``, or ``LA`` if the file declares one gray level as transparent.

    Pixels are integers below ``levels``, or floats in [0, 1] if ``levels`` is 1. Integers keep their highest eight
    bits, as in Pillow's conversion of 16-bit colors. ``inverted`` means that gray level 0 is white.
    """
    values = np.asarray(image)
    low = float(values.min())
    high = float(values.max())
    # Without this check, an image that stores 8-bit gray levels as 32-bit integers would silently become black.
    ambiguous = image.mode == "I" and levels == 2**16 and 0 < high < 256
    if not 0 <= low <= high <= max(levels - 1, 1) or ambiguous:
        raise ValueError(
            f"the gray levels of the image range from {low:g} to {high:g}, and its white level is unknown; save the "
            "image with 8 or 16 bits per pixel"
        )
    gray = np.rint(255 * values) if levels == 1 else values.astype(np.int64) * 256 // levels
    gray = Image.fromarray((255 - gray if inverted else gray).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is None:
        return gray
    return Image.merge("LA", (gray, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))
