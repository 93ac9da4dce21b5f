"""Reads uploaded images and example images, checks them, and converts them to the image size of the model."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pillow_heif
from PIL import Image
from torch import Tensor

from experiments.app.checkpoint_info import MeasuredEdits
from rnri.images import fit

pillow_heif.register_heif_opener()  # lets PIL open HEIC files, in which phones store photos

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".heic", ".heif")
MIN_DISPLAY_SIZE = 384
"""Images with fewer than ``MIN_DISPLAY_SIZE`` pixels per side are enlarged when the page displays them."""
MAX_EXAMPLES = 12
"""Maximum number of example images that the page shows."""
DRAFT_FACTOR = 2
"""A large JPEG file is decoded at a reduced size, which is at least ``DRAFT_FACTOR`` times the model's image size."""


@dataclass(frozen=True)
class UploadLimits:
    """Maximum file size in bytes and maximum number of pixels of an uploaded image."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True)
class Example:
    """An example image.

    Attributes:
        image: the image, in the image size of the model.
        prompt: prompt of the image; may be empty.
        edited_prompts: dict that maps the text of a button to an edited prompt; may be empty. The page shows the first
            edit with the example.
    """

    image: Image.Image
    prompt: str
    edited_prompts: dict[str, str] = field(default_factory=dict)


def read_image(
    source: str | Path | bytes, size: tuple[int, int], limits: UploadLimits, *, name: str = ""
) -> Image.Image:
    """Read an image and convert it to ``size`` (H, W) with :func:`rnri.images.fit`.

    The file size and the number of pixels in the header of the file are checked before the pixels are decoded.

    Args:
        source: path of the file, or its content.
        size: height and width of the result in pixels.
        limits: maximum file size and number of pixels.
        name: name of the image in error messages. If ``name`` is empty, the file name in ``source`` is used.

    Raises:
        ValueError: the file is empty, too large, damaged, not an image, or a grayscale image with an unknown maximum
            value.
    """
    data, name = _read_bytes(source, name, limits.max_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is the limit
            image = Image.open(io.BytesIO(data))
    except Exception as error:  # PIL raises exceptions of many types for damaged files
        raise ValueError(f"{name} is not a readable image: choose a PNG, JPEG, WebP or HEIC file.") from error
    if image.width * image.height > limits.max_pixels:
        raise ValueError(
            f"{name} has {image.width} x {image.height} pixels, at most {limits.max_pixels:,} are allowed: "
            "resize the image."
        )
    side = DRAFT_FACTOR * max(size)
    image.draft(None, (side, side))  # decode a JPEG file at 1/2, 1/4 or 1/8 of its size if the result is large enough
    try:
        return fit(image, size)
    except Exception as error:
        raise ValueError(f"{name} cannot be decoded ({error}): save it again as an 8-bit image.") from error


def _read_bytes(source: str | Path | bytes, name: str, max_bytes: int) -> tuple[bytes, str]:
    """Return the content and the name of a file; raise ValueError if the file is empty or larger than ``max_bytes``."""
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
        raise ValueError(
            f"{name} has {length / 1e6:.1f} MB, at most {max_bytes / 1e6:g} MB are allowed: choose a smaller file."
        )
    if not length:
        raise ValueError(f"{name} is empty: choose another file.")
    return data, name


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarge an image by the smallest integer factor for which each side has at least ``MIN_DISPLAY_SIZE`` pixels."""
    factor = -(-MIN_DISPLAY_SIZE // min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Convert a float tensor ``[B,3,H,W]`` in [0, 1] to B PIL images.

    Raises:
        ValueError: an image contains NaN or infinity.
    """
    finite = images.detach().isfinite().flatten(1).all(1)
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {len(images)} images are not finite: start the page with model.dtype=float32."
        )
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in pixels]


def uint8_to_pil(pixels: Tensor | np.ndarray) -> Image.Image:
    """Convert a uint8 tensor ``[3,H,W]`` to a PIL image."""
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(np.asarray(pixels), 0, -1)))


def read_examples(source: str | Path | None, size: tuple[int, int], limits: UploadLimits) -> list[Example]:
    """Read example images from a folder, or from a table such as ``assets/emoji/drawings-*.parquet``.

    In a folder, the prompt of the image ``NAME.png`` is the text of ``NAME.txt``, converted to one line. The prompt is
    empty if ``NAME.txt`` does not exist. Every line of ``NAME.edits.txt`` is an edited prompt.

    Raises:
        ValueError: ``source`` is neither a folder with images nor a table.
    """
    files = example_files(source)
    if [file.suffix for file in files] == [".parquet"]:
        return _read_drawings(files[0], size, limits)
    return [
        Example(read_image(file, size, limits), _read_prompt(file.with_suffix(".txt")), _read_edits(file))
        for file in files
    ]


def example_files(source: str | Path | None) -> list[Path]:
    """Return the files that :func:`read_examples` reads: one table, or at most ``MAX_EXAMPLES`` images.

    Raises:
        ValueError: ``source`` is neither a folder with images nor a table.
    """
    if source is None:
        return []
    path = Path(source)
    if path.is_file() and path.suffix == ".parquet":
        return [path]
    if not path.is_dir():
        raise ValueError(
            f"examples: {source} does not exist or is not a folder; set examples to a folder of images, to a .parquet "
            "table of drawings, or to null for no examples."
        )
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)[:MAX_EXAMPLES]
    if not files:
        raise ValueError(
            f"examples: {source} has no images ({', '.join(IMAGE_SUFFIXES)}): set examples to another folder, or to "
            "null for no examples."
        )
    return files


def _read_prompt(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8-sig").split()) if path.is_file() else ""


def _read_edits(image: Path) -> dict[str, str]:
    """Return a dict that maps each line of the file of edited prompts to itself; empty if the file does not exist."""
    path = image.with_suffix(".edits.txt")
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    return {line.strip(): line.strip() for line in lines if line.strip()}


def read_measured_examples(
    source: str | Path | None, edits: Sequence[MeasuredEdits], size: tuple[int, int], limits: UploadLimits
) -> list[Example]:
    """Return those drawings in the table ``source`` that have edits in ``edits``, each drawing with its edits.

    The list is empty if ``source`` is None or not a table.
    """
    if source is None or Path(source).suffix != ".parquet":
        return []
    table = pd.read_parquet(source, columns=["image_id", "image"]).set_index("image_id")
    return [
        Example(
            read_image(table["image"][edit.image_id]["bytes"], size, limits, name=edit.prompt),
            edit.prompt,
            edit.edited_prompts,
        )
        for edit in edits
        if edit.image_id in table.index
    ]


def _read_drawings(path: Path, size: tuple[int, int], limits: UploadLimits) -> list[Example]:
    """Read one drawing of at most ``MAX_EXAMPLES`` concepts. The concepts are evenly spaced in the table."""
    table = pd.read_parquet(path, columns=["image", "concept", "phrase"]).drop_duplicates("concept")
    selected = table.iloc[:: max(1, len(table) // MAX_EXAMPLES)].head(MAX_EXAMPLES)
    return [
        Example(read_image(image["bytes"], size, limits, name=concept), f"a drawing of {phrase} on a white background")
        for image, concept, phrase in selected.itertuples(index=False)
    ]
