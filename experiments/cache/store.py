"""Results on disk, safe to kill at any moment: what other runs may reuse, as seeds, and an experiment's units."""

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
# Single precision means it, in whatever process stores what it computes: cuDNN would round each convolution's inputs to
# ten bits, an error of 1e-3, and inversions end where the network's rounding is as large as their residual.

CACHE_VERSION = 1
"""Part of every key: raise it with a change of code that changes what a unit or a seed holds under the same settings.

A function's key is its name, so that what it does is not seen otherwise.
"""


def content_hash(image: Tensor) -> str:
    """SHA-256 of an image's shape and pixels."""
    pixels = image.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{tuple(image.shape)}".encode() + pixels).hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and metadata of a safetensors file; None where it is missing or was damaged."""
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
        except SafetensorError as error:  # a full disk, for one
            raise OSError(str(error)) from error

    atomic_write(path, save)


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is there and as long as its header says; its tensors are not read."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False


class SeedStore:
    """Seeds by what they depend on: checkpoint, numerics, method and settings, schedule, guidance, prompt, image.

    Features of real images are kept alike.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def key(self, **fields: Any) -> dict[str, Any]:
        return fields

    def get(self, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """What was put under ``key``, or None; a damaged file counts as absent and is written anew."""
        found = _read(self._path(key))
        return found[0] if found else None

    def put(self, key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keeps the tensors, with the key's fields in the file's header."""
        _write(self._path(key), tensors, {"key": json.dumps(key, sort_keys=True, ensure_ascii=False)})

    def _path(self, key: Mapping[str, Any]) -> Path:
        name = digest({"rules": CACHE_VERSION, "key": key})
        return self.root / name[:2] / f"{name}.safetensors"


class UnitStore:
    """Finished units of an experiment under one set of settings; other settings never see them."""

    def __init__(self, root: str | Path, settings: Mapping[str, Any]) -> None:
        self.root = Path(root) / digest({"rules": CACHE_VERSION, "settings": settings})[:16]
        self.settings = settings

    def done(self, unit: str) -> bool:
        return _is_whole(self._path(unit))

    def empty(self) -> bool:
        """Whether no unit is finished."""
        return not self.root.is_dir() or not any(self.root.glob("*.safetensors"))

    def write(self, unit: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        _write(self._path(unit), tensors, {"unit": unit, "record": json.dumps(record)})

    def read(self, unit: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and record of a finished unit. CannotRead where it is not finished, or is no longer there."""
        found = _read(self._path(unit))
        if found is None:
            raise CannotRead(
                f"{self._path(unit)}, the unit {unit}, is not there or damaged: is its disk there? The same command "
                "makes it anew."
            )
        return found[0], json.loads(found[1]["record"])

    def record(self, unit: str) -> dict[str, Any]:
        """The record of a finished unit alone: its tensors are not read."""
        with safe_open(self._path(unit), framework="pt") as file:
            return json.loads(file.metadata()["record"])

    def claim(self, unit: str) -> str:
        """The name by which a unit under these settings is claimed."""
        return f"{self.root.parent.name[:24]}-{self.root.name}-{self._path(unit).stem}".replace("~", "_")

    def _path(self, unit: str) -> Path:
        return self.root / f"{hashlib.sha256(unit.encode()).hexdigest()[:24]}.safetensors"


def numerics(precision: str, device: torch.device) -> dict[str, str]:
    """What of a machine and a trainer changes a network's output: part of the key of all that it makes.

    Rounding differs between kinds of device, and far more between precisions. It differs with the batch as well, but a
    run that was interrupted groups its units anew: what they hold is the same up to rounding, and no batch is in a key.
    """
    found = {"precision": precision, "device": device.type, "matmul": torch.get_float32_matmul_precision()}
    if device.type == "cuda":
        found["convolutions"] = "tf32" if torch.backends.cudnn.allow_tf32 else "highest"
    return found


def synchronize(device: torch.device) -> None:
    """Waits for the device, so that a clock read next has seen its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
