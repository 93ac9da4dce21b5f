"""Loading a diffusers pipeline with its faults found, and named, before the weights are read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

REQUIRED_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")


def load_pipeline(
    path: str | Path, *, dtype: torch.dtype | str, local_files_only: bool, variant: str | None, revision: str | None
) -> DiffusionPipeline:
    """The pipeline at a local folder or hub id, without safety checker.

    Raises:
        ValueError: one sentence for an unknown ``dtype``, a folder that does not exist or lacks a part, an
            unreachable hub id, a pipeline without a UNet, or weights that cannot be read.
    """
    source, dtype = str(path), _as_dtype(dtype)
    if _is_local(source):
        _check_folder(Path(source), variant)
    index = _model_index(source, local_files_only, revision)
    _check_parts(source, index)
    unused = {name: None for name in UNUSED_PARTS if name in index}
    if "safety_checker" in unused:
        unused["requires_safety_checker"] = False
    try:
        return DiffusionPipeline.from_pretrained(
            source,
            dtype=dtype,
            local_files_only=local_files_only,
            variant=variant,
            revision=revision,
            **unused,
        )
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(f"checkpoint {source!r} could not be loaded: {_first_line(error)}") from error


def fingerprint(modules: Mapping[str, nn.Module], settings: Mapping[str, object]) -> str:
    """A stable SHA-256 of weights (values and dtype), network configs and ``settings``, wherever they lie."""
    digest = hashlib.sha256()
    for name, module in sorted(modules.items()):
        digest.update(f"{name} {_canonical(_config(module))}".encode())
        for key, tensor in sorted(module.state_dict().items()):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy())
    digest.update(_canonical(settings).encode())
    return digest.hexdigest()


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype of that name, which a config gives; diffusers would take float32 for any name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in DTYPES:
        raise ValueError(
            f"dtype={dtype!r} is unknown: choose {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}."
        )
    return found


def _is_local(source: str) -> bool:
    """A hub id is ``owner/name``; anything else, and whatever exists on disk, is a folder."""
    return Path(source).exists() or re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) is None


def _check_folder(folder: Path, variant: str | None) -> None:
    if not folder.is_dir():
        raise ValueError(
            f"checkpoint folder {str(folder)!r} does not exist; give a folder saved by diffusers' "
            "save_pretrained, or a hub id (owner/name)."
        )
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"checkpoint folder {str(folder)!r} has no model_index.json, so it is no diffusers pipeline.")
    index = _model_index(str(folder), True, None)
    _check_parts(str(folder), index)
    for name in _parts(index):
        _check_part(folder, name, variant)


def _check_part(folder: Path, name: str, variant: str | None) -> None:
    part = folder / name
    if not part.is_dir():
        raise ValueError(f"checkpoint folder {str(folder)!r} lacks its part {name!r}, which model_index.json names.")
    if name.startswith("tokenizer"):
        needed = ("tokenizer.json", "vocab.json", "tokenizer_config.json")
    elif name == "scheduler":
        needed = ("scheduler_config.json",)
    else:
        needed = ("config.json",)
    if not any((part / file).is_file() for file in needed):
        raise ValueError(f"checkpoint folder {str(folder)!r} lacks {needed[0]} in its part {name!r}.")
    stem = f"*.{variant}*" if variant else "*"
    weighty = needed == ("config.json",)
    if weighty and not any([*part.glob(f"{stem}.safetensors"), *part.glob(f"{stem}.bin")]):
        raise ValueError(f"checkpoint folder {str(folder)!r} lacks the weights ({stem}.safetensors) of {name!r}.")


def _parts(index: Mapping[str, object]) -> list[str]:
    """The parts that a pipeline's index names and that are loaded."""
    named = [name for name, value in index.items() if isinstance(value, list | tuple) and value[0] is not None]
    return [name for name in named if name not in UNUSED_PARTS]


def _check_parts(source: str, index: Mapping[str, object]) -> None:
    parts = _parts(index)
    if "unet" not in parts:
        raise ValueError(
            f"checkpoint {source!r} is a {index.get('_class_name')} without a UNet; "
            "use a Stable Diffusion 1.x, 2.x, XL, turbo or LCM checkpoint."
        )
    missing = [name for name in REQUIRED_PARTS if name not in parts]
    if missing:
        raise ValueError(
            f"model_index.json of checkpoint {source!r} names no {', '.join(missing)}; a text-to-image "
            f"latent diffusion pipeline needs unet, {', '.join(REQUIRED_PARTS)}."
        )


def _model_index(source: str, local_files_only: bool, revision: str | None) -> dict[str, object]:
    try:
        return dict(DiffusionPipeline.load_config(source, local_files_only=local_files_only, revision=revision))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint {source!r} is neither a local folder nor a reachable hub id: {_first_line(error)}"
        ) from error


def _config(module: nn.Module) -> dict[str, object]:
    config = module.config
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def _canonical(settings: Mapping[str, object]) -> str:
    """JSON without what says only where or by which version the file was written."""
    kept = {k: v for k, v in settings.items() if not k.startswith("_") and k not in ("transformers_version", "dtype")}
    return json.dumps(kept, sort_keys=True, default=str)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
