"""The embedded corpus on disk: emoji drawings, captions, and the images that they make."""

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

CONCEPTS = "concepts.csv"


def read_table(path: str | Path) -> datasets.Dataset:
    """A Parquet file as a ``datasets`` table in memory (``load_dataset`` would copy it into the user's cache)."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: point data.folder at a corpus (see assets/emoji/README.md).")
    try:
        return datasets.Dataset(datasets.table.InMemoryTable(pq.read_table(path)))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}): build the corpus again.") from None


def read_caption_counts(folder: str | Path) -> dict[str, int]:
    """Number of captions that mention each concept, from the column ``captions`` of ``concepts.csv``."""
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
    """ValueError unless ``folder`` contains a complete corpus; ``data=folder`` has None in its place."""
    if folder is None:
        raise ValueError("this training needs a corpus of drawings with captions, not folders: use data=emoji.")
    for name in ("drawings-corpus", "drawings-reference", "drawings-fid", "captions"):
        if not (Path(folder) / f"{name}.parquet").is_file():
            raise ValueError(
                f"{folder} has no {name}.parquet: point data.folder at a corpus (see assets/emoji/README.md)."
            )


class EmojiImages:
    """Drawings of some splits in memory.

    Attributes:
        rows: of the tables, without the image.
        images: RGBA drawings by ``image_id``.
    """

    def __init__(self, folder: str | Path, splits: Sequence[str]) -> None:
        tables = [read_table(Path(folder) / f"drawings-{split}.parquet") for split in splits]
        self.rows = [row for table in tables for row in table]
        self.images: dict[int, Image.Image] = {row["image_id"]: row.pop("image").convert("RGBA") for row in self.rows}

    @property
    def image_ids(self) -> list[int]:
        return [row["image_id"] for row in self.rows]

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` of all drawings in pixels; they are square."""
        width, height = next(iter(self.images.values())).size
        return height, width

    def subset(self, rows: Sequence[dict]) -> EmojiImages:
        """The drawings of some of the rows; images are shared, not copied."""
        part = copy(self)
        part.rows = list(rows)
        return part

    def render(self, image_id: int, augmentation: Augmentation) -> np.ndarray:
        """The drawing on its background as ``uint8 [3, H, W]``."""
        return to_array(composite(self.images[image_id], augmentation))


class AugmentedEmojiImages(Dataset):
    """Every drawing under the first ``augmentations`` seeds: ``(image [3, H, W] in [0, 1], concept_id)``."""

    def __init__(self, drawings: EmojiImages, augmentations: int = AUGMENTATIONS) -> None:
        self.drawings = drawings
        self.augmentations = augmentations

    def __len__(self) -> int:
        return len(self.drawings.rows) * self.augmentations

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.drawings.rows[index // self.augmentations]
        image = self.drawings.render(row["image_id"], Augmentation.from_seed(index % self.augmentations))
        return torch.from_numpy(image).float() / 255, row["concept_id"]
