"""Loading a diffusers pipeline with its faults found, and named, before the weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from rnri.models.checks.folder import (
    IGNORED_COMPONENTS,
    available_variant,
    check_components,
    check_folder,
    component_names,
    is_local,
)
from rnri.models.checks.tokenizers import limit_prompt_lengths
from rnri.models.families import FAMILIES
from rnri.models.family import SUPPORTED

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}

HARMLESS = ("position_ids", "vision_model.", "logit_scale", "_projection")
"""In the names of weights that a text encoder's file may hold beyond its own: the rest of CLIP."""


def load_pipeline(
    path: str | Path, *, dtype: torch.dtype | str, local_files_only: bool, variant: str | None, revision: str | None
) -> DiffusionPipeline:
    """The pipeline at a local folder or hub id, without safety checker.

    Raises:
        ValueError: one sentence for an unknown ``dtype``, a folder that does not exist or lacks a part, an
            unreachable hub id, a pipeline of no known family, or weights that cannot be read.
    """
    source, dtype = str(path), _as_dtype(dtype)
    local = is_local(source)
    if local:
        check_folder(Path(source))
    index = _model_index(source, local_files_only, revision)
    _check_index(source, index)
    # diffusers wants to be told of a part that is absent, even where the index says so: of SD3's T5, for one.
    absent = [name for name, value in index.items() if isinstance(value, list | tuple) and value[0] is None]
    unused = {name: None for name in index if name in (*IGNORED_COMPONENTS, *absent)}
    folder = Path(source)
    if not local:
        folder = _fetched(source, unused, local_files_only=local_files_only, variant=variant, revision=revision)
    check_components(folder, index, variant)
    networks = {
        name: _network(folder, name, index[name], available_variant(folder, name, variant), dtype)
        for name in component_names(index)
        if index[name][0] in LIBRARIES and not name.startswith(("tokenizer", "scheduler"))
    }
    if "safety_checker" in unused:
        unused["requires_safety_checker"] = False
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, variant=variant, dtype=dtype, **unused, **networks)
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(f"checkpoint {source!r} could not be loaded: {_first_line(error)}") from error
    limit_prompt_lengths(pipeline)
    return pipeline


def _fetched(source: str, unused: Mapping[str, None], **options: object) -> Path:
    """The local folder of a hub id, fetched without the parts that are ``unused``."""
    try:
        return Path(DiffusionPipeline.download(source, **unused, **options))
    except Exception as error:  # the hub's client raises all kinds
        raise ValueError(
            f"checkpoint {source!r} could not be fetched: {_first_line(error)}; see that the hub can be reached, or "
            "give a local folder."
        ) from error


def _network(folder: Path, name: str, kind: Sequence[str], variant: str | None, dtype: torch.dtype) -> nn.Module:
    """A network, loaded by itself: its library fills weights that are missing with random ones, and drops others."""
    checkpoint = f"checkpoint {str(folder)!r} could not be loaded: "
    try:
        network, found = getattr(LIBRARIES[kind[0]], kind[1]).from_pretrained(
            folder / name, variant=variant, output_loading_info=True, local_files_only=True, dtype=dtype
        )
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(f"{checkpoint}part {name!r}: {_first_line(error)}") from error
    strange = [str(key) for key in found["unexpected_keys"] if not any(part in str(key) for part in HARMLESS)]
    for keys, what in (
        (found["missing_keys"], "lack"),
        (found["mismatched_keys"], "have another shape of"),
        (strange, f"hold, beside what its config.json describes as {kind[1]},"),
    ):
        if keys:
            first = sorted(map(str, keys))[0]
            raise ValueError(
                f"{checkpoint}the weights of its part {name!r} {what} {first} ({len(keys)} in all): bring the file, "
                "and its config.json, anew."
            )
    return network.eval()


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype of that name, which a config gives; diffusers would take float32 for any name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in DTYPES:
        raise ValueError(
            f"dtype={dtype!r} is unknown: choose {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}."
        )
    return found


def _check_index(source: str, index: Mapping[str, object]) -> None:
    _check_entries(source, index)
    named, kind = component_names(index), index.get("_class_name")
    known = {pipeline.__name__: (family, pipeline) for family in FAMILIES for pipeline in family.pipelines}
    if not any(family.network_name in named for family in FAMILIES):
        raise ValueError(f"checkpoint {source!r} is a {kind} without a UNet or transformer; supported are {SUPPORTED}.")
    if index.get("requires_aesthetics_score"):
        raise ValueError(
            f"requires_aesthetics_score in model_index.json of checkpoint {source!r}: SDXL's refiner makes no images "
            f"from text alone: give the base; supported are {SUPPORTED}."
        )
    if str(kind) not in known:
        alike = [name for name, (family, _) in known.items() if family.network_name in named]
        raise ValueError(
            f"model_index.json of checkpoint {source!r} says that it is a {kind}, which is no text-to-image pipeline "
            f"known here: if its parts are those of one, set _class_name to {', '.join(alike[:-1])} or {alike[-1]}."
        )
    family, pipeline = known[str(kind)]
    required = family.required_components(pipeline)
    missing = [name for name in required if name not in named]
    if missing:
        raise ValueError(
            f"model_index.json of checkpoint {source!r} names no {', '.join(missing)}; a {kind} needs "
            f"{', '.join(required)}."
        )


def _check_entries(source: str, index: Mapping[str, object]) -> None:
    """Every part is named by its library and its class, which that library has; or by two nulls."""
    for name, entry in index.items():
        if not isinstance(entry, list | tuple) or name.startswith("_"):
            continue
        pair = len(entry) == 2 and all(isinstance(text, str) for text in entry)
        if not pair and list(entry) != [None, None]:
            raise ValueError(
                f"model_index.json of checkpoint {source!r}: {name} is {list(entry)}, but must be a library and a "
                'class, such as ["diffusers", "AutoencoderKL"], or two nulls.'
            )
        library = LIBRARIES.get(entry[0])
        if library is not None and name not in IGNORED_COMPONENTS and not hasattr(library, entry[1]):
            raise ValueError(
                f"model_index.json of checkpoint {source!r}: {name} is a {entry[1]}, which {entry[0]} "
                f"{library.__version__} does not have; correct the name, or update {entry[0]}."
            )


def _model_index(source: str, local_files_only: bool, revision: str | None) -> dict[str, object]:
    try:
        return dict(DiffusionPipeline.load_config(source, local_files_only=local_files_only, revision=revision))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint {source!r} is neither a local folder nor a reachable hub id: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
