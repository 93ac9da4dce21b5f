"""The format of PIE-Bench (Ju et al. 2023, https://arxiv.org/abs/2310.01506): edits of images, with masks."""

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

SIDE = 512  # of the masks, whatever the images' size
MAPPING, IMAGES = "mapping_file.json", "annotation_images"
KINDS = (
    "random", "change object", "add object", "delete object", "change attribute content", "change attribute pose",
    "change attribute color", "change attribute material", "change background", "change style",
)  # fmt: skip
KEYS = (
    "image_path",
    "original_prompt",
    "editing_prompt",
    "editing_instruction",
    "editing_type_id",
    "blended_word",
    "mask",
)


@dataclass(frozen=True)
class BenchmarkEdit:
    """One edit of the benchmark.

    Attributes:
        key: its name in the mapping file.
        image: the file of the image to be edited.
        source, target: the prompts of the image and of the edit, without brackets.
        kind: the place of its type in ``KINDS``.
        words: what the source names and what the edit does; empty where the benchmark says none.
        mask: bool ``[512,512]``, what is to be edited.
        target_image: the file of the true edit, where it is known.
        concept: what the edited image shows, where it is known.
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

    def picture(self, size: tuple[int, int], *, target: bool = False) -> Tensor:
        """``[3,H,W]`` in [0, 1], at ``size`` pixels: the image, or the true edit."""
        path = self.target_image if target else self.image
        if path is None:
            raise ValueError(f"the benchmark does not say what edit {self.key} should look like.")
        with Image.open(path) as image:
            array = np.array(image.convert("RGB").resize(size[::-1], Image.Resampling.BOX), dtype=np.float32)
        return torch.from_numpy(array / 255).permute(2, 0, 1)

    def mask_at(self, size: tuple[int, int]) -> Tensor:
        """``mask`` at ``(H, W)`` pixels, bool: one is to be edited if at least half of it is."""
        mask = torch.from_numpy(self.mask).float()[None, None]
        return F.interpolate(mask, size, mode="area")[0, 0] >= 0.5


def encode_mask(mask: np.ndarray) -> list[int]:
    """Start, length, start, length ... of the runs of ``mask [512,512]``, by rows."""
    flat = np.concatenate([[0], np.asarray(mask, dtype=bool).ravel(), [0]]).astype(np.int8)
    starts, ends = (np.flatnonzero(np.diff(flat) == sign) for sign in (1, -1))
    return [int(number) for pair in zip(starts, ends - starts, strict=True) for number in pair]


def decode_mask(runs: Sequence[int]) -> np.ndarray:
    """Bool ``[512,512]``. The benchmark's own rule sets the four border lines, whatever the runs say.

    Raises:
        ValueError: an odd count, or a run that leaves the image.
    """
    pairs = np.asarray(runs, dtype=np.int64).reshape(-1) if len(runs) else np.zeros(0, dtype=np.int64)
    if len(pairs) % 2 or (pairs < 0).any() or (pairs[::2] + pairs[1::2] > SIDE * SIDE).any():
        raise ValueError(f"must be starts and lengths within {SIDE} x {SIDE} pixels")
    flat = np.zeros(SIDE * SIDE, dtype=bool)
    for start, length in pairs.reshape(-1, 2):
        flat[start : start + length] = True
    mask = flat.reshape(SIDE, SIDE)
    mask[[0, -1]] = mask[:, [0, -1]] = True
    return mask


def read_benchmark(folder: str | Path) -> list[BenchmarkEdit]:
    """The edits of a folder in PIE-Bench's format: the user's own copy of it, or ours.

    Raises:
        ValueError: one sentence that names the file, the edit and the field.
    """
    path = Path(folder) / MAPPING
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {MAPPING}: name PIE-Bench's folder, or make one by "
            "`python -m experiments.editing.make_benchmark`."
        )
    try:
        mapping = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): copy it again.") from None
    if not isinstance(mapping, dict) or not mapping:
        raise ValueError(f"{path} holds no edits: copy it again.")
    return [_read(path, key, entry) for key, entry in mapping.items()]


def _read(path: Path, key: str, entry: dict[str, Any]) -> BenchmarkEdit:
    missing = [name for name in KEYS if not isinstance(entry, dict) or name not in entry]
    if missing:
        raise ValueError(f"edit {key} of {path} has no {missing[0]}: copy the file again.")
    if str(entry["editing_type_id"]) not in map(str, range(len(KINDS))):
        raise ValueError(f"edit {key} of {path}: editing_type_id={entry['editing_type_id']!r} is none of 0 to 9.")
    try:
        mask = decode_mask(entry["mask"])
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"edit {key} of {path}: its mask is wrong ({error}).") from None
    target = entry.get("target_image_path")
    return BenchmarkEdit(
        key=key,
        image=_existing(path, key, entry["image_path"]),
        source=_unbracketed(entry["original_prompt"]),
        target=_unbracketed(entry["editing_prompt"]),
        instruction=entry["editing_instruction"],
        kind=int(entry["editing_type_id"]),
        words=tuple(entry["blended_word"].split()),
        mask=mask,
        target_image=None if target is None else _existing(path, key, target),
        concept=entry.get("target_concept"),
    )


def _existing(path: Path, key: str, name: str) -> Path:
    file = path.parent / IMAGES / name
    if not file.is_file():
        raise ValueError(f"edit {key} of {path} names {file}, which does not exist: copy the folder as a whole.")
    return file


def _unbracketed(prompt: str) -> str:
    return prompt.replace("[", "").replace("]", "")
