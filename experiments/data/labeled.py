"""Images with the names of what they show, in groups that a training may leave out: what a judge learns from."""

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
"""Pairs of a picture ``float32 [3, H, W]`` in [0, 1] and the index of its label."""


@runtime_checkable
class LabeledImages(Protocol):
    """Where a judge's training takes its images from. :meth:`prepare` goes before everything else."""

    labels: list[str]
    groups: list[str]
    workers: int

    def prepare(self, image_size: int) -> None:
        """Finds labels and groups; images without a size are given the judge's side. ValueError says what is wrong."""
        ...

    def missing_labels(self, groups: Sequence[str]) -> list[str]:
        """The labels that no image of these groups has."""
        ...

    def dataset(self, groups: Sequence[str], augment: bool) -> LabeledDataset:
        """The images of some groups, for a training ``changed`` in ways that leave the label alone."""
        ...


@dataclass
class LabeledEmoji:
    """Every drawing of the embedded corpus.

    Args:
        folder: the built corpus.
        group_by: what a group is: a ``designer``, or a ``split`` (corpus, reference, fid).
    """

    folder: NonEmptyStr
    group_by: Literal["designer", "split"] = "designer"
    labels: list[str] = field(init=False, default_factory=list)
    groups: list[str] = field(init=False, default_factory=list)
    workers: NonNegativeInt = field(init=False, default=0)  # all is in memory

    def prepare(self, image_size: int) -> None:
        check_corpus(self.folder)
        self._drawings = EmojiImages(self.folder, ("corpus", "reference", "fid"))
        names = {row["concept_id"]: row["concept"] for row in self._drawings.rows}
        self.labels = [names[k] for k in sorted(names)]
        self.groups = sorted({row[self.group_by] for row in self._drawings.rows})

    def missing_labels(self, groups: Sequence[str]) -> list[str]:
        shown = {row["concept"] for row in self._rows(groups)}
        return [label for label in self.labels if label not in shown]

    def dataset(self, groups: Sequence[str], augment: bool) -> LabeledDataset:
        return AugmentedEmojiImages(self._drawings.subset(self._rows(groups)), AUGMENTATIONS if changed else 1)

    def _rows(self, groups: Sequence[str]) -> list[dict]:
        return [row for row in self._drawings.rows if row[self.group_by] in groups]


@dataclass
class LabeledFolders:
    """A user's folders of images, ``FOLDER/LABEL/*``; a group is such a folder of folders.

    Args:
        folders: by the name of the group. Images in none of the inner folders have no label and are passed over.
        size: of the images in pixels, a side or ``(H, W)``; None is the judge's. Give a checkpoint's where that is not
            square, for a judge sees images whole.
        workers: processes that read images.
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
        self._files = {group: self._named(Path(folder)) for group, folder in self.folders.items()}
        self.groups = [group for group, files in self._files.items() if files]
        self.labels = sorted({label for files in self._files.values() for label in files})
        if len(self.labels) < 2:
            raise ValueError(
                f"{' and '.join(map(str, self.folders.values()))} hold {len(self.labels)} folders of images: a "
                "classifier needs one folder a label, and two labels."
            )
        paths = [path for files in self._files.values() for own in files.values() for path in own]
        check_images(paths, "checking images")

    def missing_labels(self, groups: Sequence[str]) -> list[str]:
        return [label for label in self.labels if not any(label in self._files[group] for group in groups)]

    @staticmethod
    def _named(folder: Path) -> dict[str, list[Path]]:
        named = named_folders(folder)
        return dict(zip(named, image_files(named.values(), loose=list_folder(folder).others), strict=True))

    def dataset(self, groups: Sequence[str], augment: bool) -> LabeledDataset:
        shown = [
            (path, self.labels.index(label))
            for group in groups
            for label, paths in self._files[group].items()
            for path in paths
        ]
        images = Images([path for path, _ in shown], read_image, self._size)
        return FolderDataset(images, [label for _, label in shown], mirrored=changed)


class FolderDataset(Dataset):
    """Images and their labels, every image a second time as in a mirror if asked for."""

    def __init__(self, images: Images, labels: Sequence[int], mirrored: bool) -> None:
        self.images, self.labels, self.mirrored = images, labels, mirrored

    def __len__(self) -> int:
        return len(self.labels) * (1 + self.mirrored)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        turned, k = divmod(index, len(self.labels))
        picture = torch.from_numpy(self.images[k]).float() / 255
        return picture.flip(-1) if turned else picture, self.labels[k]
