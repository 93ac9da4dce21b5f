"""Labeled images in groups that a training may exclude: the training data of an evaluation classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import Dataset

from experiments.data.backgrounds import AUGMENTATIONS
from experiments.data.emoji import AugmentedEmojiImages, EmojiImages, check_corpus
from experiments.data.images import Images, check_images, height_and_width, read_image
from experiments.data.scan import image_files, list_folder, named_folders
from rnri.validation import NonEmptyStr, dataclass

LabeledDataset = Dataset[tuple[Tensor, int]]
"""Pairs of an image ``float32 [3, H, W]`` in [0, 1] and the index of its label."""


@runtime_checkable
class LabeledImages(Protocol):
    """Training images of a classifier. Call :meth:`prepare` first."""

    labels: list[str]
    groups: list[str]
    workers: int

    def prepare(self, image_size: int) -> None:
        """Reads labels and groups; images without a size get ``image_size``. ValueError if the data is invalid."""
        ...

    def missing_labels(self, groups: Sequence[str]) -> list[str]:
        """Labels without an image in these groups."""
        ...

    def dataset(self, groups: Sequence[str], augment: bool) -> LabeledDataset:
        """Images of some groups; with ``augment``, for training, also in variants that preserve the label."""
        ...


@dataclass
class LabeledEmoji:
    """Every drawing of the embedded corpus.

    Args:
        folder: of the corpus.
        group_by: ``designer`` or ``split`` (corpus, reference, fid).
    """

    folder: NonEmptyStr
    group_by: Literal["designer", "split"] = "designer"
    labels: list[str] = field(init=False, default_factory=list)
    groups: list[str] = field(init=False, default_factory=list)
    workers: NonNegativeInt = field(init=False, default=0)  # images are in memory

    def prepare(self, image_size: int) -> None:
        check_corpus(self.folder)
        self._drawings = EmojiImages(self.folder, ("corpus", "reference", "fid"))
        names = {row["concept_id"]: row["concept"] for row in self._drawings.rows}
        self.labels = [names[k] for k in sorted(names)]
        self.groups = sorted({row[self.group_by] for row in self._drawings.rows})

    def missing_labels(self, groups: Sequence[str]) -> list[str]:
        present = {row["concept"] for row in self._rows(groups)}
        return [label for label in self.labels if label not in present]

    def dataset(self, groups: Sequence[str], augment: bool) -> LabeledDataset:
        return AugmentedEmojiImages(self._drawings.subset(self._rows(groups)), AUGMENTATIONS if augment else 1)

    def _rows(self, groups: Sequence[str]) -> list[dict]:
        return [row for row in self._drawings.rows if row[self.group_by] in groups]


@dataclass
class LabeledFolders:
    """User-provided folders of images, ``FOLDER/LABEL/*``; each ``FOLDER`` is a group.

    Args:
        folders: by name of the group. Images outside the inner folders have no label and are ignored.
        size: in pixels, a side or ``(H, W)``; None is the size of the classifier. Give the size of the checkpoint if it
            is not square, because the classifier sees uncropped images.
        workers: number of processes that read images.
    """

    folders: Mapping[str, NonEmptyStr]
    size: PositiveInt | Sequence[PositiveInt] | None = None
    workers: NonNegativeInt = 0
    labels: list[str] = field(init=False, default_factory=list)
    groups: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        height_and_width(self.size)

    def prepare(self, image_size: int) -> None:
        self._size = height_and_width(self.size) or (image_size, image_size)
        self._files = {group: self._files_by_label(Path(folder)) for group, folder in self.folders.items()}
        self.groups = [group for group, files in self._files.items() if files]
        self.labels = sorted({label for files in self._files.values() for label in files})
        if len(self.labels) < 2:
            raise ValueError(
                f"{' and '.join(map(str, self.folders.values()))} contain {len(self.labels)} folders of images: a "
                "classifier needs one folder per label, and at least two labels."
            )
        paths = [path for files in self._files.values() for group in files.values() for path in group]
        check_images(paths, "checking images")

    def missing_labels(self, groups: Sequence[str]) -> list[str]:
        return [label for label in self.labels if not any(label in self._files[group] for group in groups)]

    @staticmethod
    def _files_by_label(folder: Path) -> dict[str, list[Path]]:
        folders = named_folders(folder)
        return dict(zip(folders, image_files(folders.values(), loose=list_folder(folder).others), strict=True))

    def dataset(self, groups: Sequence[str], augment: bool) -> LabeledDataset:
        labeled = [
            (path, self.labels.index(label))
            for group in groups
            for label, paths in self._files[group].items()
            for path in paths
        ]
        images = Images([path for path, _ in labeled], read_image, self._size)
        return FolderDataset(images, [label for _, label in labeled], mirrored=augment)


class FolderDataset(Dataset):
    """Images and their labels; with ``mirrored``, each image is repeated with a horizontal flip."""

    def __init__(self, images: Images, labels: Sequence[int], mirrored: bool) -> None:
        self.images, self.labels, self.mirrored = images, labels, mirrored

    def __len__(self) -> int:
        return len(self.labels) * (1 + self.mirrored)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        flipped, k = divmod(index, len(self.labels))
        image = torch.from_numpy(self.images[k]).float() / 255
        return image.flip(-1) if flipped else image, self.labels[k]
