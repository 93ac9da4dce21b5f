"""Reads editing benchmarks in the format of PIE-Bench (Ju et al. 2023, https://arxiv.org/abs/2310.01506)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from experiments.data.images import read_rgb
from experiments.naming import normalize_name
from rnri.validation import first_line

SIDE = 512  # height and width of a mask in pixels; images may have another size
MAPPING = "mapping_file.json"
IMAGES = "annotation_images"
KINDS = (
    "random", "change object", "add object", "delete object", "change attribute content", "change attribute pose",
    "change attribute color", "change attribute material", "change background", "change style",
)  # fmt: skip
TEXTS = ("image_path", "original_prompt", "editing_prompt", "editing_instruction", "blended_word")
OPTIONAL_TEXTS = ("target_image_path", "target_concept")


@dataclass(frozen=True)
class BenchmarkEdit:
    """One edit of a benchmark: source image, prompts, mask and, if available, the ground-truth image.

    Attributes:
        key: name of the edit in the file ``mapping_file.json`` of the benchmark.
        image: image file that is to be edited.
        source, target: prompts of the source image and of the edited image, without the square brackets that mark
            changed words in PIE-Bench.
        instruction: description of the edit as an instruction, such as "Change blue to green".
        kind: kind of the edit, as an index in ``KINDS``.
        words: the word of the source prompt that is replaced, and the word that replaces it. Empty if the benchmark
            does not name the two words.
        mask: ``bool [512,512]``, True for pixels that the edit should change.
        target_image: image file of the ground truth (the correct edited image); None if the benchmark has no ground
            truth.
        concept: name of the concept that the edited image should show; None if the benchmark does not name a concept.
    """

    key: str
    image: Path
    source: str
    target: str
    instruction: str
    kind: int
    words: tuple[str, ...]
    mask: np.ndarray
    target_image: Path | None = None
    concept: str | None = None

    @property
    def expected_label(self) -> str | None:
        """Normalized name of the new object that the edited image should show; None if the edit replaces no object."""
        if KINDS[self.kind] != "change object" or self.concept is None:
            return None
        return normalize_name(self.concept)

    @property
    def has_background_target(self) -> bool:
        """Whether the edit changes the background and has a ground-truth image."""
        return KINDS[self.kind] == "change background" and self.target_image is not None

    def load_image(self, size: tuple[int, int], *, target: bool = False) -> Tensor:
        """Load the source image, or the ground-truth image if ``target`` is true.

        The image is resized to ``size = (H, W)`` and returned as ``float32 [3,H,W]`` in [0, 1].
        """
        path = self.target_image if target else self.image
        if path is None:
            raise ValueError(f"the benchmark has no ground-truth image for the edit {self.key}: pass target=False.")
        array = np.array(read_rgb(path).resize(size[::-1], Image.Resampling.BOX), dtype=np.float32)
        return torch.from_numpy(array / 255).permute(2, 0, 1)

    def resized_mask(self, size: tuple[int, int]) -> Tensor:
        """Return ``mask`` resized to ``size = (H, W)``.

        A pixel of the resized mask is True if at least half of the pixels of ``mask`` that it covers are True.
        """
        mask = torch.from_numpy(self.mask).float()[None, None]
        return F.interpolate(mask, size, mode="area")[0, 0] >= 0.5


def encode_mask(mask: np.ndarray) -> list[int]:
    """Return the run-length encoding of ``mask [512,512]``: the list start, length, start, length, ... of all runs.

    A run is a maximal sequence of consecutive True pixels, where the pixels are numbered row by row from 0. The start
    of a run is the number of its first pixel.
    """
    flat = np.concatenate([[0], np.asarray(mask, dtype=bool).ravel(), [0]]).astype(np.int8)
    starts, ends = (np.flatnonzero(np.diff(flat) == sign) for sign in (1, -1))
    return [int(number) for pair in zip(starts, ends - starts, strict=True) for number in pair]


def decode_mask(runs: Sequence[int]) -> np.ndarray:
    """Decode a run-length encoded mask to ``bool [512,512]``.

    As in the code of PIE-Bench, the first and the last row and column of the mask are set to True.

    Raises:
        ValueError: ``runs`` has an odd number of entries or entries that are not integers, or a run is outside the
            mask.
    """
    if not isinstance(runs, list) or any(type(entry) is not int for entry in runs):
        raise ValueError("must be a list of integers")
    pairs = np.asarray(runs, dtype=np.int64).reshape(-1) if len(runs) else np.zeros(0, dtype=np.int64)
    if len(pairs) % 2 or (pairs < 0).any() or (pairs[::2] + pairs[1::2] > SIDE * SIDE).any():
        raise ValueError(f"must be pairs of start and length within {SIDE} x {SIDE} pixels")
    flat = np.zeros(SIDE * SIDE, dtype=bool)
    for start, length in pairs.reshape(-1, 2):
        flat[start : start + length] = True
    mask = flat.reshape(SIDE, SIDE)
    mask[[0, -1]] = mask[:, [0, -1]] = True
    return mask


def read_benchmark(folder: str | Path) -> list[BenchmarkEdit]:
    """Read all edits of a benchmark folder in PIE-Bench's format.

    Raises:
        ValueError: the folder is not a valid benchmark. The error message names the invalid file, edit and field.
    """
    path = Path(folder) / MAPPING
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {MAPPING}: set task.benchmark to PIE-Bench's folder, or create a benchmark with "
            "`python -m experiments.editing.make_benchmark`."
        )
    try:
        mapping = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({first_line(error)}): copy the file again.") from None
    if not isinstance(mapping, dict) or not mapping:
        raise ValueError(f"{path} contains no edits: copy the file again.")
    return [_read_edit(path, key, entry) for key, entry in mapping.items()]


def _read_edit(path: Path, key: str, entry: dict[str, Any]) -> BenchmarkEdit:
    missing = [name for name in (*TEXTS, "editing_type_id", "mask") if not isinstance(entry, dict) or name not in entry]
    if missing:
        raise ValueError(f"edit {key} of {path} has no field {missing[0]}: copy the file again.")
    for name in (*TEXTS, *OPTIONAL_TEXTS):
        value = entry.get(name)
        if not isinstance(value, str) and not (name in OPTIONAL_TEXTS and value is None):
            raise ValueError(f"edit {key} of {path}: {name} must be a string, got {value!r:.60}; copy the file again.")
    if str(entry["editing_type_id"]) not in map(str, range(len(KINDS))):
        raise ValueError(
            f"edit {key} of {path}: editing_type_id must be an integer from 0 to 9, got "
            f"{entry['editing_type_id']!r}; copy the file again."
        )
    try:
        mask = decode_mask(entry["mask"])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"edit {key} of {path}: invalid mask ({first_line(error)}); copy the file again.") from None
    target = entry.get("target_image_path")
    return BenchmarkEdit(
        key=key,
        image=_image_file(path, key, entry["image_path"]),
        source=_without_brackets(entry["original_prompt"]),
        target=_without_brackets(entry["editing_prompt"]),
        instruction=entry["editing_instruction"],
        kind=int(entry["editing_type_id"]),
        words=tuple(entry["blended_word"].split()),
        mask=mask,
        target_image=None if target is None else _image_file(path, key, target),
        concept=entry.get("target_concept"),
    )


def _image_file(path: Path, key: str, name: str) -> Path:
    file = path.parent / IMAGES / name
    if not file.is_file():
        raise ValueError(f"edit {key} of {path}: {file} does not exist; copy the whole benchmark.")
    return file


def _without_brackets(prompt: str) -> str:
    return prompt.replace("[", "").replace("]", "")
