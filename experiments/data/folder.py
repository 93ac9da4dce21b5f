"""Reads concepts from user-provided files: one folder of images per concept, and a table of caption counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from experiments.counting.buckets import assign_buckets
from experiments.counting.counts import read_count_table
from experiments.counting.imagenet_counts import imagenet_class, imagenet_classes, imagenet_counts
from experiments.data.concepts import Concept, check_template
from experiments.data.images import Images, check_images, height_and_width, read_image
from experiments.data.scan import image_files, list_folder, named_folders
from rnri.validation import NonEmptyStr, dataclass


@dataclass(frozen=True)
class FolderConcepts:
    """Concepts with reference images in ``references/NAME/*`` and real images for FID in ``real/*`` or ``real/NAME/*``.

    Every file that Pillow can read counts as an image. If a file has several frames or pages, the first frame or page
    is used. An image file is read from disk each time the image is indexed.

    Args:
        references: folder with one subfolder of images per concept; the name of the subfolder is the label of the
            concept in the evaluation classifier.
        real: folder of real images for FID and KID, or folder with one subfolder of real images per concept. No real
            image may also be in ``references``.
        counts: table with the number of training captions that mention each concept name.
        prompt: prompt template, in which the field ``{name}`` is replaced by the name of the concept.
        size: image size in pixels, one number for square images or ``(H, W)``. If ``size`` is None, the image size of
            the model is used.
        head, tail: a concept that more than ``head`` captions mention is in the frequency bucket ``head``. A concept
            that fewer than ``tail`` captions mention is in the bucket ``tail``. The RNRI paper uses 1,000,000
            (``head``) and 10,000 (``tail``) captions of LAION-2B.
        bucket_by: ``threshold`` assigns concepts to buckets by the thresholds ``head`` and ``tail``. ``rank`` sorts the
            concepts by frequency and assigns them to buckets by the numbers ``ranks``.
        ranks: numbers of head, medium and tail concepts. The sum of ``ranks`` must be the number of concepts in
            ``counts``.
        classes: how the subfolders are matched with the rows of ``counts``. ``folders`` matches equal names.
            ``imagenet1k`` matches ImageNet classes by index, WordNet id or name. ``imagenet1k_rows`` uses row k of the
            1,000 rows of ``counts`` as the count of ImageNet class k, and ignores names in ``counts``. With ImageNet
            classes, the prompt contains the first name of the class.
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
            raise ValueError(
                f"data.references: {root} contains no folders; create one folder of images per concept in it."
            )
        counts = self._counts()
        buckets = assign_buckets(counts, self.bucket_by, head=self.head, tail=self.tail, ranks=self.ranks)
        keys = self._keys(folders, counts)
        listing = list_folder(root)
        files = image_files(folders.values(), loose=[*listing.images, *listing.others])
        return [
            Concept(
                name=name,
                prompt=self.prompt.format(name=self._phrase(name)),
                frequency=counts[keys[name]],
                bucket=buckets[keys[name]],
                references=self._images(paths),
            )
            for name, paths in zip(folders, files, strict=True)
        ]

    def _counts(self) -> Mapping[str, int]:
        """Return the number of captions of each concept.

        The keys are normalized concept names, or WordNet ids if the concepts are ImageNet classes.
        """
        table = read_count_table(self.counts)
        if self.classes == "folders":
            return table.counts
        counts = imagenet_counts(table, rows_are_indices=self.classes == "imagenet1k_rows")
        return {imagenet_classes()[index].wnid: count for index, count in counts.items()}

    def _keys(self, folders: Mapping[str, Path], counts: Mapping[str, int]) -> dict[str, str]:
        """Return a dict that maps the name of each folder to the key of its concept in ``counts``."""
        keys: dict[str, str] = {}
        for name in folders:
            key = name if self.classes == "folders" else imagenet_class(name).wnid
            if key not in counts:
                raise ValueError(f"{self.counts} has no count for {name!r}: add a count, or remove the folder.")
            if key in keys.values():
                other = next(folder for folder, used in keys.items() if used == key)
                raise ValueError(f"the folders {other!r} and {name!r} are the same class, {key}: merge them.")
            keys[name] = key
        return keys

    def _phrase(self, name: str) -> str:
        return name if self.classes == "folders" else imagenet_class(name).synonyms[0]

    def real_images(self) -> Images:
        root = Path(self.real)
        if root.resolve() == Path(self.references).resolve():
            raise ValueError(
                f"data.real: must not be the folder data.references, got {self.real}; put other images of the concepts "
                "into the folder data.real, because generated images are compared with unseen real images."
            )
        folders = named_folders(root)
        listing = list_folder(root)
        if folders:
            nested = image_files(folders.values(), loose=listing.others)
            files = [*listing.images, *(path for paths in nested for path in paths)]
        else:
            (files,) = image_files([root])
        check_images(files, "checking real images")
        return self._images(files)

    def labeled_real_images(self) -> dict[str, Images]:
        folders = named_folders(Path(self.real))
        files = image_files(folders.values())
        return {name: self._images(paths) for name, paths in zip(folders, files, strict=True)}

    def _images(self, files: Sequence[Path]) -> Images:
        advice = "set data.source.size to null to use the size of the checkpoint"
        return Images(files, read_image, height_and_width(self.size), advice)
