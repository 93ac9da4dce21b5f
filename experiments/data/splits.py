"""Finds the images of a split of ImageNet by class, in a pseudo-random order that an integer seed determines."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from experiments.counting.imagenet_counts import imagenet_class, imagenet_classes
from experiments.data.images import UnreadableImage, read_image
from experiments.data.parquet import ImageTable, Rows, shuffle_key
from experiments.data.scan import image_listings, list_folder, warn_ignored

COPY = re.compile(r"_n\d{8}$")  # end of a file name on the Hub, such as n01440764_10026_n01440764.JPEG


class Split(Protocol):
    """The images of the training or validation split. An *item* is a value by which :meth:`read` finds an image."""

    def classes(self) -> list[int]:
        """Return the indices of the classes that have images in this split."""
        ...

    def of_classes(self, indices: Sequence[int]) -> list[Sequence[Any]]:
        """Return one sequence of items for each class of ``indices``.

        The items of a class are sorted by :func:`~experiments.data.parquet.shuffle_key`.
        """
        ...

    def sample(self, count: int | None) -> Sequence[Any]:
        """Return ``count`` pseudo-random items of all classes, in the order on disk, so that reading is fast.

        The ``count`` items with the smallest :func:`~experiments.data.parquet.shuffle_key` are returned. If ``count``
        is None, all items are returned.
        """
        ...

    def identity(self, item: Any) -> str:
        """Return a string that identifies the image of ``item``, without reading the image."""
        ...

    def read(self, item: Any, size: tuple[int, int]) -> np.ndarray:
        """Return the image of ``item``, resized to ``size = (H, W)``, as an array ``uint8 [3, H, W]``."""
        ...


class _ByClass:
    """Finds the indices of the images of each class.

    Args:
        labels: class index of each of the N images, ``int [N]``.
        keys: shuffle key (hash of the image name) of each image, ``uint64 [N]``.

    Attributes:
        order: image indices, sorted by class, and by shuffle key within a class. ``order[rows(c)]`` are the indices of
            the images of class c.
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
    """A split of ImageNet in Parquet files. The file, the row and the class of each image are kept in memory.

    Args:
        files: paths or URLs of the Parquet files.
        seed: integer that determines the pseudo-random order of the images.
        image, label: names of the image column and of the label column.
        names: class names that the integer labels index, for files whose schema declares no names. If ``names`` is
            None, integer labels are class indices of ImageNet-1k.

    Raises:
        ValueError: a file has no image column or no label column, or the label of a row is missing or not a class of
            ImageNet-1k.
    """

    def __init__(
        self,
        files: Sequence[str],
        seed: int,
        *,
        image: str = "image",
        label: str = "label",
        names: Sequence[str] | None = None,
    ) -> None:
        self.table = ImageTable(tuple(files), image)
        columns = self.table.column(label, "data.source.label")
        labels = [
            _class_indices(files[number], column, declared or names)
            for (number, column), declared in zip(columns, self.table.class_names(label), strict=True)
        ]
        self._keys = np.concatenate([_shuffle_keys(seed, names) for _, names in self.table.names()])
        self._files = np.repeat(np.arange(len(files), dtype=np.int32), [len(part) for part in labels])
        self._rows = np.concatenate([np.arange(len(part), dtype=np.int32) for part in labels])
        self._by_class = _ByClass(np.concatenate(labels), self._keys)

    def classes(self) -> list[int]:
        return self._by_class.classes()

    def of_classes(self, indices: Sequence[int]) -> list[Sequence[tuple[int, int]]]:
        rows = [self._by_class.order[self._by_class.rows(index)] for index in indices]
        return [Rows(self._files[each], self._rows[each]) for each in rows]

    def sample(self, count: int | None) -> Rows:
        rows = np.sort(np.argsort(self._keys, kind="stable")[:count])
        return Rows(self._files[rows], self._rows[rows])

    def identity(self, item: tuple[int, int]) -> str:
        return self.table.identity(item)

    def read(self, item: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        return self.table.read(item, size)


def _shuffle_keys(seed: int, names: Sequence[str]) -> np.ndarray:
    """Return the hash of each image name by which images are sorted, ``uint64 [N]``."""
    return np.fromiter((shuffle_key(seed, COPY.sub("", Path(name).stem)) for name in names), np.uint64)


def _class_indices(file: str, column: pa.ChunkedArray, names: Sequence[str] | None) -> np.ndarray:
    """Convert the labels in a Parquet column (integers, WordNet ids or class names) to class indices, ``int16 [N]``.

    Args:
        file: path of the file, for error messages.
        column: the labels of all rows.
        names: class names that integer labels index. If ``names`` is None, integer labels are class indices.

    Raises:
        ValueError: a row has no label, or a label is not a class of ImageNet-1k; the message names file and row.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy()
    if (codes < 0).any():
        raise ValueError(
            f"{file} has no label in row {int((codes < 0).argmax())}: add a label or remove the row. Splits without "
            "labels cannot be used."
        )
    in_order = names is not None and _in_class_order(names)
    indices = np.empty(len(encoded.dictionary), np.int16)
    for code, label in enumerate(encoded.dictionary.to_pylist()):
        try:
            indices[code] = _class_index(label, None if in_order else names)
        except ValueError as error:
            row = int((codes == code).argmax())
            raise ValueError(f"{file} has the label {label!r} in row {row}: {error}") from None
    return indices[codes]


def _class_index(label: object, names: Sequence[str] | None) -> int:
    if isinstance(label, str):
        return imagenet_class(label).index
    if not isinstance(label, int) or isinstance(label, bool):
        raise ValueError("labels must be integers or strings.")
    if names is None:
        if not 0 <= label < len(imagenet_classes()):
            raise ValueError("ImageNet-1k has the classes 0 to 999, and splits without labels cannot be used.")
        return label
    if not 0 <= label < len(names):
        raise ValueError(f"the file declares names for the labels 0 to {len(names) - 1} only.")
    return imagenet_class(names[label]).index


def _in_class_order(names: Sequence[str]) -> bool:
    """Return whether ``names`` are the names of the 1,000 classes of ImageNet-1k in the order of the class indices.

    On the Hugging Face Hub, a few names are ambiguous, because they belong to two classes (maillot) or to no class
    (crane2). Ambiguous names are not compared. The function returns True if every other name is the name of the class
    at its position, and if more than half of ``names`` are not ambiguous.
    """
    indices = [_unique_index(name) for name in names]
    matching = sum(index == position for position, index in enumerate(indices))
    ambiguous = indices.count(None)
    return len(names) == len(imagenet_classes()) == matching + ambiguous and matching > ambiguous


def _unique_index(name: str) -> int | None:
    try:
        return imagenet_class(name).index
    except ValueError:
        return None


class FolderSplit:
    """A split of ImageNet that is stored as one folder of images per class. The file names are kept in memory.

    Warnings list the files that are ignored because they are not images (:func:`~experiments.data.scan.list_folder`).

    Args:
        root: folder of the split, which contains one folder per class, or only images without labels.
        seed: integer that determines the pseudo-random order of the images.

    Raises:
        ValueError: ``root`` contains no images, or a subfolder is not named by a class, or two subfolders are named by
            the same class.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        listing = list_folder(root)
        self._folders: Mapping[int, str] = self._classes([folder.name for folder in listing.folders])
        self._loose = None if listing.folders else _encoded(path.name for path in listing.images)
        if not listing.folders and not listing.images:
            raise ValueError(
                f"{root} contains no images: it needs one folder of images per class, named by its WordNet id."
            )
        warn_ignored([*listing.images, *listing.others] if listing.folders else listing.others)
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

    def of_classes(self, indices: Sequence[int]) -> list[Sequence[tuple[str, str]]]:
        ignored: list[Path] = []
        for index in indices:
            if index not in self._names:
                (listing,) = image_listings([self.root / self._folders[index]])
                names = [path.name for path in listing.images]
                names.sort(key=lambda name: (shuffle_key(self.seed, name), name))
                self._names[index] = _encoded(names)
                ignored += [*listing.folders, *listing.others]
        warn_ignored(ignored)
        return [Files(self._folders[index], self._names[index]) for index in indices]

    def sample(self, count: int | None) -> Sequence[tuple[str, str]]:
        parts = self.of_classes(self.classes()) if self._loose is None else [Files("", self._loose)]
        index = [(part, k) for part, files in enumerate(parts) for k in range(len(files))]
        if count is not None and count < len(index):
            keys = [shuffle_key(self.seed, parts[part][k][1]) for part, k in index]
            index = [index[k] for k in sorted(np.argsort(keys, kind="stable")[:count])]
        return Subset(parts, np.array(index, dtype=np.int32).reshape(-1, 2))

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


def _encoded(names: Iterable[str]) -> np.ndarray:
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


class Files(Sequence):
    """A sequence of pairs ``(folder, file name)``, one pair per file of a folder.

    The file names are stored in one NumPy array of byte strings, in which every name uses as much memory as the longest
    name.
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
        index: array ``int32 [N, 2]`` with one row for each of the N files of the subset. A row contains the index of
            the folder in ``parts`` and the index of the file in the folder.
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
