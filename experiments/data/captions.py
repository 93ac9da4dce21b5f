"""Data source of captioned images: COCO captions with a folder of images, or a table of images and captions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import PositiveInt

from experiments.data.concepts import Concept
from experiments.data.images import Images, UnreadableImage, height_and_width, read_image
from experiments.data.parquet import ImageTable, Rows
from rnri.validation import NonEmptyStr, dataclass

TABLES = {".csv": pd.read_csv, ".tsv": partial(pd.read_csv, sep="\t"), ".jsonl": partial(pd.read_json, lines=True)}


@plain_dataclass(frozen=True)
class Captioned:
    """Images, each with one caption and a unique name.

    Attributes:
        names: name of each image.
        captions: caption of each image.
        images: the images, in the order of ``names``.
    """

    names: Sequence[str]
    captions: Sequence[str]
    images: Images

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class CaptionedImages:
    """A data source of captioned images, for experiments that invert images; this source has no concepts.

    If an image has several captions, the first caption is the prompt of the image. An image file is read each time the
    image is indexed.

    Args:
        captions: JSON file of COCO captions, or a table with one image and one caption per row. A ``.csv``, ``.tsv`` or
            ``.jsonl`` table has the names of image files in the folder ``images``; a ``.parquet`` table contains the
            images themselves, in the format of the package ``datasets``.
        images: folder of the image files; None if ``captions`` is a ``.parquet`` table.
        size: image size in pixels, one number for square images or ``(H, W)``; None is the image size of the model.
        image, caption: names of the image column and of the caption column of a table.
        caption_contains: string; only images whose caption contains this string are used. None uses all images.
    """

    captions: NonEmptyStr
    images: NonEmptyStr | None
    size: PositiveInt | Sequence[PositiveInt] | None = None
    image: NonEmptyStr = "image"
    caption: NonEmptyStr = "caption"
    caption_contains: NonEmptyStr | None = None

    def __post_init__(self) -> None:
        height_and_width(self.size)

    def concepts(self) -> list[Concept]:
        raise ValueError(
            "data=captions has images with captions but no concepts: choose experiment=reconstruction, convergence or "
            "editing, or data=imagenet."
        )

    def real_images(self) -> Images:
        return self.captioned().images

    def labeled_real_images(self) -> dict[str, Images]:
        return {}

    def captioned(self) -> Captioned:
        """Return every image that has a caption, in the order of the file.

        Raises:
            ValueError: a file or setting is invalid, or no image has a caption that contains ``caption_contains``.
        """
        path = Path(self.captions)
        if not path.is_file():
            raise ValueError(f"data.captions={self.captions} is not a file: give COCO's JSON or a table of captions.")
        pairs = self._in_parquet(path) if path.suffix.lower() == ".parquet" else self._in_folder(path)
        if not len(pairs):
            condition = "" if self.caption_contains is None else f" that contains {self.caption_contains!r}"
            raise ValueError(f"{path} has no image with a caption{condition}: give another file.")
        return pairs

    def _in_folder(self, path: Path) -> Captioned:
        if self.images is None:
            raise ValueError(f"data.images has no value: give the folder with the image files of {path}.")
        root = Path(self.images)
        pairs: dict[str, str] = {}
        if not root.is_dir():
            raise ValueError(f"data.images={self.images} is not a folder: give the folder with the images of {path}.")
        rows = _coco(path) if path.suffix.lower() == ".json" else self._table(path)
        for name, caption in rows:
            if name not in pairs and self._selects(caption):
                pairs[name] = caption
        names = list(pairs)
        return Captioned(
            names, list(pairs.values()), self._images(names, partial(_read, root), partial(_identity, root))
        )

    def _table(self, path: Path) -> Iterator[tuple[str, str]]:
        if path.suffix.lower() not in TABLES:
            raise ValueError(
                f"{path} ends in {path.suffix!r}: captions are read from .json, .csv, .tsv, .jsonl, .parquet."
            )
        try:
            table = TABLES[path.suffix.lower()](path)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read as a table ({error}): correct it.") from None
        for column in (self.image, self.caption):
            if column not in table.columns:
                columns = ", ".join(map(str, table.columns))
                raise ValueError(
                    f"{path} has no column {column!r} (its columns: {columns}): set data.source.image and "
                    "data.source.caption to names of columns."
                )
        for name, caption in zip(table[self.image], table[self.caption], strict=True):
            yield str(name), _first(caption)

    def _in_parquet(self, path: Path) -> Captioned:
        table = ImageTable((str(path),), self.image)
        ((_, column),) = table.column(self.caption)
        captions = [_first(value) for value in column.to_pylist()]
        index = [k for k, caption in enumerate(captions) if caption and self._selects(caption)]
        rows = Rows(np.zeros(len(index), np.int32), np.array(index, np.int32))
        images = self._images(rows, table.read, table.identity)
        return Captioned([str(k) for k in index], [captions[k] for k in index], images)

    def _selects(self, caption: str) -> bool:
        return self.caption_contains is None or self.caption_contains in caption

    def _images(self, items: Sequence[Any], read: Any, identity: Any) -> Images:
        advice = "set data.source.size to null to follow the checkpoint"
        return Images(items, read, height_and_width(self.size), advice, identity)


def _coco(path: Path) -> Iterator[tuple[str, str]]:
    """Yield file name and first caption of each COCO image, in the order of the images.

    The first caption of an image is the caption with the lowest annotation id.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {image["id"]: image["file_name"] for image in content["images"]}
        first: dict[int, tuple[int, str]] = {}
        for annotation in content["annotations"]:
            candidate = annotation["id"], annotation["caption"]
            key = annotation["image_id"]
            first[key] = min(first.get(key, candidate), candidate)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a file of COCO captions ({type(error).__name__}: {error}): it needs images with id and "
            "file_name, and annotations with id, image_id and caption."
        ) from None
    for key, name in files.items():
        if key in first:
            yield name, _first(first[key][1])


def _first(caption: Any) -> str:
    """Return ``caption``, or its first element if ``caption`` is a list, without leading and trailing whitespace."""
    if isinstance(caption, list | tuple | np.ndarray | pa.Array):
        caption = caption[0] if len(caption) else ""
    return "" if caption is None else str(caption).strip()


def _read(root: Path, name: str, size: tuple[int, int]) -> np.ndarray:
    return read_image(root / name, size)


def _identity(root: Path, name: str) -> str:
    """Return name and size in bytes of an image file, which identify the image without reading the file."""
    try:
        return f"{name}\n{(root / name).stat().st_size}"
    except OSError as error:
        raise UnreadableImage(f"{root / name} cannot be read ({error}): replace it, or remove its caption.") from None
