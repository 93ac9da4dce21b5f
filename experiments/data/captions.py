"""Reads images with captions from a JSON file of COCO captions, from a table, or from a folder with caption files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveInt

from experiments.data.concepts import Concept
from experiments.data.images import Images, UnreadableImage, height_and_width, read_image
from experiments.data.parquet import ImageTable, Rows
from rnri.captions import read_captions, read_table
from rnri.tables import first_caption
from rnri.validation import ConfigError, NonEmptyStr, dataclass
from rnri.words import find_phrase


@plain_dataclass(frozen=True)
class Captioned:
    """Images, each with one caption and with a unique name.

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
    """A data source of images with captions but without concepts, for experiments that invert images.

    The prompt of an image is its first caption that is not blank. Images that have only blank captions are not used.
    Captions and file names are read as strings: ``NA`` is not a missing value, and ``007`` is not a number. An image
    file is read from disk each time the image is indexed.

    Args:
        captions: JSON file of COCO captions, table with one image and one caption per row, or folder. A ``.csv``,
            ``.tsv`` or ``.jsonl`` table contains the names of image files in the folder ``images``. A ``.parquet``
            table contains the images themselves, in the format of the package ``datasets``. A folder contains image
            files, and for each image a text file of the same name with the caption (``photo.jpg`` and ``photo.txt``).
        images: folder of the image files; None if ``captions`` is a ``.parquet`` table or a folder.
        size: image size in pixels, one number for square images or ``(H, W)``. If ``size`` is None, the image size of
            the model is used.
        image, caption: names of the image column and of the caption column of a table.
        caption_contains: word or phrase that the caption of an image must contain as whole words, see
            :func:`rnri.words.find_phrase`. Images without the phrase are not used; if ``caption_contains`` is None, all
            images are used.
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
        """Return every image that has a caption, in the order in which the file or folder lists the images.

        Raises:
            ValueError: a file or setting is invalid, or no image has a caption that contains ``caption_contains``.
        """
        path = Path(self.captions)
        if path.is_dir():
            pairs = self._pairs(path, self._caption_files(path))
        elif not path.is_file():
            raise ValueError(
                f"data.captions={self.captions} does not exist: set data.captions to COCO's JSON file, to a table of "
                "captions, or to a folder with a text file for each image."
            )
        elif path.suffix.lower() == ".parquet":
            pairs = self._in_parquet(path)
        else:
            pairs = self._in_folder(path)
        if not len(pairs):
            condition = "" if self.caption_contains is None else f" that contains {self.caption_contains!r}"
            raise ValueError(f"{path} has no image with a caption{condition}: set data.captions to another file.")
        return pairs

    def _in_folder(self, path: Path) -> Captioned:
        if self.images is None:
            raise ValueError(f"data.images has no value: set it to the folder with the image files of {path}.")
        root = Path(self.images)
        if not root.is_dir():
            raise ValueError(
                f"data.images={self.images} is not a folder: set it to the folder with the images of {path}."
            )
        return self._pairs(root, _coco(path) if path.suffix.lower() == ".json" else self._table(path))

    def _caption_files(self, folder: Path) -> Iterator[tuple[str, str]]:
        """Yield the file name and the caption of each image in a folder.

        The captions are in one text file per image.
        """
        if self.images is not None:
            raise ValueError(
                f"data.images={self.images}: must be null, because data.captions={folder} contains the images; set "
                "data.images=null."
            )
        try:
            for file in read_captions(folder):
                yield file.path.name, file.prompt
        except ConfigError as error:
            raise ValueError(f"data.captions: {error.message}") from None

    def _pairs(self, root: Path, rows: Iterable[tuple[str, str]]) -> Captioned:
        """Return the images in the folder ``root`` with their captions. ``rows`` are pairs of file name and caption."""
        first: dict[str, str] = {}
        for name, caption in rows:
            if caption:
                first.setdefault(name, caption)
        pairs = {name: caption for name, caption in first.items() if self._selects(caption)}
        names = list(pairs)
        return Captioned(
            names, list(pairs.values()), self._images(names, partial(_read, root), partial(_identity, root))
        )

    def _table(self, path: Path) -> Iterator[tuple[str, str]]:
        """Yield the file name and the caption of each row of a table."""
        names = {"data.source.image": self.image, "data.source.caption": self.caption}
        for _, name, (caption,) in read_table(path, names):
            yield name, caption

    def _in_parquet(self, path: Path) -> Captioned:
        table = ImageTable((str(path),), self.image)
        ((_, column),) = table.column(self.caption, "data.source.caption")
        captions = [first_caption(value, f"{path}: row {row}") for row, value in enumerate(column.to_pylist())]
        index = [k for k, caption in enumerate(captions) if caption and self._selects(caption)]
        rows = Rows(np.zeros(len(index), np.int32), np.array(index, np.int32))
        images = self._images(rows, table.read, table.identity)
        return Captioned([str(k) for k in index], [captions[k] for k in index], images)

    def _selects(self, caption: str) -> bool:
        return self.caption_contains is None or bool(find_phrase(self.caption_contains, caption))

    def _images(self, items: Sequence[Any], read: Any, identity: Any) -> Images:
        advice = "set data.source.size to null to use the size of the checkpoint"
        return Images(items, read, height_and_width(self.size), advice, identity)


def _coco(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the file name and the caption of each COCO annotation.

    The captions are in the order of the images in the file. Captions of the same image are sorted by annotation id.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        captions: dict[Any, list[tuple[int, str]]] = {}
        for annotation in content["annotations"]:
            key = annotation["id"]
            caption = first_caption(annotation["caption"], f"annotation {key}")
            captions.setdefault(annotation["image_id"], []).append((key, caption))
        for image in content["images"]:
            if not isinstance(image["file_name"], str):
                raise ValueError(f"image {image['id']} has the file_name {image['file_name']!r}")
            for _, caption in sorted(captions.get(image["id"], [])):
                yield image["file_name"], caption
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a file of COCO captions ({type(error).__name__}: {error}): it needs images with id and "
            "file_name, and annotations with id, image_id and caption."
        ) from None


def _read(root: Path, name: str, size: tuple[int, int]) -> np.ndarray:
    return read_image(root / name, size)


def _identity(root: Path, name: str) -> str:
    """Return the name and the size in bytes of an image file, which identify the image without reading the file."""
    try:
        return f"{name}\n{(root / name).stat().st_size}"
    except OSError as error:
        raise UnreadableImage(f"{root / name} cannot be read ({error}): replace it, or remove its caption.") from None
