"""A split of ImageNet's images on disk, by class and in a drawn order; no image is read before it is asked for."""

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

COPY = re.compile(r"_n\d{8}$")  # the hub's names repeat the WordNet id: n01440764_10026_n01440764.JPEG


class Split(Protocol):
    """The images of a split, each by an item that is small until its image is read."""

    def classes(self) -> list[int]:
        """The classes that have images, by index."""
        ...

    def of_class(self, index: int) -> Sequence[Any]:
        """The items of a class in the order of their keyed hashes."""
        ...

    def sample(self, count: int | None) -> Sequence[Any]:
        """Every item in the order in which reading is fast; of the first ``count`` by their keyed hashes, if given."""
        ...

    def identity(self, item: Any) -> str:
        """What tells an image from others without reading it."""
        ...

    def read(self, item: Any, size: tuple[int, int]) -> np.ndarray:
        """``uint8 [3, H, W]``."""
        ...


class _ByClass:
    """Where a class's rows begin in arrays that are sorted by class, then by the hash."""

    def __init__(self, labels: np.ndarray, keys: np.ndarray) -> None:
        self.order = np.lexsort((keys, labels))
        self.known, starts = np.unique(labels[self.order], return_index=True)
        self.bounds = np.append(starts, len(labels))

    def classes(self) -> list[int]:
        return self.known.tolist()

    def rows(self, index: int) -> slice:
        at = int(np.searchsorted(self.known, index))
        if at == len(self.known) or self.known[at] != index:
            raise KeyError(index)
        return slice(int(self.bounds[at]), int(self.bounds[at + 1]))


class TableSplit:
    """A split in Parquet files; of each image its place and its class are kept."""

    def __init__(self, files: Sequence[str], seed: int) -> None:
        self.table = ImageTable(tuple(files))
        labels = [_class_indices(file, column) for (_, column), file in zip(self.table.column("label"), files,
                                                                          strict=True)]  # fmt: skip
        keys = np.concatenate([np.fromiter((shuffle_key(seed, COPY.sub("", Path(name).stem)) for name in names), np.uint64)
                               for _, names in self.table.names()])  # fmt: skip
        self._keys = keys
        self._files = np.repeat(np.arange(len(files), dtype=np.int32), [len(own) for own in labels])
        self._rows = np.concatenate([np.arange(len(own), dtype=np.int32) for own in labels])
        self._by_class = _ByClass(np.concatenate(labels), keys)

    def classes(self) -> list[int]:
        return self._by_class.classes()

    def of_class(self, index: int) -> Rows:
        chosen = self._by_class.order[self._by_class.rows(index)]
        return Rows(self._files[chosen], self._rows[chosen])

    def sample(self, count: int | None) -> Rows:
        chosen = np.sort(np.argsort(self._keys, kind="stable")[:count])
        return Rows(self._files[chosen], self._rows[chosen])

    def identity(self, item: tuple[int, int]) -> str:
        return self.table.identity(item)

    def read(self, item: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        return self.table.read(item, size)


def _class_indices(file: str, column: pa.ChunkedArray) -> np.ndarray:
    """``int16 [N]`` of a column of class indices, WordNet ids or names. ValueError names what is no class."""
    if pa.types.is_integer(column.type):
        labels = column.to_numpy()
        wrong = (labels < 0) | (labels >= len(imagenet_classes()))
        if wrong.any():
            raise ValueError(
                f"{file} has the label {labels[wrong][0]} in row {int(wrong.argmax())}: ImageNet-1k has the classes "
                "0 to 999, and hidden labels serve nobody."
            )
        return labels.astype(np.int16)
    encoded = column.combine_chunks().dictionary_encode()
    try:
        known = np.array([imagenet_class(str(name)).index for name in encoded.dictionary.to_pylist()], np.int16)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return known[encoded.indices.to_numpy(zero_copy_only=False)]


class FolderSplit:
    """A split in folders of images, one a class; of each image its file name is kept."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        with os.scandir(root) as entries:
            found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
        folders = [entry.name for entry in found if entry.is_dir()]
        self._folders: Mapping[int, str] = self._classes(folders)
        loose = [entry.name for entry in found if not entry.is_dir()]
        self._loose = np.array([os.fsencode(name) for name in loose], dtype=np.bytes_) if not folders else None
        if not folders and not loose:
            raise ValueError(f"{root} is empty: it needs one folder of images a class, named by its WordNet id.")
        self._names: dict[int, np.ndarray] = {}

    def _classes(self, folders: Sequence[str]) -> dict[int, str]:
        found: dict[int, str] = {}
        for name in folders:
            try:
                index = imagenet_class(name).index
            except ValueError as error:
                raise ValueError(f"the folder {self.root / name}: {error}") from None
            if index in found:
                raise ValueError(f"the folders {found[index]} and {name} of {self.root} are one class: merge them.")
            found[index] = name
        return dict(sorted(found.items()))

    def classes(self) -> list[int]:
        return list(self._folders)

    def of_class(self, index: int) -> Sequence[tuple[str, str]]:
        return Files(self._folders[index], self._listed(index))

    def sample(self, count: int | None) -> Sequence[tuple[str, str]]:
        parts = [Files(name, self._listed(index)) for index, name in self._folders.items()]
        if self._loose is not None:
            parts = [Files("", self._loose)]
        places = [(k, own) for k, files in enumerate(parts) for own in range(len(files))]
        if count is not None and count < len(places):
            keys = [shuffle_key(self.seed, parts[k][own][1]) for k, own in places]
            places = [places[k] for k in sorted(np.argsort(keys, kind="stable")[:count])]
        return Subset(parts, np.array(places, dtype=np.int32).reshape(-1, 2))

    def _listed(self, index: int) -> np.ndarray:
        """The names of a class's images in the order of their hashes."""
        if index not in self._names:
            with os.scandir(self.root / self._folders[index]) as entries:
                names = [e.name for e in entries if not e.name.startswith(".") and e.is_file()]
            if not names:
                raise ValueError(f"{self.root / self._folders[index]} holds no images: add some or remove the folder.")
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
    """Files of one folder, each ``(folder, name)``; as many bytes as the longest name has."""

    def __init__(self, folder: str, names: np.ndarray) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int | slice) -> tuple[str, str] | Files:
        if isinstance(index, slice):
            return Files(self.folder, self.names[index])
        return self.folder, os.fsdecode(self.names[index])


class Subset(Sequence):
    """Files of several folders, by folder and place ``int32 [N, 2]``."""

    def __init__(self, parts: Sequence[Files], places: np.ndarray) -> None:
        self.parts, self.places = parts, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int | slice) -> tuple[str, str] | Subset:
        if isinstance(index, slice):
            return Subset(self.parts, self.places[index])
        part, composite = self.places[index]
        return self.parts[part][int(composite)]
