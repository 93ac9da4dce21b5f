"""Images in Parquet files as ``datasets`` stores them, local or on the Hub, read one row at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError

from experiments.data.images import UnreadableImage, read_bytes

MAX_OPEN_FILES = 16
MAX_CACHED_ROW_GROUPS = 2  # rows that are read in order come from memory


class Rows(Sequence):
    """Rows of several files as pairs ``(file, row)``; eight bytes per row."""

    def __init__(self, files: np.ndarray, rows: np.ndarray) -> None:
        self._files, self._rows = files, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice) -> tuple[int, int] | Rows:
        if isinstance(index, slice):
            return Rows(self._files[index], self._rows[index])
        return int(self._files[index]), int(self._rows[index])


def data_files(path: str, split: str) -> tuple[str, ...]:
    """Addresses of the Parquet files of a split, in order.

    Args:
        path: a folder with ``data/SPLIT-*.parquet`` or similar, or a Hub id at its current revision.
        split: such as ``train``.

    Raises:
        ValueError: no such folder, data set or split, or it does not consist of Parquet files.
    """
    try:
        splits = datasets.load_dataset_builder(path).config.data_files or {}
    except (DatasetNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"data.path={path} cannot be opened ({reason}): give a local copy, or a Hub id that you can access "
            "(`hf auth login`)."
        ) from None
    files = tuple(map(str, splits.get(split, ())))
    if not files or any(PurePosixPath(file).suffix != ".parquet" for file in files):
        content = f"the splits {', '.join(map(str, splits))}" if files == () and splits else "other files"
        raise ValueError(
            f"data.path={path} has no Parquet files of the split {split}, only {content}: give another copy."
        )
    return files


@dataclass(frozen=True)
class ImageTable:
    """A table of images in Parquet files. It reads one column of all rows, or the image of one row.

    Args:
        files: addresses for fsspec.
        image: column of images as ``datasets`` writes them, ``{bytes, path}``.
    """

    files: tuple[str, ...]
    image: str = "image"

    def __post_init__(self) -> None:
        for file in self.files[:1]:
            schema = _open(file).schema_arrow
            kind = schema.field(self.image).type if self.image in schema.names else None
            if not (pa.types.is_struct(kind) if kind else False) or "bytes" not in {field.name for field in kind}:
                raise ValueError(
                    f"{file} has no column {self.image!r} of images as `datasets` writes them, only "
                    f"{', '.join(schema.names)}: set the name of the column."
                )

    def column(self, name: str) -> Iterator[tuple[int, pa.ChunkedArray]]:
        """Yields a column with the number of its file, file by file; ValueError if a file has no such column."""
        for number, file in enumerate(self.files):
            try:
                yield number, _open(file).read(columns=[name], use_threads=False).column(name)
            except (KeyError, pa.ArrowException, OSError) as error:
                raise ValueError(f"{file} has no readable column {name!r} ({error}): give another copy.") from None

    def names(self) -> Iterator[tuple[int, list[str]]]:
        """Yields the names of the images, file by file; an unnamed image gets the name ``FILE:ROW``."""
        for number, file in enumerate(self.files):
            paths: list[str | None] = [None] * _open(file).metadata.num_rows
            if "path" in {field.name for field in _open(file).schema_arrow.field(self.image).type}:
                table = _open(file).read(columns=[f"{self.image}.path"], use_threads=False)
                paths = table.column(self.image).combine_chunks().field("path").to_pylist()
            yield number, [path or f"{PurePosixPath(file).name}:{row}" for row, path in enumerate(paths)]

    def identity(self, item: tuple[int, int]) -> str:
        """Identifies an image without reading it, by name and size of the file and the row."""
        file, row = self.files[item[0]], item[1]
        return f"{PurePosixPath(file).name}\n{_file_size(file)}\n{row}"

    def read(self, item: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """The image of a row as ``uint8 [3, H, W]``; UnreadableImage if it cannot be read."""
        file, row = self.files[item[0]], item[1]
        try:
            offsets = _row_group_offsets(file)
            group = int(np.searchsorted(offsets, row, side="right")) - 1
            data = _row_group(file, group, self.image)[row - int(offsets[group])]["bytes"].as_py()
        except (pa.ArrowException, OSError) as error:
            raise UnreadableImage(f"row {row} of {file} cannot be read ({error}): replace the file.") from None
        if data is None:
            raise UnreadableImage(f"row {row} of {file} has no image: replace the file.")
        return read_bytes(data, f"row {row} of {file}", size)


@lru_cache(MAX_OPEN_FILES)
def _open(file: str) -> pq.ParquetFile:
    try:
        source = fsspec.open(file, "rb").open() if "://" in file else file
        return pq.ParquetFile(source, pre_buffer=False)  # the reader would not release the buffers
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as a table ({error}): replace it.") from None


@lru_cache
def _file_size(file: str) -> int:
    system, path = fsspec.core.url_to_fs(file)
    return int(system.size(path))


@lru_cache(MAX_OPEN_FILES)
def _row_group_offsets(file: str) -> np.ndarray:
    """First row of each row group."""
    metadata = _open(file).metadata
    rows = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
    return np.cumsum([0, *rows[:-1]])


@lru_cache(MAX_CACHED_ROW_GROUPS)
def _row_group(file: str, group: int, image: str) -> pa.ChunkedArray:
    # Without threads: Arrow threads that read Python file objects are not safe.
    return _open(file).read_row_group(group, columns=[image], use_threads=False).column(image)


def shuffle_key(seed: int, name: Any) -> int:
    """64-bit sort key that gives images a random but reproducible order.

    It depends only on ``seed`` and the file name of the image, not on its folder or table.
    """
    stem = Path(str(name)).stem
    return int.from_bytes(hashlib.blake2b(stem.encode(), key=str(seed).encode(), digest_size=8).digest(), "big")
