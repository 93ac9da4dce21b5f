"""A user's own images: one folder a concept, and a file that says how often the training corpus mentions each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.counting.counts import read_count_table
from experiments.counting.frequency import assign_buckets
from experiments.counting.imagenet import imagenet_class, imagenet_classes, imagenet_counts
from experiments.data.augment import to_array
from experiments.data.concepts import Concept

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
CLASSES = ("folders", "imagenet1k", "imagenet1k_rows")


def _subfolders(folder: Path) -> list[Path]:
    """In the order of their names; none where ``folder`` is missing."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in the order of their names. ValueError if it is missing or has none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name one that holds images.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}): add some or remove the folder.")
    return files


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file's image, of which only the header is read yet. ValueError names a bad file, also when pixels are."""
    try:
        with Image.open(path) as file:
            yield file
    except (FileNotFoundError, UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): replace or remove it.") from None


def read_image(path: Path, size: int) -> np.ndarray:
    """``uint8 [3, size, size]``: upright, on white, resized, the centre cut out. ValueError names a bad file."""
    with _opened(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGBA")
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    return to_array(ImageOps.fit(flat.convert("RGB"), (size, size), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class FolderConcepts:
    """Concepts from ``references/NAME/*.jpg``, with real images for FID from ``real/**``.

    Args:
        references: folder with one folder a concept, named as the classifier names it.
        real: folder with one folder a concept, or images; must not hold the references.
        counts: file of corpus frequencies by name; its source is the user's to state.
        prompt: with ``{name}``.
        size: side of the model's images in pixels.
        head, tail: as for the embedded corpus; the paper's are 1,000,000 and 10,000 mentions in LAION-2B.
        by, ranks: as for the embedded corpus; ranks are those of all concepts in ``counts``.
        classes: ``folders`` if ``counts`` names concepts as the folders do; ``imagenet1k`` if both name ImageNet's
            classes, each by index, WordNet id or name; ``imagenet1k_rows`` if the 1,000 rows of ``counts`` are in the
            order of the indices, whatever their names. Prompts then hold a class's first name.
    """

    references: str
    real: str
    counts: str
    prompt: str
    size: int
    head: int
    tail: int
    by: str = "threshold"
    ranks: Sequence[int] = ()
    classes: str = "folders"

    def __post_init__(self) -> None:
        if self.classes not in CLASSES:
            raise ValueError(f"data.source.classes={self.classes!r} is unknown: choose one of {', '.join(CLASSES)}.")

    def concepts(self) -> list[Concept]:
        root = Path(self.references)
        folders = _subfolders(root)
        if not folders:
            raise ValueError(f"{root} holds no folders: data.references needs one folder of images a concept.")
        counts = self._counts()
        buckets = assign_buckets(counts, self.by, head=self.head, tail=self.tail, ranks=self.ranks)
        keys = {folder: self._key(folder.name, counts) for folder in folders}
        return [
            Concept(
                name=folder.name,
                prompt=self.prompt.format(name=self._phrase(folder.name)),
                frequency=counts[keys[folder]],
                bucket=buckets[keys[folder]],
                references=np.stack([read_image(path, self.size) for path in image_files(folder)]),
            )
            for folder in folders
        ]

    def _counts(self) -> Mapping[str, int]:
        """By name, or by the WordNet ids of ImageNet's classes."""
        table = read_count_table(self.counts)
        if self.classes == "folders":
            return table.counts
        counts = imagenet_counts(table, rows_are_indices=self.classes == "imagenet1k_rows")
        return {imagenet_classes()[index].wnid: count for index, count in counts.items()}

    def _key(self, folder: str, counts: Mapping[str, int]) -> str:
        key = folder if self.classes == "folders" else imagenet_class(folder).wnid
        if key not in counts:
            raise ValueError(f"{self.counts} has no count for {folder!r}: add it, or remove the folder of that name.")
        return key

    def _phrase(self, folder: str) -> str:
        return folder if self.classes == "folders" else imagenet_class(folder).synonyms[0]

    def real_images(self) -> Iterator[np.ndarray]:
        root = Path(self.real)
        nested = _subfolders(root)
        files = [path for folder in nested or [root] for path in image_files(folder)]
        for path in files:
            with _opened(path):
                pass  # what is no image is found before any long work
        return (read_image(path, self.size) for path in files)

    def held_out(self) -> dict[str, np.ndarray]:
        folders = _subfolders(Path(self.real))
        return {path.name: np.stack([read_image(file, self.size) for file in image_files(path)]) for path in folders}
