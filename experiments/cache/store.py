"""Stores of results on disk: a store of inverted seeds for all runs, and stores of the finished units of an experiment.

A unit is the smallest piece of work that a resumed run can skip, for example generating the images of one concept.
Files are written atomically: if a process is killed while it writes a file, the file is not created.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from experiments.cache.atomic import CannotRead, atomic_write, digest, finished_files

torch.backends.cudnn.allow_tf32 = False
# TF32 is disabled in every process that stores results. With TF32, cuDNN rounds the inputs of a convolution to 10 bits,
# which causes a relative error of 1e-3 in the network's output. The residual of an inversion (error of the equation
# that a step solves) cannot become smaller than the error of the network.

CACHE_VERSION = 4
"""Version of the cache, which is part of every cache key.

Increase the version when a change of the code changes the stored units or seeds for unchanged settings. Results that
were stored with an earlier version are computed again.
"""


def content_hash(image: Tensor) -> str:
    """Return the SHA-256 hash of the shape and the pixels of an image."""
    pixels = image.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{tuple(image.shape)}".encode() + pixels).hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return the tensors and the metadata of a safetensors file, or None if the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}

    # save_file makes files that only the user can read, so the bytes are written with the permissions of the umask.
    atomic_write(path, lambda temporary: temporary.write_bytes(safetensors.torch.save(contiguous, metadata)))


def _is_complete(path: Path) -> bool:
    """Return whether a safetensors file exists and has the length that its header states."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False


class SeedStore:
    """A cache of tensors on disk. The key of an entry contains all settings on which the tensors depend.

    The key of an inverted seed (initial noise latent of an image) contains the checkpoint, numerical settings
    (precision, device), the inversion method with its settings, the schedule, the guidance scale, the prompt and the
    image. A ``SeedStore`` also stores the features of real images.

    Args:
        root: folder of the files; each file contains one entry.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def get(self, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Return the tensors stored under ``key``, or None if the file for ``key`` does not exist or is damaged."""
        content = _read(self._path(key))
        return content[0] if content else None

    def put(self, key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Store the tensors under ``key`` in one file. The header of the file contains ``key`` in JSON format."""
        _write(self._path(key), tensors, {"key": json.dumps(key, sort_keys=True, ensure_ascii=False)})

    def _path(self, key: Mapping[str, Any]) -> Path:
        name = digest({"version": CACHE_VERSION, "key": key})
        return self.root / name[:2] / f"{name}.safetensors"


class UnitStore:
    """A store of the results of finished units; a unit is the smallest piece of work that a resumed run can skip.

    Args:
        root: folder that contains one subfolder per combination of ``settings``.
        settings: all settings on which the results of the units depend.
    """

    def __init__(self, root: str | Path, settings: Mapping[str, Any]) -> None:
        self.root = Path(root) / digest({"version": CACHE_VERSION, "settings": settings})[:16]
        self.settings = settings

    def done(self, unit: str) -> bool:
        """Return whether the result of ``unit``, such as the images of one concept, is completely on disk."""
        return _is_complete(self._path(unit))

    def empty(self) -> bool:
        """Return whether the store contains no results, such as the images of a concept."""
        return not self.files()

    def files(self) -> list[Path]:
        """Return the files of results, sorted by file name; a file contains, for example, the images of one concept."""
        return finished_files(self.root, "*.safetensors")

    def write(self, unit: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Store the result of a finished unit of work, for example of the generation of one concept's images.

        ``tensors`` are, for example, the generated images, and ``record`` contains the measured values as plain data.
        """
        _write(self._path(unit), tensors, {"unit": unit, "record": json.dumps(record)})

    def read(self, unit: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the result of a finished unit of work, for example of the generation of one concept's images.

        The result consists of tensors, such as the images, and of a record, which contains the measured values.

        Raises:
            CannotRead: the file of the unit is missing or damaged.
        """
        content = _read(self._path(unit))
        if content is None:
            raise CannotRead(
                f"{self._path(unit)} (unit {unit}) is missing or damaged: check the disk and run the same command "
                "again, which computes the unit again."
            )
        return content[0], json.loads(content[1]["record"])

    def record(self, unit: str) -> dict[str, Any]:
        """Return the record (measured values) of a finished unit of work, without reading the tensors of the unit."""
        with safe_open(self._path(unit), framework="pt") as file:
            return json.loads(file.metadata()["record"])

    def lease_name(self, unit: str) -> str:
        """Return the name of a unit's lease, the temporary exclusive right of a process to compute the unit.

        The name of the lease depends on the settings of the store.
        """
        return f"{self.root.parent.name[:24]}-{self.root.name}-{self._path(unit).stem}".replace("~", "_")

    def _path(self, unit: str) -> Path:
        return self.root / f"{hashlib.sha256(unit.encode()).hexdigest()[:24]}.safetensors"
