"""Image files as arrays: any format that Pillow opens, checked before use and read on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image, ImageOps

from experiments.data.backgrounds import to_array
from experiments.runtime.progress import Progress

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, SIGNED = 0, 2  # their values


class UnreadableImage(ValueError):
    """An image cannot be read; the message names it in one line."""


def height_and_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """``(H, W)`` in pixels of ``data.source.size``: a side, ``[height, width]``, or None. ValueError otherwise."""
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(
            f"data.source.size={size!r}: give a side in pixels, [height, width], or null for the size of the model."
        )
    return sides


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Reads an image as ``uint8 [3, H, W]``: rotated by EXIF, on white, resized and center-cropped to ``size``.

    The first frame or page is read. Gray levels of more than 8 bits are scaled to 8.

    Raises:
        UnreadableImage: the file cannot be read, is a decompression bomb, or has an unknown white level.
    """
    with _open(path) as file:
        return _fit(file, size)


def read_bytes(data: bytes, name: str, size: tuple[int, int]) -> np.ndarray:
    """As :func:`read_image` for the bytes of a file; error messages call it ``name``."""
    with _image_errors(name), Image.open(BytesIO(data)) as file:
        return _fit(file, size)


def _fit(file: Image.Image, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return to_array(ImageOps.fit(_on_white(file), (width, height), Image.Resampling.LANCZOS))


def check_image(path: Path) -> None:
    """UnreadableImage, as in :func:`read_image`, unless the whole file can be decoded; pixels are discarded."""
    with _open(path) as file:
        file.draft(None, (1, 1))  # JPEG: still reads every byte, but decodes at 1/8 resolution
        _on_white(file)


def check_images(paths: Sequence[Path], description: str) -> None:
    """Decodes every file once, on all cores; ValueError names the first unreadable one."""
    if not paths:
        return
    progress = Progress(description, "image", min_interval=10)
    progress.start(len(paths), 0, visible=rank_zero_only.rank == 0)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(check_image, paths):
            progress.finish(1)
    progress.close()


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Opens an image lazily; errors in the block, also while decoding, are raised as UnreadableImage."""
    with _image_errors(path):
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")  # reading a pipe would block forever
        with Image.open(path) as file:
            yield file


@contextmanager
def _image_errors(name: object) -> Iterator[None]:
    """Raises any error in the block as UnreadableImage with the name of the image."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"{name} is too large ({error}): reduce or remove it.") from None
    except Exception as error:  # decoders raise many types for damaged files, such as struct.error
        raise UnreadableImage(f"{name} cannot be read as an image ({error}): replace or remove it.") from None


def _on_white(file: Image.Image) -> Image.Image:
    """RGB image rotated by EXIF; transparent pixels become white."""
    levels = _levels(file)
    inverted = _tag(file, PHOTOMETRIC) == WHITE_IS_ZERO
    image = ImageOps.exif_transpose(file)
    if levels is not None:
        image = _eight_bits(image, levels, inverted)
    image = image.convert("RGBA")
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    return flat.convert("RGB")


def _levels(file: Image.Image) -> int | None:
    """Number of levels of a mode with more than 8 bits, 1 for floats; None for modes that Pillow converts correctly.

    Pillow clips gray levels above 255. Its 32-bit integer mode is treated as 16-bit values.
    """
    if file.mode.startswith("I;16"):
        return 2 ** _tag(file, BITS_PER_SAMPLE, 16)
    if file.mode == "I":
        return 2**15 if (_tag(file, BITS_PER_SAMPLE), _tag(file, SAMPLE_FORMAT)) == (16, SIGNED) else 2**16
    return 1 if file.mode == "F" else None


def _tag(file: Image.Image, number: int, default: int | None = None) -> int | None:
    """Tag of a TIFF file (the first value if there is one per channel); ``default`` for other formats."""
    value = getattr(file, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) else value


def _eight_bits(image: Image.Image, levels: int, inverted: bool) -> Image.Image:
    """Converts integers below ``levels`` or floats in [0, 1] to mode ``L``, or ``LA`` if one value is transparent.

    Integers keep their highest eight bits, as in Pillow's conversion of 16-bit colors.
    """
    values = np.asarray(image)
    low = float(values.min())
    high = float(values.max())
    # 8-bit levels stored in 32 bits would silently become black.
    ambiguous = image.mode == "I" and levels == 2**16 and 0 < high < 256
    if not 0 <= low <= high <= max(levels - 1, 1) or ambiguous:
        raise ValueError(
            f"its levels range from {low:g} to {high:g} and its white level is unknown; save it as 8-bit or 16-bit"
        )
    gray = np.rint(255 * values) if levels == 1 else values.astype(np.int64) * 256 // levels
    gray = Image.fromarray((255 - gray if inverted else gray).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is None:
        return gray
    return Image.merge("LA", (gray, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


@dataclass(frozen=True)
class Images(Sequence):
    """Images that are read each time they are indexed.

    An index gives ``uint8 [3, H, W]``, a slice ``uint8 [N, 3, H, W]``; further indices apply to that array.

    Args:
        items: one per image, such as a path.
        read: maps an item and ``(H, W)`` to ``uint8 [3, H, W]``.
        size: ``(H, W)`` in pixels; None until :meth:`resized` sets it.
        advice: remedy in the error message for another size.
        identity: maps an item to a string that identifies it without reading its pixels; None reads them.
    """

    items: Sequence[Any]
    read: Callable[[Any, tuple[int, int]], np.ndarray]
    size: tuple[int, int] | None = None
    advice: str = "choose another size"
    identity: Callable[[Any], str] | None = None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(N, 3, H, W)``; ValueError if the size is not set."""
        return (len(self), 3, *self._require_size())

    def __getitem__(self, index: int | slice | tuple) -> np.ndarray:
        size = self._require_size()
        if isinstance(index, tuple):
            first, *rest = index
            return self[first][(slice(None), *rest) if isinstance(first, slice) else tuple(rest)]
        if isinstance(index, slice):
            images = [self.read(item, size) for item in self.items[index]]
            return np.stack(images) if images else np.empty((0, 3, *size), np.uint8)
        return self.read(self.items[index], size)

    def content_bytes(self, index: int) -> bytes:
        """Content of an image for cache keys: its identity and size if there is an identity, else its pixels."""
        if self.identity is None:
            return self[index].tobytes()
        return f"{self.identity(self.items[index])}\n{self._require_size()}\n".encode()

    def file_stamp(self, index: int) -> bytes:
        """Identifies an image on this machine; for a file by path, size and modification time, without reading it."""
        item = self.items[index]
        if not isinstance(item, Path):
            return self.content_bytes(index)
        status = item.stat()
        return f"{item.resolve()}\n{status.st_size} {status.st_mtime_ns}\n{self._require_size()}\n".encode()

    def _require_size(self) -> tuple[int, int]:
        if self.size is None:
            raise ValueError("these images have no size: call resized((height, width)), or set data.source.size.")
        return self.size

    @property
    def files(self) -> list[Path]:
        """Paths of the images that are files."""
        return [item for item in self.items if isinstance(item, Path)]

    def resized(self, size: tuple[int, int]) -> Images:
        """The same images at ``(H, W)`` pixels; ValueError if they have another fixed size."""
        if self.size is not None and tuple(self.size) != tuple(size):
            fixed, requested = (f"{height} x {width}" for height, width in (self.size, size))
            raise ValueError(
                f"images have {fixed} pixels (height x width), the checkpoint needs {requested}: {self.advice}."
            )
        return replace(self, size=tuple(size))

    def head(self, count: int | None) -> Images:
        """The first ``count`` images, not read yet; None keeps all."""
        return replace(self, items=self.items[:count])
