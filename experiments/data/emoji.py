"""Reads the captions and drawings of the emoji corpus from disk, and places the drawings on backgrounds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from copy import copy
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from experiments.data.backgrounds import AUGMENTATIONS, Augmentation, composite, to_array
from rnri.images import to_rgba

CONCEPTS = "concepts.csv"


def read_table(path: str | Path) -> datasets.Dataset:
    """Return the content of a Parquet file as an in-memory table of the package ``datasets``.

    The function ``datasets.load_dataset`` is not used, because it copies the file to the cache folder of the user.

    Raises:
        ValueError: the file is missing or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: set data.folder to a corpus (see assets/emoji/README.md).")
    try:
        return datasets.Dataset(datasets.table.InMemoryTable(pq.read_table(path)))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}): build the corpus again.") from None


def read_caption_counts(folder: str | Path) -> dict[str, int]:
    """Return the number of captions that mention each concept, from the column ``captions`` of ``concepts.csv``."""
    path = Path(folder) / CONCEPTS
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["name"]: int(row["captions"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} has no readable column captions ({type(error).__name__}: {error}): run "
            f"python -m experiments.data.count_emoji {folder}."
        ) from None


def check_corpus(folder: str | Path | None) -> None:
    """Raise a ValueError if ``folder`` is None (as with ``data=folder``) or lacks a file of an emoji corpus."""
    if folder is None:
        raise ValueError("data: this training needs a corpus of drawings with captions, not folders; set data=emoji.")
    for name in ("drawings-corpus", "drawings-reference", "drawings-fid", "captions"):
        if not (Path(folder) / f"{name}.parquet").is_file():
            raise ValueError(
                f"{folder} has no {name}.parquet: set data.folder to a corpus (see assets/emoji/README.md)."
            )


class EmojiImages:
    """The drawings of one or more splits of the emoji corpus, in memory.

    Attributes:
        rows: one dict per drawing with the columns of the corpus table, except for the image.
        images: dict that maps the ``image_id`` of each drawing to its RGBA image.
    """

    def __init__(self, folder: str | Path, splits: Sequence[str]) -> None:
        tables = [read_table(Path(folder) / f"drawings-{split}.parquet") for split in splits]
        self.rows = [row for table in tables for row in table]
        self.images: dict[int, Image.Image] = {row["image_id"]: to_rgba(row.pop("image")) for row in self.rows}

    @property
    def image_ids(self) -> list[int]:
        return [row["image_id"] for row in self.rows]

    @property
    def designers(self) -> dict[int, str]:
        """Return a dict that maps the ``image_id`` of each drawing to its designer.

        Icon sets with the same first word in their names, such as ``noto`` and ``noto-v1``, have the same designer.
        """
        return {row["image_id"]: row["designer"].split("-")[0] for row in self.rows}

    @property
    def size(self) -> tuple[int, int]:
        """Return the image size ``(H, W)`` in pixels. All drawings are square and have the same size."""
        width, height = next(iter(self.images.values())).size
        return height, width

    def subset(self, rows: Sequence[dict]) -> EmojiImages:
        """Return an object with only the drawings of ``rows``, without copying the images."""
        part = copy(self)
        part.rows = list(rows)
        return part

    def render(self, image_id: int, augmentation: Augmentation) -> np.ndarray:
        """Return the drawing ``image_id`` on the background of ``augmentation``, as an array ``uint8 [3, H, W]``."""
        return to_array(composite(self.images[image_id], augmentation))


class AugmentedEmojiImages(Dataset):
    """A dataset with one image for each pair of a drawing and an augmentation seed from 0 to ``augmentations - 1``.

    An augmentation seed is an integer that determines the background, size, position and mirroring of the drawing. Each
    item of the dataset is a pair ``(image, concept_id)``, where ``image`` is ``float32 [3, H, W]`` in [0, 1].
    """

    def __init__(self, drawings: EmojiImages, augmentations: int = AUGMENTATIONS) -> None:
        self.drawings = drawings
        self.augmentations = augmentations

    def __len__(self) -> int:
        return len(self.drawings.rows) * self.augmentations

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.drawings.rows[index // self.augmentations]
        image = self.drawings.render(row["image_id"], Augmentation.from_seed(index % self.augmentations))
        return torch.from_numpy(image).float() / 255, row["concept_id"]
