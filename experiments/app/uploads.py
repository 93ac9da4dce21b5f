"""Uploaded images: validated, converted to the image size of the model; and example images."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from torch import Tensor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MIN_DISPLAY_SIZE = 384
"""Smaller images are enlarged to at least this many pixels per side for display."""
MAX_EXAMPLES = 12


@dataclass(frozen=True)
class UploadLimits:
    """Maximum file size in bytes and maximum number of pixels of an upload."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True)
class Example:
    """An example image and its prompt, which may be empty."""

    image: Image.Image
    prompt: str


def read_image(
    source: str | Path | bytes, size: tuple[int, int], limits: UploadLimits, *, name: str = ""
) -> Image.Image:
    """Read an image and fit it to ``size`` (H, W), see :func:`fit_image`.

    The limits are checked on the file size and header, before the pixels are decoded.

    Args:
        source: path or content of the file.
        size: height and width in pixels.
        limits: upload limits.
        name: file name for error messages; default: the name of ``source``.

    Raises:
        ValueError: the file is empty, too large, damaged or not an image.
    """
    data, name = _read_bytes(source, name, limits.max_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below
            image = Image.open(io.BytesIO(data))
    except Exception as error:  # image readers raise many types for damaged files
        raise ValueError(f"{name} is not a readable image; choose a PNG, JPEG or WebP file.") from error
    if image.width * image.height > limits.max_pixels:
        raise ValueError(
            f"{name} has {image.width} x {image.height} pixels; at most {limits.max_pixels:,} are allowed. Resize it."
        )
    try:
        return fit_image(image, size)
    except Exception as error:
        raise ValueError(f"{name} is damaged and cannot be decoded; save it again.") from error


def _read_bytes(source: str | Path | bytes, name: str, max_bytes: int) -> tuple[bytes, str]:
    """Content and name of a file that is neither empty nor larger than ``max_bytes``."""
    if isinstance(source, bytes):
        data = source
        length = len(source)
        name = name or "the file"
    else:
        path = Path(source)
        length = path.stat().st_size
        name = name or path.name
        data = path.read_bytes() if length <= max_bytes else b""
    if length > max_bytes:
        raise ValueError(f"{name} has {length / 1e6:.1f} MB; at most {max_bytes / 1e6:g} MB are allowed. Resize it.")
    if not length:
        raise ValueError(f"{name} is empty; choose another file.")
    return data, name


def fit_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Convert to RGB of ``size`` (H, W): EXIF orientation applied, white background, center crop."""
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    height, width = size
    return ImageOps.fit(upright.convert("RGB"), (width, height), Image.Resampling.LANCZOS)


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarge by an integer factor to at least ``MIN_DISPLAY_SIZE`` pixels per side, for display."""
    factor = -(-MIN_DISPLAY_SIZE // min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def to_pil(images: Tensor) -> list[Image.Image]:
    """PIL images of a float tensor ``[B,3,H,W]`` in [0, 1]."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in pixels]


def uint8_to_pil(pixels: Tensor | np.ndarray) -> Image.Image:
    """A PIL image of a uint8 tensor ``[3,H,W]``."""
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(np.asarray(pixels), 0, -1)))


def read_examples(source: str | Path | None, size: tuple[int, int], limits: UploadLimits) -> list[Example]:
    """Read example images from a folder, or from a table such as ``assets/emoji/drawings-*.parquet``.

    The prompt of an image in a folder is read from the text file with the same name, if there is one.

    Raises:
        ValueError: ``source`` has no images.
    """
    if source is None:
        return []
    path = Path(source)
    if path.is_file() and path.suffix == ".parquet":
        return _read_drawings(path, size, limits)
    if not path.is_dir():
        raise ValueError(f"examples: {source} must be a folder of images or a table of drawings; use null for none.")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)[:MAX_EXAMPLES]
    if not files:
        raise ValueError(f"examples: {source} has no images ({', '.join(IMAGE_SUFFIXES)}); use null for none.")
    return [Example(read_image(file, size, limits), _read_prompt(file.with_suffix(".txt"))) for file in files]


def _read_prompt(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _read_drawings(path: Path, size: tuple[int, int], limits: UploadLimits) -> list[Example]:
    """One drawing per concept, for concepts that are evenly spaced in the table."""
    table = pd.read_parquet(path, columns=["image", "concept", "phrase"]).drop_duplicates("concept")
    selected = table.iloc[:: max(1, len(table) // MAX_EXAMPLES)].head(MAX_EXAMPLES)
    return [
        Example(read_image(image["bytes"], size, limits, name=concept), f"a drawing of {phrase} on a white background")
        for image, concept, phrase in selected.itertuples(index=False)
    ]
