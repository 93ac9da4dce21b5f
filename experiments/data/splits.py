"""Finds the images of a split of ImageNet by class, in a pseudo-random order that an integer seed determines."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from experiments.counting.imagenet_counts import imagenet_class, imagenet_classes
from experiments.data.images import UnreadableImage, read_image
from experiments.data.parquet import ImageTable, Rows, shuffle_key

COPY = re.compile(r"_n\d{8}$")  # file names on the Hub end with the WordNet id: n01440764_10026_n01440764.JPEG


class Split(Protocol):
    """The images of a split (training or validation). An *item* tells the method ``read`` which image to read."""

    def classes(self) -> list[int]:
        """Return the indices of the classes that have images in this split."""
        ...

    def of_class(self, index: int) -> Sequence[Any]:
        """Return the items of class ``index``, sorted by :func:`~experiments.data.parquet.shuffle_key`."""
        ...

    def sample(self, count: int | None) -> Sequence[Any]:
        """Return a pseudo-random sample of ``count`` items of all classes, sorted by location for fast reading.

        The sample consists of the items with the smallest :func:`~experiments.data.parquet.shuffle_key`. None returns
        all items.
        """
        ...

    def identity(self, item: Any) -> str:
        """Return a string that identifies the image of ``item``, without reading the image."""
        ...

    def read(self, item: Any, size: tuple[int, int]) -> np.ndarray:
        """Return the image of ``item`` as an array ``uint8 [3, H, W]`` with ``size`` = ``(H, W)``."""
        ...


class _ByClass:
    """Finds the images of a class in an array of all images.

    Args:
        labels: class index of each image, ``int [N]``.
        keys: shuffle key of each image, ``uint64 [N]``.

    Attributes:
        order: image indices sorted by class, then by shuffle key; ``order[rows(c)]`` are the images of class c.
    """

    def __init__(self, labels: np.ndarray, keys: np.ndarray) -> None:
        self.order = np.lexsort((keys, labels))
        self.labels, starts = np.unique(labels[self.order], return_index=True)
        self.bounds = np.append(starts, len(labels))

    def classes(self) -> list[int]:
        return self.labels.tolist()

    def rows(self, index: int) -> slice:
        k = int(np.searchsorted(self.labels, index))
        if k == len(self.labels) or self.labels[k] != index:
            raise KeyError(index)
        return slice(int(self.bounds[k]), int(self.bounds[k + 1]))


class TableSplit:
    """A split that is stored in Parquet files; file, row and class of each image are kept in memory."""

    def __init__(self, files: Sequence[str], seed: int) -> None:
        self.table = ImageTable(tuple(files))
        columns = self.table.column("label")
        labels = [_class_indices(file, column) for (_, column), file in zip(columns, files, strict=True)]
        self._keys = np.concatenate([_shuffle_keys(seed, names) for _, names in self.table.names()])
        self._files = np.repeat(np.arange(len(files), dtype=np.int32), [len(part) for part in labels])
        self._rows = np.concatenate([np.arange(len(part), dtype=np.int32) for part in labels])
        self._by_class = _ByClass(np.concatenate(labels), self._keys)

    def classes(self) -> list[int]:
        return self._by_class.classes()

    def of_class(self, index: int) -> Rows:
        rows = self._by_class.order[self._by_class.rows(index)]
        return Rows(self._files[rows], self._rows[rows])

    def sample(self, count: int | None) -> Rows:
        rows = np.sort(np.argsort(self._keys, kind="stable")[:count])
        return Rows(self._files[rows], self._rows[rows])

    def identity(self, item: tuple[int, int]) -> str:
        return self.table.identity(item)

    def read(self, item: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        return self.table.read(item, size)


def _shuffle_keys(seed: int, names: Sequence[str]) -> np.ndarray:
    """Return the shuffle key of each image name, ``uint64 [N]``."""
    return np.fromiter((shuffle_key(seed, COPY.sub("", Path(name).stem)) for name in names), np.uint64)


def _class_indices(file: str, column: pa.ChunkedArray) -> np.ndarray:
    """Return the class indices ``int16 [N]`` of a Parquet column of class indices, WordNet ids or class names.

    Raises:
        ValueError: a value of the column is not a class of ImageNet-1k; the message names ``file``.
    """
    if pa.types.is_integer(column.type):
        labels = column.to_numpy()
        wrong = (labels < 0) | (labels >= len(imagenet_classes()))
        if wrong.any():
            raise ValueError(
                f"{file} has the label {labels[wrong][0]} in row {int(wrong.argmax())}: ImageNet-1k has the classes "
                "0 to 999, and splits without labels cannot be used."
            )
        return labels.astype(np.int16)
    encoded = column.combine_chunks().dictionary_encode()
    try:
        indices = np.array([imagenet_class(str(name)).index for name in encoded.dictionary.to_pylist()], np.int16)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return indices[encoded.indices.to_numpy(zero_copy_only=False)]


class FolderSplit:
    """A split that is stored as one folder of images per class; the file names are kept in memory."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        with os.scandir(root) as entries:
            visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
        folders = [entry.name for entry in visible if entry.is_dir()]
        self._folders: Mapping[int, str] = self._classes(folders)
        loose = [entry.name for entry in visible if not entry.is_dir()]
        self._loose = np.array([os.fsencode(name) for name in loose], dtype=np.bytes_) if not folders else None
        if not folders and not loose:
            raise ValueError(f"{root} is empty: it needs one folder of images per class, named by its WordNet id.")
        self._names: dict[int, np.ndarray] = {}

    def _classes(self, folders: Sequence[str]) -> dict[int, str]:
        folder_of: dict[int, str] = {}
        for name in folders:
            try:
                index = imagenet_class(name).index
            except ValueError as error:
                raise ValueError(f"the folder {self.root / name}: {error}") from None
            if index in folder_of:
                first = folder_of[index]
                raise ValueError(f"the folders {first} and {name} of {self.root} are the same class: merge them.")
            folder_of[index] = name
        return dict(sorted(folder_of.items()))

    def classes(self) -> list[int]:
        return list(self._folders)

    def of_class(self, index: int) -> Sequence[tuple[str, str]]:
        return Files(self._folders[index], self._file_names(index))

    def sample(self, count: int | None) -> Sequence[tuple[str, str]]:
        parts = [Files(name, self._file_names(index)) for index, name in self._folders.items()]
        if self._loose is not None:
            parts = [Files("", self._loose)]
        index = [(part, k) for part, files in enumerate(parts) for k in range(len(files))]
        if count is not None and count < len(index):
            keys = [shuffle_key(self.seed, parts[part][k][1]) for part, k in index]
            index = [index[k] for k in sorted(np.argsort(keys, kind="stable")[:count])]
        return Subset(parts, np.array(index, dtype=np.int32).reshape(-1, 2))

    def _file_names(self, index: int) -> np.ndarray:
        """Return the file names of class ``index``, sorted by shuffle key."""
        if index not in self._names:
            with os.scandir(self.root / self._folders[index]) as entries:
                names = [e.name for e in entries if not e.name.startswith(".") and e.is_file()]
            if not names:
                raise ValueError(
                    f"{self.root / self._folders[index]} contains no images: add some or remove the folder."
                )
            names.sort(key=lambda name: (shuffle_key(self.seed, name), name))
            self._names[index] = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        return self._names[index]

    def identity(self, item: tuple[str, str]) -> str:
        path = self._path(item)
        try:
            return f"{item[0]}/{item[1]}\n{path.stat().st_size}"
        except OSError as error:
            raise UnreadableImage(f"{path} cannot be read ({error}): replace or remove it.") from None

    def read(self, item: tuple[str, str], size: tuple[int, int]) -> np.ndarray:
        return read_image(self._path(item), size)

    def _path(self, item: tuple[str, str]) -> Path:
        return self.root.joinpath(*item)


class Files(Sequence):
    """The files of one folder as a sequence of pairs ``(folder, file name)``.

    The names are one NumPy array of bytes, so that each takes only as much memory as the longest name.
    """

    def __init__(self, folder: str, names: np.ndarray) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int | slice) -> tuple[str, str] | Files:
        if isinstance(index, slice):
            return Files(self.folder, self.names[index])
        return self.folder, os.fsdecode(self.names[index])


class Subset(Sequence):
    """A subset of the files of several folders.

    Args:
        parts: the files of each folder.
        index: for each file of the subset, its index in ``parts`` and its index in that folder, ``int32 [N, 2]``.
    """

    def __init__(self, parts: Sequence[Files], index: np.ndarray) -> None:
        self.parts, self.index = parts, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int | slice) -> tuple[str, str] | Subset:
        if isinstance(index, slice):
            return Subset(self.parts, self.index[index])
        part, k = self.index[index]
        return self.parts[part][int(k)]
