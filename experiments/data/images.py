"""Reads image files (all formats that Pillow opens) as arrays, and checks image files before a run."""

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
from PIL import Image

from experiments.data.backgrounds import to_array
from experiments.runtime.progress import Progress
from rnri.images import fit, on_white


class UnreadableImage(ValueError):
    """Raised if an image cannot be read. The error message is one line and contains the name of the image."""


def height_and_width(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return the setting ``data.source.size`` as ``(H, W)`` in pixels. Return None if the setting is None.

    Raises:
        ValueError: ``size`` is not a positive integer, a list ``[height, width]`` of positive integers, or None.
    """
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(
            f"data.source.size={size!r}: choose a side in pixels, [height, width], or null (the size of the model)."
        )
    return sides


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Reads an image file as an array ``uint8 [3, H, W]``.

    The image is converted to RGB by :func:`rnri.images.on_white`, resized, and center-cropped to ``size = (H, W)``. If
    the file has several frames or pages, the first frame or page is read.

    Raises:
        UnreadableImage: the file cannot be read, has too many pixels (decompression bomb), or has gray levels of
            unknown range.
    """
    with _open(path) as file:
        return to_array(fit(file, size))


def read_rgb(path: Path) -> Image.Image:
    """Reads an image file like :func:`read_image`, but as an RGB image of Pillow in the original size."""
    with _open(path) as file:
        return on_white(file)


def read_bytes(data: bytes, name: str, size: tuple[int, int]) -> np.ndarray:
    """Reads an image like :func:`read_image`, but from the bytes of a file. Error messages contain ``name``."""
    with _image_errors(name), Image.open(BytesIO(data)) as file:
        return to_array(fit(file, size))


def check_image(path: Path) -> None:
    """Decodes an image file and discards the pixels, to find a damaged file before a run.

    Raises:
        UnreadableImage: :func:`read_image` could not read the file.
    """
    with _open(path) as file:
        file.draft(None, (1, 1))  # to save time, a JPEG file is read completely but decoded at 1/8 resolution
        on_white(file)


def check_images(paths: Sequence[Path], description: str) -> None:
    """Decodes every image file once on all CPU cores, and shows a progress bar with the label ``description``.

    Raises:
        UnreadableImage: a file cannot be read; the message names the first such file.
    """
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
    """Context manager that opens an image file. Any error in the ``with`` block is raised as UnreadableImage."""
    with _image_errors(path):
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")  # reading a pipe would block forever
        with Image.open(path) as file:
            yield file


@contextmanager
def _image_errors(name: object) -> Iterator[None]:
    """Context manager that raises any error in the ``with`` block as UnreadableImage with the name of the image."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"{name} is too large ({error}): reduce or remove it.") from None
    except Exception as error:  # for damaged files, decoders raise many types of errors, such as struct.error
        raise UnreadableImage(f"{name} cannot be read as an image ({error}): replace or remove it.") from None


@dataclass(frozen=True)
class Images(Sequence):
    """A sequence of images. An image file is read each time the image is indexed.

    ``images[k]`` is an array ``uint8 [3, H, W]`` and ``images[a:b]`` an array ``uint8 [N, 3, H, W]``. ``images[k, 0]``
    is ``images[k][0]``.

    Args:
        items: one item per image, such as a path. The function ``read`` is called with an item.
        read: function that returns the image of an item, resized to ``(H, W)``, as an array ``uint8 [3, H, W]``.
        size: image size ``(H, W)`` in pixels. If ``size`` is None, :meth:`resized` must be called before an image is
            read.
        advice: end of the error message that :meth:`resized` raises if the images have another fixed size; it tells the
            user what to change.
        identity: function that returns a string that identifies the image of an item, without reading the image. If
            ``identity`` is None, cache keys are computed from the pixels.
        group: function that returns the group of an item, such as the designer of a drawing. Images of one group can be
            versions of one another. If ``group`` is None, no image is a version of another image.
    """

    items: Sequence[Any]
    read: Callable[[Any, tuple[int, int]], np.ndarray]
    size: tuple[int, int] | None = None
    advice: str = "choose another size"
    identity: Callable[[Any], str] | None = None
    group: Callable[[Any], str] | None = None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return ``(N, 3, H, W)``, where N is the number of images. Raise a ValueError if the size is None."""
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
        """Return bytes that identify image ``index`` in cache keys.

        The bytes contain the string that ``identity`` returns and the size of the image. If ``identity`` is None, the
        bytes contain the pixels.
        """
        if self.identity is None:
            return self[index].tobytes()
        return f"{self.identity(self.items[index])}\n{self._require_size()}\n".encode()

    def file_stamp(self, index: int) -> bytes:
        """Return bytes that identify image ``index`` on this machine, without reading an image file.

        For an image file, the bytes contain path, file size, modification time and image size.
        """
        item = self.items[index]
        if not isinstance(item, Path):
            return self.content_bytes(index)
        status = item.stat()
        return f"{item.resolve()}\n{status.st_size} {status.st_mtime_ns}\n{self._require_size()}\n".encode()

    def _require_size(self) -> tuple[int, int]:
        if self.size is None:
            raise ValueError(
                "no target size is set for these images: call resized((height, width)), or set data.source.size."
            )
        return self.size

    @property
    def groups(self) -> list[str] | None:
        """Return the group of each image, such as the designer of a drawing, or None if the images have no groups."""
        return None if self.group is None else [self.group(item) for item in self.items]

    @property
    def files(self) -> list[Path]:
        """Return the items that are paths, that is, the paths of all images that are read from image files."""
        return [item for item in self.items if isinstance(item, Path)]

    def resized(self, size: tuple[int, int]) -> Images:
        """Return the same images with the size ``size = (H, W)`` in pixels.

        Raises:
            ValueError: the images have a fixed size that differs from ``size``.
        """
        if self.size is not None and tuple(self.size) != tuple(size):
            fixed, requested = (f"{height} x {width}" for height, width in (self.size, size))
            raise ValueError(
                f"images have {fixed} pixels (height x width), but the checkpoint needs {requested}: {self.advice}."
            )
        return replace(self, size=tuple(size))

    def head(self, count: int | None) -> Images:
        """Return the first ``count`` images without reading them. If ``count`` is None, return all images."""
        return replace(self, items=self.items[:count])
