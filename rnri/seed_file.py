"""Seed files: safetensors files that contain inverted seeds and the settings to regenerate images from the seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FORMAT = "seed-exploration 3"
"""Value of the metadata entry ``format`` of a seed file."""


def write_seed_file(path: str | Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Path:
    """Write ``tensors`` and ``settings`` to the safetensors file ``path`` and return the path.

    Args:
        path: path of the file; its folder is created if it does not exist.
        tensors: maps names to tensors; the tensor ``latents`` contains the seeds.
        settings: maps names to values that JSON can represent.

    Raises:
        ValueError: ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; pass the path of a file, such as {path / 'seed.safetensors'}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": FORMAT} | {key: json.dumps(value) for key, value in settings.items()}
    values = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    path.write_bytes(safetensors.torch.save(values, metadata))  # save_file makes files that only the user can read
    return path


def read_seed_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the settings of a file that :func:`write_seed_file` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file was not written by :func:`write_seed_file`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file; use a file that PipelineInversion.save wrote.") from error
    if metadata.pop("format", None) != FORMAT or "latents" not in tensors:
        raise ValueError(f"{path}: not a seed file of format {FORMAT!r}; use a file that PipelineInversion.save wrote.")
    try:
        return tensors, {key: json.loads(value) for key, value in metadata.items()}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: the metadata is not valid JSON; save the inversion again.") from error
