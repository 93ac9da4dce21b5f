"""Images as people bring them, made safe to open and brought to a model's size; and examples to begin with."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from torch import Tensor

MEDIA = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
LEAST_SHOWN = 384
"""Pixels: smaller images are enlarged before they are shown."""
MOST_EXAMPLES = 12
DRAWING = "a drawing of {} on a white background"


@dataclass(frozen=True)
class Example:
    """An image to begin with, and what describes it; empty where nobody said."""

    image: Image.Image
    prompt: str


def read_picture(
    source: str | Path | bytes, size: tuple[int, int], *, name: str = "", most_bytes: int, most_pixels: int
) -> Image.Image:
    """An image of ``size (H, W)`` from a file or its bytes: turned upright, its middle cut out, transparency on white.

    What does not fit is found from the file's header, before pixels are decoded.

    Args:
        name: of the file, as errors say it.

    Raises:
        ValueError: one sentence for a file that is empty, too long or no image, or an image of too many pixels.
    """
    data, name = _bytes(source, name, most_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the bound
            image = Image.open(io.BytesIO(data))
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(f"{name} is no image that can be read: choose a PNG, JPEG or WebP file.") from error
    if image.width * image.height > most_pixels:
        raise ValueError(
            f"{name} has {image.width} x {image.height} pixels, and at most {most_pixels:,} are taken: make it smaller."
        )
    try:
        return fitted(image, size)
    except Exception as error:
        raise ValueError(f"{name} is damaged and cannot be read to its end: save it anew.") from error


def _bytes(source: str | Path | bytes, name: str, most: int) -> tuple[bytes, str]:
    if not isinstance(source, bytes):
        path = Path(source)
        name, length = name or path.name, path.stat().st_size
        data = path.read_bytes() if length <= most else b""
    else:
        data, length, name = source, len(source), name or "the file"
    if length > most:
        raise ValueError(f"{name} has {length / 1e6:.1f} MB, and at most {most / 1e6:g} MB are taken: make it smaller.")
    if not length:
        raise ValueError(f"{name} is empty: choose another file.")
    return data, name


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """``image`` as RGB of ``size (H, W)``: upright, on white where it is transparent, its middle cut out."""
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    height, width = size
    return ImageOps.fit(upright.convert("RGB"), (width, height), Image.Resampling.LANCZOS)


def shown(image: Image.Image) -> Image.Image:
    """``image``, enlarged by a whole factor to at least ``LEAST_SHOWN`` pixels a side, as its pixels are."""
    factor = -(-LEAST_SHOWN // min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def as_pictures(images: Tensor) -> list[Image.Image]:
    """PIL images of ``[B,3,H,W]`` in [0, 1]."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in pixels]


def from_bytes(pixels: Tensor | np.ndarray) -> Image.Image:
    """A PIL image of ``uint8 [3,H,W]``."""
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(np.asarray(pixels), 0, -1)))


def read_examples(source: str | Path | None, size: tuple[int, int], **bounds: int) -> list[Example]:
    """The first images of a folder, or some drawings of a table such as ``assets/emoji/drawings-*.parquet``.

    Images of a folder may be described by a text file of the same name beside each.

    Raises:
        ValueError: one sentence for a place that holds none.
    """
    if source is None:
        return []
    path = Path(source)
    if path.is_file() and path.suffix == ".parquet":
        return _drawings(path, size, **bounds)
    if not path.is_dir():
        raise ValueError(f"examples={source} is neither a folder of images nor a table of drawings: name one, or null.")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in MEDIA)[:MOST_EXAMPLES]
    if not files:
        raise ValueError(f"examples={source} holds no image ({', '.join(MEDIA)}): name another folder, or null.")
    texts = [file.with_suffix(".txt") for file in files]
    said = [text.read_text().strip() if text.is_file() else "" for text in texts]
    return [Example(read_picture(f, size, **bounds), text) for f, text in zip(files, said, strict=True)]


def _drawings(path: Path, size: tuple[int, int], **bounds: int) -> list[Example]:
    """One drawing each of some concepts, evenly over the table."""
    table = pd.read_parquet(path, columns=["image", "concept", "phrase"]).drop_duplicates("concept")
    chosen = table.iloc[:: max(1, len(table) // MOST_EXAMPLES)].head(MOST_EXAMPLES)
    return [
        Example(
            read_picture(image["bytes"], size, name=concept, **bounds), f"a drawing of {phrase} on a white background"
        )
        for image, concept, phrase in chosen.itertuples(index=False)
    ]


def grid(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """What a gallery shows of ``pictures``."""
    return [shown(picture) for picture in pictures]
