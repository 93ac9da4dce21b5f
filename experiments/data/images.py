"""Image files as pixels: whatever Pillow opens, checked before use, and read only when it is asked for."""

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
    """An image cannot be read; its text is one sentence for the user."""


def height_and_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """``(H, W)`` in pixels of ``data.source.size``: a side, both, or None. ValueError if it is anything else."""
    if size is None:
        return None
    both = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(both) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in both):
        raise ValueError(f"data.source.size={size!r}: give a side in pixels, [height, width], or null for the model's.")
    return both


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """``uint8 [3, H, W]`` of a file, ``size`` being ``(H, W)``: upright, on white, resized, the center cut out.

    Of an animation or a file of several pages it is the first. Gray levels of more than 8 bits are scaled.

    Raises:
        UnreadableImage: the file cannot be read, is too large to be trusted, or does not say what is white.
    """
    with _opened(path) as file:
        return _fitted(file, size)


def read_bytes(data: bytes, name: str, size: tuple[int, int]) -> np.ndarray:
    """As :func:`read_image` of a file's bytes, called ``name`` where they cannot be read."""
    with _said(name), Image.open(BytesIO(data)) as file:
        return _fitted(file, size)


def _fitted(file: Image.Image, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return to_array(ImageOps.fit(_on_white(file), (width, height), Image.Resampling.LANCZOS))


def check_image(path: Path) -> None:
    """UnreadableImage, as of :func:`read_image`, unless the whole file can be decoded; no pixels are kept."""
    with _opened(path) as file:
        file.draft(None, (1, 1))  # JPEG: every byte is still read, an eighth of the side is computed
        _on_white(file)


def check_images(paths: Sequence[Path], description: str) -> None:
    """Decodes every file once, on all cores; ValueError names the first in order that cannot be read."""
    if not paths:
        return
    progress = Progress(description, "image", every=10)
    progress.start(len(paths), 0, visible=rank_zero_only.rank == 0)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(check_image, paths):
            progress.finish(1)
    progress.close()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file's image, of which only the header is read yet. UnreadableImage names it, also when pixels are read."""
    with _said(path):
        if path.exists() and not path.is_file():
            raise OSError("it is no file")  # of a pipe, say, one would wait for ever
        with Image.open(path) as file:
            yield file


@contextmanager
def _said(name: object) -> Iterator[None]:
    """Whatever is wrong with an image, as a sentence that names it."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"{name} is too large an image ({error}): make it smaller or remove it.") from None
    except Exception as error:  # decoders raise all kinds on damaged files, struct.error and IndexError among them
        raise UnreadableImage(f"{name} cannot be read as an image ({error}): replace or remove it.") from None


def _on_white(file: Image.Image) -> Image.Image:
    """RGB, upright; transparent pixels show white."""
    levels, inverted = _levels(file), _tag(file, PHOTOMETRIC) == WHITE_IS_ZERO
    image = ImageOps.exif_transpose(file)
    if levels is not None:
        image = _eight_bits(image, levels, inverted)
    image = image.convert("RGBA")
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    return flat.convert("RGB")


def _levels(file: Image.Image) -> int | None:
    """How many levels a mode of more than 8 bits has, 1 for floats; None in a mode that Pillow converts by itself.

    Pillow cuts gray levels above 255 off. Of 32-bit integers it has no convention but 16-bit values held in them.
    """
    if file.mode.startswith("I;16"):
        return 2 ** _tag(file, BITS_PER_SAMPLE, 16)
    if file.mode == "I":
        return 2**15 if (_tag(file, BITS_PER_SAMPLE), _tag(file, SAMPLE_FORMAT)) == (16, SIGNED) else 2**16
    return 1 if file.mode == "F" else None


def _tag(file: Image.Image, number: int, default: int | None = None) -> int | None:
    """A TIFF file's tag, the first value where it has one a channel; of other formats ``default``."""
    value = getattr(file, "tag_v2", {}).get(number, default)
    return value[0] if isinstance(value, tuple) else value


def _eight_bits(image: Image.Image, levels: int, inverted: bool) -> Image.Image:
    """``L`` of integers below ``levels`` or floats in [0, 1]; ``LA`` where one value stands for transparency.

    Integers keep their highest eight bits, which is what Pillow makes of 16-bit colors.
    """
    values = np.asarray(image)
    low, high, most = float(values.min()), float(values.max()), max(levels - 1, 1)
    # 8-bit levels in 32 bits would come out black without a sign of it.
    doubtful = image.mode == "I" and levels == 2**16 and 0 < high < 256
    if not 0 <= low <= high <= most or doubtful:
        raise ValueError(f"its levels run from {low:g} to {high:g}, and nothing says what is white; save 8 or 16 bits")
    gray = np.rint(255 * values) if levels == 1 else values.astype(np.int64) * 256 // levels
    gray = Image.fromarray((255 - gray if inverted else gray).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is None:
        return gray
    return Image.merge("LA", (gray, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


@dataclass(frozen=True)
class Images(Sequence):
    """Images that are read when they are asked for, anew each time.

    An index gives ``uint8 [3, H, W]``, a slice ``uint8 [N, 3, H, W]``; further ones are taken as of an array.

    Args:
        items: what stands for each, such as a path.
        read: makes ``uint8 [3, H, W]`` of an item and ``(H, W)``.
        size: ``(H, W)`` in pixels; None until :meth:`resized` gives one.
        advice: what to do where another size is asked for, for the message.
        identity: what tells an item from others, where that can be said without reading its pixels.
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
        """``(N, 3, H, W)``. ValueError while the size is not known."""
        return (len(self), 3, *self._known_size())

    def __getitem__(self, index: int | slice | tuple) -> np.ndarray:
        size = self._known_size()
        if isinstance(index, tuple):
            first, *rest = index
            return self[first][(slice(None), *rest) if isinstance(first, slice) else tuple(rest)]
        if isinstance(index, slice):
            chosen = [self.read(item, size) for item in self.items[index]]
            return np.stack(chosen) if chosen else np.empty((0, 3, *size), np.uint8)
        return self.read(self.items[index], size)

    def content_bytes(self, index: int) -> bytes:
        """What a key holds of an image: its pixels, or, where images have an identity, that and the size."""
        if self.identity is None:
            return self[index].tobytes()
        return f"{self.identity(self.items[index])}\n{self._known_size()}\n".encode()

    def file_stamp(self, index: int) -> bytes:
        """What tells an image from others on this machine: of a file its place, size and time of change, unread."""
        item = self.items[index]
        if not isinstance(item, Path):
            return self.content_bytes(index)
        known = item.stat()
        return f"{item.resolve()}\n{known.st_size} {known.st_mtime_ns}\n{self._known_size()}\n".encode()

    def _known_size(self) -> tuple[int, int]:
        if self.size is None:
            raise ValueError("these images have no size yet: take them at((height, width)), or set data.source.size.")
        return self.size

    @property
    def files(self) -> list[Path]:
        """The files that are read; none where the images come from elsewhere."""
        return [item for item in self.items if isinstance(item, Path)]

    def resized(self, size: tuple[int, int]) -> Images:
        """The same images at ``(H, W)`` pixels. ValueError if they have another size of their own."""
        if self.size is not None and tuple(self.size) != tuple(size):
            own, asked = (f"{height} x {width}" for height, width in (self.size, size))
            raise ValueError(
                f"the data's images have {own} pixels (height x width), the checkpoint's {asked}: {self.advice}."
            )
        return replace(self, size=tuple(size))

    def head(self, count: int | None) -> Images:
        """The first ``count`` alone, still unread; None leaves them all."""
        return replace(self, items=self.items[:count])
