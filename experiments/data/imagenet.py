"""ImageNet-1k as it is distributed: Parquet files as on the hub, or folders of images named by WordNet ids."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import NonNegativeInt, PositiveInt

from experiments.counting.counts import read_count_table
from experiments.counting.frequency import assign_buckets
from experiments.counting.imagenet_counts import ImageNetClass, imagenet_class, imagenet_classes, imagenet_counts
from experiments.data.concepts import Concept, check_template
from experiments.data.images import Images, height_and_width
from experiments.data.parquet import data_files
from experiments.data.splits import FolderSplit, Split, TableSplit
from rnri.validation import NonEmptyStr, RandomSeed, dataclass, unique_items

SPLITS = {"train": ("train",), "validation": ("validation", "val")}
"""The folders of images that a split may be called."""


@dataclass(frozen=True)
class ImageNetConcepts:
    """The classes of ImageNet-1k. No image is read before a unit needs it; 16 bytes an image are kept of each.

    References are images of the training split, the first of their class by a hash keyed with ``shuffle_seed``; real images
    for FID are those of the validation split, read one after another.

    Args:
        path: a local copy or an id of the hub, whose files are then read where they lie. Copies are Parquet files with
            the columns ``image`` and ``label`` (class indices, WordNet ids or names), or folders
            ``train/WNID/*`` and ``val/WNID/*`` or ``val/*``.
        counts: file of corpus frequencies, by index, WordNet id or name of the class.
        prompt: with ``{name}``, the first of the class's names.
        size: of the images in pixels, a side or ``(H, W)``; None is the model's.
        head, tail, bucket_by, ranks: as for :class:`~experiments.data.folder.FolderConcepts`.
        classes: some of the classes alone, by index, WordNet id or name; None stands for all.
        rows_are_indices: the 1,000 rows of ``counts`` are in the order of the class indices, whatever their names.
        real: images of the validation split for FID and KID at most; None stands for all.
        shuffle_seed: key of the hash.
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
        wanted, train = self._wanted(), self._split("train")
        present = set(train.classes())
        if wanted is None:
            wanted = [imagenet_classes()[index] for index in sorted(present)]
        for known in wanted:
            if known.index not in present:
                raise ValueError(f"{self.path} has no training images of {known.name} ({known.wnid}): leave it out.")
            if known.index not in counts:
                raise ValueError(f"{self.counts} has no count for {known.name} ({known.wnid}): add it.")
        return [
            Concept(
                name=known.name,
                prompt=self.prompt.format(name=known.synonyms[0]),
                frequency=counts[known.index],
                bucket=buckets[known.wnid],
                references=self._images(train, train.of_class(known.index)),
            )
            for known in wanted
        ]

    def real_images(self) -> Images:
        split = self._split("validation")
        return self._images(split, split.sample(self.real))

    def held_out(self) -> dict[str, Images]:
        split = self._split("validation")
        return {imagenet_classes()[index].name: self._images(split, split.of_class(index)) for index in split.classes()}

    def _wanted(self) -> list[ImageNetClass] | None:
        if self.classes is None:
            return None
        found: dict[int, str | int] = {}
        for name in self.classes:
            try:
                known = imagenet_class(str(name))
            except ValueError as error:
                raise ValueError(f"data.classes: {error}") from None
            if known.index in found:
                raise ValueError(f"data.classes names {known.name} twice, as {found[known.index]} and {name}: once do.")
            found[known.index] = name
        return [imagenet_classes()[index] for index in found]

    @cached_property
    def _splits(self) -> dict[str, Split]:
        return {}

    def _split(self, name: str) -> Split:
        if name not in self._splits:
            folders = [Path(self.path) / own for own in SPLITS[name] if _holds_no_tables(Path(self.path) / own)]
            split = (
                FolderSplit(folders[0], self.shuffle_seed)
                if folders
                else TableSplit(data_files(self.path, name), self.shuffle_seed)
            )
            self._splits[name] = split
        return self._splits[name]

    def _images(self, split: Split, items: Sequence[Any]) -> Images:
        advice = "leave data.source.size out, which is null, to follow the checkpoint"
        return Images(items, split.read, height_and_width(self.size), advice, split.identity)


def _holds_no_tables(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        first = next((entry for entry in entries if not entry.name.startswith(".")), None)
    return first is not None and not first.name.endswith(".parquet")
