"""Captioned images: COCO's captions and their folder of images, or any table of image and caption."""

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
    """Images and their captions, one each; names are in the order of the images and differ."""

    names: Sequence[str]
    captions: Sequence[str]
    images: Images

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class CaptionedImages:
    """A source of images with captions, for the experiments that invert images: it holds no concepts.

    The first caption of an image is its prompt. Names and captions are kept; images are read when they are asked for.

    Args:
        captions: COCO's JSON of captions, or a table of an image and a caption a row: ``.csv``, ``.tsv``, ``.jsonl``
            with image files below ``images``, or ``.parquet`` with the images inside, as ``datasets`` writes them.
        images: folder of the image files; None where they are in the table.
        size: of the images in pixels, a side or ``(H, W)``; None is the model's.
        image, caption: columns of a table.
        caption_contains: a text; images whose caption lacks it are left out.
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

    def held_out(self) -> dict[str, Images]:
        return {}

    def captioned(self) -> Captioned:
        """Every image that has a caption, in the order of the file. ValueError says what is wrong with it."""
        path = Path(self.captions)
        if not path.is_file():
            raise ValueError(f"data.captions={self.captions} is no file: name COCO's JSON or a table of captions.")
        found = self._in_parquet(path) if path.suffix.lower() == ".parquet" else self._in_folder(path)
        if not len(found):
            lacking = "" if self.caption_contains is None else f" whose caption holds {self.caption_contains!r}"
            raise ValueError(f"{path} has no image with a caption{lacking}: name another file.")
        return found

    def _in_folder(self, path: Path) -> Captioned:
        if self.images is None:
            raise ValueError(f"data.images has no value: {path} names image files, give the folder that holds them.")
        root, pairs = Path(self.images), dict[str, str]()
        if not root.is_dir():
            raise ValueError(f"data.images={self.images} is no folder: name the one that holds the images of {path}.")
        rows = _coco(path) if path.suffix.lower() == ".json" else self._table(path)
        for name, caption in rows:
            if name not in pairs and (self.caption_contains is None or self.caption_contains in caption):
                pairs[name] = caption
        names = list(pairs)
        return Captioned(names, list(pairs.values()), self._images(names, partial(_read, root), partial(_told, root)))

    def _table(self, path: Path) -> Iterator[tuple[str, str]]:
        if path.suffix.lower() not in TABLES:
            raise ValueError(
                f"{path} ends in {path.suffix!r}: captions are read from .json, .csv, .tsv, .jsonl, .parquet."
            )
        try:
            table = TABLES[path.suffix.lower()](path)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read as a table ({error}).") from None
        for column in (self.image, self.caption):
            if column not in table.columns:
                raise ValueError(f"{path} has no column {column!r} (it has {', '.join(map(str, table.columns))}).")
        for name, caption in zip(table[self.image], table[self.caption], strict=True):
            yield str(name), _first(caption)

    def _in_parquet(self, path: Path) -> Captioned:
        table = ImageTable((str(path),), self.image)
        ((_, column),) = table.column(self.caption)
        captions = [_first(value) for value in column.to_pylist()]
        kept = [
            k
            for k, text in enumerate(captions)
            if text and (self.caption_contains is None or self.caption_contains in text)
        ]
        rows = Rows(np.zeros(len(kept), np.int32), np.array(kept, np.int32))
        images = self._images(rows, table.read, table.identity)
        return Captioned([str(k) for k in kept], [captions[k] for k in kept], images)

    def _images(self, items: Sequence[Any], read: Any, identity: Any) -> Images:
        advice = "leave data.source.size out, which is null, to follow the checkpoint"
        return Images(items, read, height_and_width(self.size), advice, identity)


def _coco(path: Path) -> Iterator[tuple[str, str]]:
    """File name and caption of COCO's annotations, in the order of the images, a caption of lower id first."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = {image["id"]: image["file_name"] for image in content["images"]}
        first: dict[int, tuple[int, str]] = {}
        for annotation in content["annotations"]:
            own = annotation["id"], annotation["caption"]
            key = annotation["image_id"]
            first[key] = min(first.get(key, own), own)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no file of COCO's captions ({type(error).__name__}: {error}): it needs images with id and "
            "file_name, and annotations with id, image_id and caption."
        ) from None
    for key, name in files.items():
        if key in first:
            yield name, _first(first[key][1])


def _first(caption: Any) -> str:
    """A caption, or the first of several, without blanks at its ends."""
    if isinstance(caption, list | tuple | np.ndarray | pa.Array):
        caption = caption[0] if len(caption) else ""
    return "" if caption is None else str(caption).strip()


def _read(root: Path, name: str, size: tuple[int, int]) -> np.ndarray:
    return read_image(root / name, size)


def _told(root: Path, name: str) -> str:
    """What tells an image file from others without reading it."""
    try:
        return f"{name}\n{(root / name).stat().st_size}"
    except OSError as error:
        raise UnreadableImage(
            f"{root / name} cannot be read ({error}): replace it, or leave its caption out."
        ) from None
