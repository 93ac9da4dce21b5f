"""Checks of a local checkpoint folder, before its weights are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnri.loading import check_vocabulary_files
from rnri.models.checks.configs import check_config
from rnri.validation import first_line

IGNORED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
TOKENIZER_PREFIXES = ("tokenizer", "processor")
"""Prefixes of the names of components that are tokenizers, or processors that contain a tokenizer."""
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
WEIGHT_STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
WEIGHT_SUFFIXES = ("safetensors", "bin")
SHARD_NUMBER = r"-\d+-of-\d+\."
LFS_POINTER_PREFIX = b"version https://git-lfs"


def is_local(source: str) -> bool:
    """Return True if the path ``source`` exists or if ``source`` does not have the form ``owner/name`` of a hub id."""
    return Path(source).exists() or re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) is None


def component_names(index: Mapping[str, object]) -> list[str]:
    """Return the names of the pipeline components to load, without unused components such as the safety checker.

    ``index`` is the content of ``model_index.json``.
    """
    names = [
        name
        for name, value in index.items()
        if isinstance(value, list | tuple) and value and value[0] is not None and not is_list_of_floats(value)
    ]
    return [name for name in names if name not in IGNORED_COMPONENTS]


def is_list_of_floats(value: object) -> bool:
    """Return whether ``value`` is a list of floats, such as sigmas: a setting of the pipeline and not a component."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, float) for item in value)


def check_folder(folder: Path) -> None:
    """Raise ValueError unless ``folder`` is a pipeline folder written by ``save_pretrained``.

    The folder must contain a ``model_index.json`` that can be read.
    """
    if folder.is_file():
        raise ValueError(
            f"checkpoint {str(folder)!r} is a single file: convert it to a folder once with diffusers' "
            "StableDiffusionPipeline.from_single_file(FILE, config=FOLDER_OR_HUB_ID_OF_THE_SAME_ARCHITECTURE)"
            ".save_pretrained(FOLDER) (for SDXL, with StableDiffusionXLPipeline), and pass that folder."
        )
    if not folder.exists() and folder.suffix.lower() in SINGLE_FILE_SUFFIXES:
        raise ValueError(f"checkpoint file {str(folder)!r} does not exist; check the path.")
    if not folder.is_dir():
        raise ValueError(
            f"checkpoint folder {str(folder)!r} does not exist; pass a folder saved by diffusers' save_pretrained, or "
            "a hub id (owner/name)."
        )
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"checkpoint folder {str(folder)!r} has no model_index.json, so it is not a diffusers pipeline."
        )
    _read_json(folder / "model_index.json")


def check_components(folder: Path, index: Mapping[str, object], variant: str | None) -> None:
    """Raise ValueError if ``folder`` lacks a component or a file of a component; the error names one missing part."""
    names = component_names(index)
    for name in names:
        if not (folder / name).is_dir():
            raise ValueError(
                f"checkpoint folder {str(folder)!r} lacks its component {name!r}, which model_index.json lists: "
                "download the component."
            )
        if name.startswith(TOKENIZER_PREFIXES):
            _check_tokenizer(folder, name)
        elif name == "scheduler":
            _check_json(folder, name, "scheduler_config.json")
        else:
            _check_json(folder, name, "config.json")
            _check_weights(folder, name, variant)
    networks = [folder / name for name in names if not name.startswith((*TOKENIZER_PREFIXES, "scheduler"))]
    if variant and not any(variant in _variants(network) for network in networks):
        raise ValueError(
            f"checkpoint folder {str(folder)!r} has no component with weights of the variant {variant!r} "
            f"(*.{variant}*.safetensors): set model.variant to null."
        )


def available_variant(folder: Path, name: str, variant: str | None) -> str | None:
    """Return ``variant`` if the component ``name`` has weights of this variant, otherwise None."""
    return variant if variant in _variants(folder / name) else None


def _check_tokenizer(folder: Path, name: str) -> None:
    component = folder / name
    check_vocabulary_files(component, f"checkpoint folder {str(folder)!r}", f"its component {name!r}")
    for file in component.glob("[!.]*.json"):
        _read_json(file)


def _check_json(folder: Path, name: str, file: str) -> None:
    if not (folder / name / file).is_file():
        raise ValueError(
            f"checkpoint folder {str(folder)!r} lacks {file} in its component {name!r}: download the file."
        )
    check_config(name, _read_json(folder / name / file), str(folder / name / file))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not valid JSON ({first_line(error)}); download the file again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not contain a JSON object; download the file again.")
    return content


def _variants(component: Path) -> set[str | None]:
    """Return the names of the variants of a component's weight files; None stands for files without a variant name."""
    pattern = rf"(?:{'|'.join(WEIGHT_STEMS)})(?:\.([\w-]+?))?(?:-\d+-of-\d+)?\.(?:{'|'.join(WEIGHT_SUFFIXES)})"
    matches = [re.fullmatch(pattern, path.name) for path in component.iterdir()]
    return {match.group(1) for match in matches if match}


def _check_weights(folder: Path, name: str, variant: str | None) -> None:
    variants = _variants(folder / name)
    if not variants:
        raise ValueError(
            f"checkpoint folder {str(folder)!r} lacks the weights (*.safetensors) of {name!r}: download the weights."
        )
    if variant not in variants and None not in variants:
        others = sorted(filter(None, variants))
        raise ValueError(
            f"checkpoint folder {str(folder)!r} has the weights of its component {name!r} only as the variant "
            f"{', '.join(others)}: set model.variant={others[0]}."
        )
    for path in _weight_files(folder, name, variant if variant in variants else None):
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER_PREFIX)) == LFS_POINTER_PREFIX:
                raise ValueError(f"{path} is a Git LFS pointer, not weights: download the file with git lfs pull.")


def _weight_files(folder: Path, name: str, variant: str | None) -> list[Path]:
    """Return the weight files of a component.

    Raises:
        ValueError: the weights are divided into several files (shards), and a shard or the index of the shards is
            missing.
    """
    component = folder / name
    infix = f".{variant}" if variant else ""
    single_files = [component / f"{stem}{infix}.{suffix}" for stem in WEIGHT_STEMS for suffix in WEIGHT_SUFFIXES]
    for path in single_files:
        if path.is_file():
            return [path]
    indices = [component / f"{stem}.{suffix}.index{infix}.json" for stem in WEIGHT_STEMS for suffix in WEIGHT_SUFFIXES]
    index = next((path for path in indices if path.is_file()), None)
    if index is None:
        shard = sorted(path.name for path in component.iterdir() if re.search(SHARD_NUMBER, path.name))[0]
        index_name = f"{re.sub(SHARD_NUMBER, '.', shard.replace(infix, ''))}.index{infix}.json"
        raise ValueError(
            f"checkpoint folder {str(folder)!r} has the weights of its component {name!r} in several files ({shard}), "
            f"but lacks the index {index_name} of these files: download the index."
        )
    files = [component / str(file) for file in sorted(set(_read_json(index).get("weight_map", {}).values()))]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise ValueError(
            f"checkpoint folder {str(folder)!r} lacks {missing[0].name} of its component {name!r} ({len(missing)} "
            f"missing files), which {index.name} lists: download the missing files."
        )
    return files
