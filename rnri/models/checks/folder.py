"""What a local checkpoint folder must hold, looked at before any of it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

IGNORED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
SHARD = r"-\d+-of-\d+\."
VOCABULARIES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("tokenizer.model",),
    ("vocab.txt",),
)
"""Files that make a tokenizer, each group by itself."""


def is_local(source: str) -> bool:
    """A hub id is ``owner/name``; anything else, and whatever exists on disk, is a folder."""
    return Path(source).exists() or re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) is None


def component_names(index: Mapping[str, object]) -> list[str]:
    """The parts that a pipeline's index names and that are loaded."""
    named = [
        name for name, value in index.items() if isinstance(value, list | tuple) and value and value[0] is not None
    ]
    return [name for name in named if name not in IGNORED_COMPONENTS]


def check_folder(folder: Path) -> None:
    """ValueError unless ``folder`` is one that ``save_pretrained`` writes, with an index that can be read."""
    if folder.is_file():
        raise ValueError(
            f"checkpoint {str(folder)!r} is a single file: turn it into a folder once with diffusers' "
            "StableDiffusionPipeline.from_single_file(FILE, config=FOLDER_OR_HUB_ID_OF_THE_SAME_ARCHITECTURE)"
            ".save_pretrained(FOLDER), or StableDiffusionXLPipeline's, and give that folder."
        )
    if not folder.exists() and folder.suffix.lower() in SINGLE_FILES:
        raise ValueError(f"checkpoint file {str(folder)!r} does not exist.")
    if not folder.is_dir():
        raise ValueError(
            f"checkpoint folder {str(folder)!r} does not exist; give a folder saved by diffusers' "
            "save_pretrained, or a hub id (owner/name)."
        )
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"checkpoint folder {str(folder)!r} has no model_index.json, so it is no diffusers pipeline.")
    _read_json(folder / "model_index.json")


def check_components(folder: Path, index: Mapping[str, object], variant: str | None) -> None:
    """ValueError names the first part, or file of a part, that ``folder`` lacks."""
    for name in component_names(index):
        part = folder / name
        if not part.is_dir():
            raise ValueError(
                f"checkpoint folder {str(folder)!r} lacks its part {name!r}, which model_index.json names."
            )
        if name.startswith("tokenizer"):
            _check_tokenizer(folder, name)
        elif name == "scheduler":
            _check_json(folder, name, "scheduler_config.json")
        else:
            _check_json(folder, name, "config.json")
            _check_weights(folder, name, variant)
    weighty = [folder / name for name in component_names(index) if not name.startswith(("tokenizer", "scheduler"))]
    if variant and not any(variant in _variants(part) for part in weighty):
        raise ValueError(
            f"checkpoint folder {str(folder)!r} lacks the weights (*.{variant}*.safetensors) of every part: leave "
            "model.variant out, which is null."
        )


def available_variant(folder: Path, name: str, variant: str | None) -> str | None:
    """``variant``, or None where a part has its weights without it only, as diffusers itself takes them."""
    return variant if variant in _variants(folder / name) else None


def _check_tokenizer(folder: Path, name: str) -> None:
    part = folder / name
    if not any(all((part / file).is_file() for file in files) for files in VOCABULARIES):
        raise ValueError(
            f"checkpoint folder {str(folder)!r} lacks the vocabulary of its part {name!r}: tokenizer.json, or "
            "vocab.json and merges.txt; without it every prompt would be the same."
        )
    for file in part.glob("*.json"):
        _read_json(file)


def _check_json(folder: Path, name: str, file: str) -> None:
    if not (folder / name / file).is_file():
        raise ValueError(f"checkpoint folder {str(folder)!r} lacks {file} in its part {name!r}.")
    _read_json(folder / name / file)


def _read_json(path: Path) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as JSON ({str(error).splitlines()[0]}): bring the file anew."
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: bring the file anew.")


def _variants(part: Path) -> set[str | None]:
    """Which variants of its weights a part has; None is that without a name."""
    found: set[str | None] = set()
    for path in part.iterdir():
        match = re.fullmatch(
            rf"(?:{'|'.join(STEMS)})(?:\.([\w-]+?))?(?:-\d+-of-\d+)?"
            r"\.(?:safetensors|bin)",
            path.name,
        )
        if match:
            found.add(match.group(1))
    return found


def _check_weights(folder: Path, name: str, variant: str | None) -> None:
    found = _variants(folder / name)
    if variant in found or None in found:
        _check_shards(folder, name, variant if variant in found else None)
        return
    if found:
        others = sorted(filter(None, found))
        raise ValueError(
            f"checkpoint folder {str(folder)!r} has the weights of its part {name!r} only as the variant "
            f"{', '.join(others)}: set model.variant={others[0]}."
        )
    raise ValueError(f"checkpoint folder {str(folder)!r} lacks the weights (*.safetensors) of {name!r}.")


def _check_shards(folder: Path, name: str, variant: str | None) -> None:
    """ValueError where weights are in several files and one is missing, or the index that says what is where."""
    part, infix = folder / name, f".{variant}" if variant else ""
    whole = [part / f"{stem}{infix}.{suffix}" for stem in STEMS for suffix in ("safetensors", "bin")]
    if any(path.is_file() for path in whole):
        return
    indices = [part / f"{stem}.{suffix}.index{infix}.json" for stem in STEMS for suffix in ("safetensors", "bin")]
    index = next((path for path in indices if path.is_file()), None)
    if index is None:
        shard = sorted(path.name for path in part.iterdir() if re.search(SHARD, path.name))[0]
        raise ValueError(
            f"checkpoint folder {str(folder)!r} has the weights of its part {name!r} in several files ({shard}), but "
            f"lacks their index, {re.sub(SHARD, '.', shard.replace(infix, ''))}.index{infix}.json: bring it from where "
            "they are from."
        )
    _read_json(index)
    places = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map, which says in what file each weight is: bring the file anew.")
    missing = sorted({str(file) for file in places.values() if not (part / str(file)).is_file()})
    if missing:
        raise ValueError(
            f"checkpoint folder {str(folder)!r} lacks {missing[0]} of its part {name!r} ({len(missing)} files in all), "
            f"which {index.name} names: bring the file anew."
        )
