"""A user's own images: one folder a concept, and a file that says how often the training corpus mentions each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from experiments.counting.counts import read_count_table
from experiments.counting.frequency import assign_buckets
from experiments.counting.imagenet_counts import imagenet_class, imagenet_classes, imagenet_counts
from experiments.data.concepts import Concept, check_template
from experiments.data.images import Images, check_images, height_and_width, read_image
from experiments.data.scan import image_files, list_folder, named_folders
from experiments.naming import unique_names
from rnri.validation import NonEmptyStr, dataclass


@dataclass(frozen=True)
class FolderConcepts:
    """Concepts from ``references/NAME/*``, with real images for FID from ``real/*`` and ``real/NAME/*``.

    An image is any file that Pillow reads; of animations and files of pages it is the first. Images are read when they
    are asked for.

    Args:
        references: folder with one folder a concept, named as the classifier names it.
        real: folder with one folder a concept, or images; must not hold the references.
        counts: file of corpus frequencies by name; its source is the user's to state.
        prompt: with ``{name}``.
        size: of the images in pixels, a side or ``(H, W)``; None is the model's.
        head, tail: as for the embedded corpus; the paper's are 1,000,000 and 10,000 mentions in LAION-2B.
        bucket_by, ranks: as for the embedded corpus; ranks are those of all concepts in ``counts``.
        classes: ``folders`` if ``counts`` names concepts as the folders do; ``imagenet1k`` if both name ImageNet's
            classes, each by index, WordNet id or name; ``imagenet1k_rows`` if the 1,000 rows of ``counts`` are in the
            order of the indices, whatever their names. Prompts then hold a class's first name.
    """

    references: NonEmptyStr
    real: NonEmptyStr
    counts: NonEmptyStr
    prompt: str
    size: PositiveInt | Sequence[PositiveInt] | None
    head: NonNegativeInt
    tail: NonNegativeInt
    bucket_by: Literal["threshold", "rank"] = "threshold"
    ranks: Sequence[NonNegativeInt] = ()
    classes: Literal["folders", "imagenet1k", "imagenet1k_rows"] = "folders"

    def __post_init__(self) -> None:
        check_template("data.source.prompt", self.prompt, "name")
        height_and_width(self.size)

    def concepts(self) -> list[Concept]:
        root = Path(self.references)
        folders = named_folders(root) if root.is_dir() else {}
        if not folders:
            raise ValueError(f"{root} holds no folders: data.references needs one folder of images a concept.")
        counts = self._counts()
        buckets = assign_buckets(counts, self.bucket_by, head=self.head, tail=self.tail, ranks=self.ranks)
        keys = self._keys(folders, counts)
        beside = list_folder(root)
        files = image_files(folders.values(), loose=[*beside.images, *beside.others])
        return [
            Concept(
                name=name,
                prompt=self.prompt.format(name=self._phrase(name)),
                frequency=counts[keys[name]],
                bucket=buckets[keys[name]],
                references=self._images(own),
            )
            for name, own in zip(folders, files, strict=True)
        ]

    def _counts(self) -> Mapping[str, int]:
        """By canonical name, or by the WordNet ids of ImageNet's classes."""
        table = read_count_table(self.counts)
        if self.classes == "folders":
            return {name: table.counts[given] for name, given in unique_names(table.counts, self.counts).items()}
        counts = imagenet_counts(table, rows_are_indices=self.classes == "imagenet1k_rows")
        return {imagenet_classes()[index].wnid: count for index, count in counts.items()}

    def _keys(self, folders: Mapping[str, Path], counts: Mapping[str, int]) -> dict[str, str]:
        """What ``counts`` has each folder's concept under."""
        keys: dict[str, str] = {}
        for name in folders:
            key = name if self.classes == "folders" else imagenet_class(name).wnid
            if key not in counts:
                raise ValueError(f"{self.counts} has no count for {name!r}: add it, or remove the folder of that name.")
            if key in keys.values():
                other = next(known for known, own in keys.items() if own == key)
                raise ValueError(f"the folders {other!r} and {name!r} are one class, {key}: merge them.")
            keys[name] = key
        return keys

    def _phrase(self, name: str) -> str:
        return name if self.classes == "folders" else imagenet_class(name).synonyms[0]

    def real_images(self) -> Images:
        root = Path(self.real)
        folders, beside = named_folders(root), list_folder(root)
        if folders:
            nested = image_files(folders.values(), loose=beside.others)
            files = [*beside.images, *(path for own in nested for path in own)]
        else:
            (files,) = image_files([root])
        check_images(files, "checking real images")
        return self._images(files)

    def held_out(self) -> dict[str, Images]:
        folders = named_folders(Path(self.real))
        files = image_files(folders.values())
        return {name: self._images(own) for name, own in zip(folders, files, strict=True)}

    def _images(self, files: Sequence[Path]) -> Images:
        advice = "leave data.source.size out, which is null, to follow the checkpoint"
        return Images(files, read_image, height_and_width(self.size), advice)
