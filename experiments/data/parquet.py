"""Images in Parquet files as ``datasets`` stores them, on this machine or the hub: one row at a time, never all."""

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

MAX_OPEN_FILES = 16  # files whose footers are kept
MAX_CACHED_ROW_GROUPS = 2  # row groups that are kept: rows that are read in their order come from memory


class Rows(Sequence):
    """Rows of files, each ``(file, row)``; eight bytes a row."""

    def __init__(self, files: np.ndarray, rows: np.ndarray) -> None:
        self._files, self._rows = files, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice) -> tuple[int, int] | Rows:
        if isinstance(index, slice):
            return Rows(self._files[index], self._rows[index])
        return int(self._files[index]), int(self._rows[index])


def data_files(path: str, split: str) -> tuple[str, ...]:
    """The addresses of a split's Parquet files, in their order.

    Args:
        path: a folder with ``data/SPLIT-*.parquet`` or the like, or an id of the hub, whose present revision is meant.

    Raises:
        ValueError: there is no such folder or data set, no such split, or it is not in Parquet files.
    """
    try:
        found = datasets.load_dataset_builder(path).config.data_files or {}
    except (DatasetNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"data.path={path} cannot be opened ({said}): name a local copy, or an id of the hub that you may read "
            "(`hf auth login`)."
        ) from None
    files = tuple(map(str, found.get(split, ())))
    if not files or any(PurePosixPath(file).suffix != ".parquet" for file in files):
        held = f"the splits {', '.join(map(str, found))}" if files == () and found else "other files"
        raise ValueError(f"data.path={path} has no Parquet files of the split {split}, only {held}: name another copy.")
    return files


@dataclass(frozen=True)
class ImageTable:
    """Rows of images in Parquet files. Only what is asked for is read: a column of all rows, or a row's image.

    Args:
        files: addresses that fsspec opens.
        image: the column of images as ``datasets`` writes them, ``{bytes, path}``.
    """

    files: tuple[str, ...]
    image: str = "image"

    def __post_init__(self) -> None:
        for file in self.files[:1]:
            schema = _opened(file).schema_arrow
            kind = schema.field(self.image).type if self.image in schema.names else None
            if not (pa.types.is_struct(kind) if kind else False) or "bytes" not in {field.name for field in kind}:
                raise ValueError(
                    f"{file} has no column {self.image!r} of images as `datasets` writes them, but "
                    f"{', '.join(schema.names)}: name the column."
                )

    def column(self, name: str) -> Iterator[tuple[int, pa.ChunkedArray]]:
        """A column file by file, with the file's number. ValueError where a file lacks it."""
        for number, file in enumerate(self.files):
            try:
                yield number, _opened(file).read(columns=[name], use_threads=False).column(name)
            except (KeyError, pa.ArrowException, OSError) as error:
                raise ValueError(f"{file} has no readable column {name!r} ({error}): name another copy.") from None

    def names(self) -> Iterator[tuple[int, list[str]]]:
        """What each row's image is called, file by file: its own name, or file and row where it has none."""
        for number, file in enumerate(self.files):
            paths: list[str | None] = [None] * _opened(file).metadata.num_rows
            if "path" in {field.name for field in _opened(file).schema_arrow.field(self.image).type}:
                table = _opened(file).read(columns=[f"{self.image}.path"], use_threads=False)
                paths = table.column(self.image).combine_chunks().field("path").to_pylist()
            yield number, [path or f"{PurePosixPath(file).name}:{row}" for row, path in enumerate(paths)]

    def identity(self, item: tuple[int, int]) -> str:
        """What tells a row's image from others without reading it: the file's name and length, and the row."""
        file, row = self.files[item[0]], item[1]
        return f"{PurePosixPath(file).name}\n{_length(file)}\n{row}"

    def read(self, item: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """``uint8 [3, H, W]`` of a row. UnreadableImage names it where it cannot be read."""
        file, row = self.files[item[0]], item[1]
        try:
            ends = _row_group_offsets(file)
            group = int(np.searchsorted(ends, row, side="right"))
            within = row - (int(ends[group - 1]) if group else 0)
            data = _group(file, group, self.image)[within]["bytes"].as_py()
        except (pa.ArrowException, OSError) as error:
            raise UnreadableImage(f"row {row} of {file} cannot be read ({error}): replace the file.") from None
        if data is None:
            raise UnreadableImage(f"row {row} of {file} holds no image: replace the file.")
        return read_bytes(data, f"row {row} of {file}", size)


@lru_cache(MAX_OPEN_FILES)
def _opened(file: str) -> pq.ParquetFile:
    try:
        source = fsspec.open(file, "rb").open() if "://" in file else file
        return pq.ParquetFile(source, pre_buffer=False)  # such buffers would stay with the reader
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as a table ({error}): replace it.") from None


@lru_cache
def _length(file: str) -> int:
    system, path = fsspec.core.url_to_fs(file)
    return int(system.size(path))


@lru_cache(MAX_OPEN_FILES)
def _row_group_offsets(file: str) -> np.ndarray:
    """The row behind the last of each row group."""
    metadata = _opened(file).metadata
    return np.cumsum([metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)])


@lru_cache(MAX_CACHED_ROW_GROUPS)
def _group(file: str, group: int, image: str) -> pa.ChunkedArray:
    # In this thread alone: Arrow's own threads and files that Python reads do not go together safely.
    return _opened(file).read_row_group(group, columns=[image], use_threads=False).column(image)


def shuffle_key(seed: int, name: Any) -> int:
    """A number of 64 bits by which images are put in an order that is random and the same everywhere.

    It depends on ``seed`` and on the image's file name alone, whatever folder or table holds it.
    """
    stem = Path(str(name)).stem
    return int.from_bytes(hashlib.blake2b(stem.encode(), key=str(seed).encode(), digest_size=8).digest(), "big")
