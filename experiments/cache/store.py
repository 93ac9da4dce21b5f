"""Stores of results on disk: seeds that several runs share, and the finished units of an experiment.

A store can be interrupted at any time: a file is complete or absent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.cache.atomic import CannotRead, atomic_write, digest

torch.backends.cudnn.allow_tf32 = False
# Every process that stores results computes in full float32. With TF32, cuDNN rounds the inputs of a convolution to ten
# bits, an error of 1e-3, and the residual of an inversion cannot fall below the rounding error of the network.

CACHE_VERSION = 2
"""Part of every key. Increase it when a change of code changes what a unit or a seed contains under equal settings.

Version 2: new names of classes, settings and columns.
"""


def content_hash(image: Tensor) -> str:
    """Return the SHA-256 of an image's shape and pixels."""
    pixels = image.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{tuple(image.shape)}".encode() + pixels).hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return tensors and metadata of a safetensors file, or None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def save(temporary: Path) -> None:
        try:
            save_file(contiguous, temporary, metadata)
        except SafetensorError as error:  # for example, a full disk
            raise OSError(str(error)) from error

    atomic_write(path, save)


def _is_complete(path: Path) -> bool:
    """Return whether a safetensors file exists and has the length that its header states."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False


class SeedStore:
    """Tensors by a key of everything that they depend on.

    Inverted seeds are stored under checkpoint, numerics, method, settings, schedule, guidance, prompt and image.
    Features of real images are stored in the same way.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def get(self, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Return the tensors stored under ``key``, or None if there are none or the file is damaged."""
        content = _read(self._path(key))
        return content[0] if content else None

    def put(self, key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors, with the fields of the key in the file's header."""
        _write(self._path(key), tensors, {"key": json.dumps(key, sort_keys=True, ensure_ascii=False)})

    def _path(self, key: Mapping[str, Any]) -> Path:
        name = digest({"version": CACHE_VERSION, "key": key})
        return self.root / name[:2] / f"{name}.safetensors"


class UnitStore:
    """The finished units of an experiment under one set of settings. Other settings use another folder."""

    def __init__(self, root: str | Path, settings: Mapping[str, Any]) -> None:
        self.root = Path(root) / digest({"version": CACHE_VERSION, "settings": settings})[:16]
        self.settings = settings

    def done(self, unit: str) -> bool:
        """Return whether a unit is finished."""
        return _is_complete(self._path(unit))

    def empty(self) -> bool:
        """Return whether no unit is finished."""
        return not self.root.is_dir() or not any(self.root.glob("*.safetensors"))

    def write(self, unit: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Store a finished unit."""
        _write(self._path(unit), tensors, {"unit": unit, "record": json.dumps(record)})

    def read(self, unit: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors and record of a finished unit.

        Raises:
            CannotRead: the unit is not finished, or its file is damaged or no longer there.
        """
        content = _read(self._path(unit))
        if content is None:
            raise CannotRead(
                f"{self._path(unit)} (unit {unit}) is missing or damaged: check its disk and run the same command "
                "again, which computes it again."
            )
        return content[0], json.loads(content[1]["record"])

    def record(self, unit: str) -> dict[str, Any]:
        """Return the record of a finished unit without reading its tensors."""
        with safe_open(self._path(unit), framework="pt") as file:
            return json.loads(file.metadata()["record"])

    def lease_name(self, unit: str) -> str:
        """Return the name of the lease on a unit under these settings."""
        return f"{self.root.parent.name[:24]}-{self.root.name}-{self._path(unit).stem}".replace("~", "_")

    def _path(self, unit: str) -> Path:
        return self.root / f"{hashlib.sha256(unit.encode()).hexdigest()[:24]}.safetensors"
