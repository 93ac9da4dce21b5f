"""A user's own images: one folder a concept, and a file that says how often the training corpus mentions each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.data.augment import to_array
from experiments.data.concepts import Concept
from experiments.data.counts import read_count_table
from experiments.data.frequency import bucket_by_threshold

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in the order of their names. ValueError if it is missing or has none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name one that holds images.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}): add some or remove the folder.")
    return files


def read_image(path: Path, size: int) -> np.ndarray:
    """``uint8 [3, size, size]``: upright, on white, resized, the centre cut out. ValueError names a bad file."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGBA")
    except (FileNotFoundError, UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): replace or remove it.") from None
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    return to_array(ImageOps.fit(flat.convert("RGB"), (size, size), Image.Resampling.LANCZOS))


def read_counts(path: Path) -> dict[str, int]:
    """Counts by name from a file that ``experiments.data.counts`` reads."""
    return read_count_table(path).counts


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
    """

    references: str
    real: str
    counts: str
    prompt: str
    size: int
    head: int
    tail: int

    def concepts(self) -> list[Concept]:
        root = Path(self.references)
        folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        if not folders:
            raise ValueError(f"{root} holds no folders: data.references needs one folder of images a concept.")
        counts = self._counts([folder.name for folder in folders])
        buckets = bucket_by_threshold(counts, head=self.head, tail=self.tail)
        return [
            Concept(
                name=folder.name,
                prompt=self.prompt.format(name=folder.name),
                frequency=counts[folder.name],
                bucket=buckets[folder.name],
                references=np.stack([read_image(path, self.size) for path in image_files(folder)]),
            )
            for folder in folders
        ]

    def _counts(self, names: list[str]) -> Mapping[str, int]:
        counts = read_counts(Path(self.counts))
        missing = [name for name in names if name not in counts]
        if missing:
            raise ValueError(
                f"{self.counts} has no count for {missing[0]!r}: add it, or remove the folder of that name."
            )
        return {name: counts[name] for name in names}

    def real_images(self) -> np.ndarray:
        root = Path(self.real)
        nested = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        files = [path for folder in nested or [root] for path in image_files(folder)]
        return np.stack([read_image(path, self.size) for path in files])
