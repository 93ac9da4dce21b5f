"""Labeled training images of an evaluation classifier, divided into groups that can be excluded from training."""

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
"""A dataset whose items are pairs of an image ``float32 [3, H, W]`` in [0, 1] and the index of the image's label."""


@runtime_checkable
class LabeledImages(Protocol):
    """Labeled training images of a classifier. :meth:`prepare` must be called before the other methods.

    Attributes:
        labels: names of the classes.
        groups: names of the groups into which the images are divided.
        workers: number of processes that read images; 0 reads images in the main process.
    """

    labels: list[str]
    groups: list[str]
    workers: int

    def prepare(self, image_size: int) -> None:
        """Reads the labels, the groups and the list of images.

        Images without a fixed size are resized to squares of ``image_size`` pixels per side.

        Raises:
            ValueError: the data on disk is invalid.
        """
        ...

    def missing_labels(self, groups: Sequence[str]) -> list[str]:
        """Return the labels that no image in ``groups`` has."""
        ...

    def dataset(self, groups: Sequence[str], augment: bool) -> LabeledDataset:
        """Return a dataset of the images in ``groups``.

        If ``augment`` is true, the dataset also contains augmented versions of each image.
        """
        ...


@dataclass
class LabeledEmoji:
    """Labeled images from the emoji corpus: all drawings of all splits.

    Args:
        folder: folder of the corpus.
        group_by: column of the corpus table by whose values the images are grouped: ``designer``, or ``split``, whose
            values are ``corpus``, ``reference`` and ``fid``.
    """

    folder: NonEmptyStr
    group_by: Literal["designer", "split"] = "designer"
    labels: list[str] = field(init=False, default_factory=list)
    groups: list[str] = field(init=False, default_factory=list)
    workers: NonNegativeInt = field(init=False, default=0)  # 0, because the images are already in memory

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
    """Labeled images from user-provided folders with image files ``FOLDER/LABEL/*``; each ``FOLDER`` is a group.

    Args:
        folders: dict from the name of each group to its folder. Image files that are not in a subfolder ``LABEL`` are
            ignored.
        size: image size in pixels, one number for square images or ``(H, W)``. If ``size`` is None, the input size of
            the classifier is used. If the diffusion model generates images that are not square, set ``size`` to the
            size of the generated images, because the classifier evaluates generated images without cropping.
        workers: number of processes that read images; 0 reads images in the main process.
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
    """Images with labels. If ``mirrored`` is true, the dataset also contains the horizontal flip of each image."""

    def __init__(self, images: Images, labels: Sequence[int], mirrored: bool) -> None:
        self.images, self.labels, self.mirrored = images, labels, mirrored

    def __len__(self) -> int:
        return len(self.labels) * (1 + self.mirrored)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        flipped, k = divmod(index, len(self.labels))
        image = torch.from_numpy(self.images[k]).float() / 255
        return image.flip(-1) if flipped else image, self.labels[k]
