"""Reads images from Parquet files in the format of the package ``datasets``, local or on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
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

MAX_OPEN_FILES = 16  # maximum number of Parquet files that are open at the same time
MAX_CACHED_ROW_GROUPS = 2  # two are enough to read each row group only once if rows are read in order


class Rows(Sequence):
    """A sequence of pairs ``(file index, row index)`` that uses eight bytes of memory per pair."""

    def __init__(self, files: np.ndarray, rows: np.ndarray) -> None:
        self._files, self._rows = files, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice) -> tuple[int, int] | Rows:
        if isinstance(index, slice):
            return Rows(self._files[index], self._rows[index])
        return int(self._files[index]), int(self._rows[index])


def data_files(path: str, split: str) -> tuple[tuple[str, ...], datasets.Features | None]:
    """Return the paths or URLs of the Parquet files of a split, in order, and the features that the dataset declares.

    Args:
        path: folder with files such as ``data/SPLIT-*.parquet``, or id of a data set on the Hugging Face Hub. The
            newest revision of the data set is used.
        split: name of the split, such as ``train``.

    Raises:
        ValueError: the folder, data set or split does not exist, or its files are not Parquet files.
    """
    try:
        builder = datasets.load_dataset_builder(path)
    except (DatasetNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"data.path={path} cannot be opened ({reason}): set data.path to a local copy, or to a Hub id that you can "
            "access (`hf auth login`)."
        ) from None
    splits = builder.config.data_files or {}
    files = tuple(map(str, splits.get(split, ())))
    if not files or any(PurePosixPath(file).suffix != ".parquet" for file in files):
        content = f"the splits {', '.join(map(str, splits))}" if files == () and splits else "other files"
        raise ValueError(
            f"data.path={path} has no Parquet files of the split {split}, only {content}: set data.path to a complete "
            "copy of the data set."
        )
    return files, builder.info.features


@dataclass(frozen=True)
class ImageTable:
    """A table of images in Parquet files, from which one column of all rows or the image of one row can be read.

    Args:
        files: paths or URLs of the Parquet files, which are opened with the package fsspec.
        image: name of the image column. The values of the column have the fields ``bytes`` and ``path``, as in the
            package ``datasets``.

    Raises:
        ValueError: a file has no image column with this name.
    """

    files: tuple[str, ...]
    image: str = "image"

    def __post_init__(self) -> None:
        for file in self.files:
            schema = _open(file).schema_arrow
            kind = schema.field(self.image).type if self.image in schema.names else None
            if not (pa.types.is_struct(kind) if kind else False) or "bytes" not in {field.name for field in kind}:
                raise ValueError(
                    f"{file} has no column {self.image!r} of images as `datasets` writes them, only "
                    f"{', '.join(schema.names)}: set data.source.image to the name of the column."
                )

    def column(self, name: str, setting: str) -> Iterator[tuple[int, pa.ChunkedArray]]:
        """Yield the index and the column ``name`` of each file.

        Args:
            name: name of the column.
            setting: config key of the column's name, for the error message.

        Raises:
            ValueError: a file has no column ``name``, or the column cannot be read.
        """
        for number, file in enumerate(self.files):
            columns = _open(file).schema_arrow.names
            if name not in columns:
                raise ValueError(
                    f"{file} has no column {name!r} (its columns: {', '.join(columns)}): set {setting} to the name of "
                    "a column."
                )
            try:
                yield number, _open(file).read(columns=[name], use_threads=False).column(name)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{file} has no readable column {name!r} ({error}): copy the file again.") from None

    def class_names(self, column: str) -> Iterator[list[str] | None]:
        """Yield, for each file, the list of class names that the integers in ``column`` index.

        The class names are declared with ``datasets.ClassLabel`` in the metadata of the file's schema. For a file that
        does not declare class names, None is yielded.
        """
        for file in self.files:
            metadata = (_open(file).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
            features = (json.loads(metadata).get("info") or {}).get("features") or {}
            label = datasets.Features.from_dict({column: features[column]})[column] if column in features else None
            yield label.names if isinstance(label, datasets.ClassLabel) else None

    def names(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the index of each file and the names of the images in the file.

        The name of an image is its field ``path``. If the field is empty, the name is ``FILE:ROW``.
        """
        for number, file in enumerate(self.files):
            paths: list[str | None] = [None] * _open(file).metadata.num_rows
            if "path" in {field.name for field in _open(file).schema_arrow.field(self.image).type}:
                table = _open(file).read(columns=[f"{self.image}.path"], use_threads=False)
                paths = table.column(self.image).combine_chunks().field("path").to_pylist()
            yield number, [path or f"{PurePosixPath(file).name}:{row}" for row, path in enumerate(paths)]

    def identity(self, item: tuple[int, int]) -> str:
        """Return a string that identifies an image without reading it: name and size of the Parquet file, and row."""
        file, row = self.files[item[0]], item[1]
        return f"{PurePosixPath(file).name}\n{_file_size(file)}\n{row}"

    def read(self, item: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Return the image of one row as an array ``uint8 [3, H, W]``.

        Args:
            item: pair of file index and row index of the image.
            size: size ``(H, W)`` in pixels to which the image is resized.

        Raises:
            UnreadableImage: the row cannot be read, has no image, or its image cannot be decoded.
        """
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
        # With pre_buffer=True, the memory of the data that was read would not be released.
        return pq.ParquetFile(source, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as a table ({error}): replace it.") from None


@lru_cache
def _file_size(file: str) -> int:
    system, path = fsspec.core.url_to_fs(file)
    return int(system.size(path))


@lru_cache(MAX_OPEN_FILES)
def _row_group_offsets(file: str) -> np.ndarray:
    """Return the index of the first row of each row group."""
    metadata = _open(file).metadata
    rows = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
    return np.cumsum([0, *rows[:-1]])


@lru_cache(MAX_CACHED_ROW_GROUPS)
def _row_group(file: str, group: int, image: str) -> pa.ChunkedArray:
    # Arrow must not read in its own threads, because Python file objects are not thread-safe.
    return _open(file).read_row_group(group, columns=[image], use_threads=False).column(image)


def shuffle_key(seed: int, name: Any) -> int:
    """Return a 64-bit hash of ``name``. Sorting images by the hash gives a pseudo-random, reproducible order.

    The hash depends only on ``seed`` and on ``name`` without folder and suffix.
    """
    stem = Path(str(name)).stem
    return int.from_bytes(hashlib.blake2b(stem.encode(), key=str(seed).encode(), digest_size=8).digest(), "big")
