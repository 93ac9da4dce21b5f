"""Reads ImageNet-1k from Parquet files, as on the Hugging Face Hub, or from one folder of images per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from datasets import ClassLabel
from pydantic import NonNegativeInt, PositiveInt

from experiments.counting.buckets import assign_buckets
from experiments.counting.counts import read_count_table
from experiments.counting.imagenet_counts import ImageNetClass, imagenet_class, imagenet_classes, imagenet_counts
from experiments.data.concepts import Concept, check_template
from experiments.data.images import Images, height_and_width
from experiments.data.parquet import data_files
from experiments.data.splits import FolderSplit, Split, TableSplit
from rnri.validation import NonEmptyStr, RandomSeed, dataclass, unique_items

SPLITS = {"train": ("train",), "validation": ("validation", "val")}
"""The folder names that each split may have in a local copy of ImageNet."""


@dataclass(frozen=True)
class ImageNetConcepts:
    """The classes of ImageNet-1k as concepts.

    Reference images are images of the training split, in a pseudo-random order that ``shuffle_seed`` determines. Real
    images for FID are images of the validation split. An image file is read from disk each time the image is indexed.
    The list of all images takes 16 bytes of memory per image.

    Args:
        path: folder of a local copy of ImageNet-1k, or an id on the Hugging Face Hub, whose files are read remotely. A
            copy contains Parquet files with the columns ``image`` and ``label``, or image files ``train/WNID/*`` and
            ``val/WNID/*`` (or unlabeled ``val/*``), where WNID is a WordNet id. Labels in Parquet files are class
            indices, WordNet ids or class names. If the Parquet files or the dataset card declare a name for each class
            index (``datasets.ClassLabel``), classes are looked up by the declared names. A warning lists files that are
            ignored because they are not images.
        counts: table with the number of training captions per class. A class is identified by index, WordNet id or
            name.
        prompt: prompt template, in which the field ``{name}`` is replaced by the first name of the class.
        size: image size in pixels, one number for square images or ``(H, W)``. If ``size`` is None, the image size of
            the model is used.
        head, tail, bucket_by, ranks: how concepts are assigned to buckets, see
            :class:`~experiments.data.folder.FolderConcepts`.
        classes: indices, WordNet ids or names of the classes to use. If ``classes`` is None, all classes are used.
        rows_are_indices: if true, row k of the 1,000 rows of ``counts`` is the count of class k, and the names in
            ``counts`` are ignored.
        image, label: names of the image column and of the label column of Parquet files.
        real: maximum number of validation images for FID and KID. If ``real`` is None, all validation images are used.
        shuffle_seed: random seed of the pseudo-random order of the images of a class.
    """

    path: NonEmptyStr
    counts: NonEmptyStr
    prompt: str
    size: PositiveInt | Sequence[PositiveInt] | None
    head: NonNegativeInt
    tail: NonNegativeInt
    bucket_by: Literal["threshold", "rank"] = "threshold"
    ranks: Sequence[NonNegativeInt] = ()
    classes: Annotated[Sequence[NonEmptyStr | NonNegativeInt], MinLen(1), unique_items] | None = None
    rows_are_indices: bool = False
    image: NonEmptyStr = "image"
    label: NonEmptyStr = "label"
    real: PositiveInt | None = None
    shuffle_seed: RandomSeed = 0

    def __post_init__(self) -> None:
        check_template("data.source.prompt", self.prompt, "name")
        height_and_width(self.size)

    def concepts(self) -> list[Concept]:
        table = read_count_table(self.counts)
        counts = imagenet_counts(table, rows_are_indices=self.rows_are_indices)
        buckets = assign_buckets(
            {imagenet_classes()[index].wnid: count for index, count in counts.items()}, self.bucket_by,
            head=self.head, tail=self.tail, ranks=self.ranks,
        )  # fmt: skip
        train = self._split("train")
        present = set(train.classes())
        selected = self._selected_classes()
        if selected is None:
            selected = [imagenet_classes()[index] for index in sorted(present)]
        for cls in selected:
            if cls.index not in present:
                raise ValueError(f"{self.path} has no training images of {cls.name} ({cls.wnid}): exclude this class.")
            if cls.index not in counts:
                raise ValueError(f"{self.counts} has no count for {cls.name} ({cls.wnid}): add the count.")
        references = train.of_classes([cls.index for cls in selected])
        return [
            Concept(
                name=cls.name,
                prompt=self.prompt.format(name=cls.synonyms[0]),
                frequency=counts[cls.index],
                bucket=buckets[cls.wnid],
                references=self._images(train, items),
            )
            for cls, items in zip(selected, references, strict=True)
        ]

    def real_images(self) -> Images:
        split = self._split("validation")
        return self._images(split, split.sample(self.real))

    def labeled_real_images(self) -> dict[str, Images]:
        split = self._split("validation")
        indices = split.classes()
        images = [self._images(split, items) for items in split.of_classes(indices)]
        return dict(zip((imagenet_classes()[index].name for index in indices), images, strict=True))

    def _selected_classes(self) -> list[ImageNetClass] | None:
        if self.classes is None:
            return None
        selected: dict[int, str | int] = {}
        for name in self.classes:
            try:
                cls = imagenet_class(str(name))
            except ValueError as error:
                raise ValueError(f"data.classes: {error}") from None
            if cls.index in selected:
                first = selected[cls.index]
                raise ValueError(f"data.classes contains {cls.name} twice, as {first} and {name}: keep one.")
            selected[cls.index] = name
        return [imagenet_classes()[index] for index in selected]

    @cached_property
    def _splits(self) -> dict[str, Split]:
        return {}

    def _split(self, name: str) -> Split:
        if name not in self._splits:
            folders = [Path(self.path) / folder for folder in SPLITS[name]]
            folders = [folder for folder in folders if _is_image_folder(folder)]
            if folders:
                self._splits[name] = FolderSplit(folders[0], self.shuffle_seed)
            else:
                files, features = data_files(self.path, name)
                declared = (features or {}).get(self.label)
                self._splits[name] = TableSplit(
                    files,
                    self.shuffle_seed,
                    image=self.image,
                    label=self.label,
                    names=declared.names if isinstance(declared, ClassLabel) else None,
                )
        return self._splits[name]

    def _images(self, split: Split, items: Sequence[Any]) -> Images:
        advice = "set data.source.size to null to use the size of the checkpoint"
        return Images(items, split.read, height_and_width(self.size), advice, split.identity)


def _is_image_folder(folder: Path) -> bool:
    """Return True if ``folder`` contains files or folders that are not hidden, but no Parquet file."""
    if not folder.is_dir():
        return False
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    return bool(names) and not any(name.endswith(".parquet") for name in names)
