"""Loading a diffusers pipeline with its faults found, and named, before the weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from rnri.models.families import FAMILIES
from rnri.models.family import SUPPORTED
from rnri.models.folder import UNUSED_PARTS, check_folder, check_parts, is_local, parts_of, variant_of

REQUIRED_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    if local:
        check_parts(Path(source), index, variant)
    # diffusers wants to be told of a part that is absent, even where the index says so: of SD3's T5, for one.
    absent = [name for name, value in index.items() if isinstance(value, list | tuple) and value[0] is None]
    unused = {name: None for name in index if name in (*UNUSED_PARTS, *absent)}
    if "safety_checker" in unused:
        unused["requires_safety_checker"] = False
    options = {"dtype": dtype, "local_files_only": local_files_only, "revision": revision}
    try:
        encoders = {
            name: _text_encoder(source, name, index[name][1], variant_of(source, name, variant), options)
            for name in parts_of(index)
            if index[name][0] == "transformers" and name.startswith("text_encoder")
        }
        pipeline = DiffusionPipeline.from_pretrained(source, variant=variant, **options, **unused, **encoders)
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(f"checkpoint {source!r} could not be loaded: {_first_line(error)}") from error
    _check_complete(source, pipeline)
    return pipeline


def _text_encoder(source: str, name: str, kind: str, variant: str | None, options: Mapping[str, object]) -> nn.Module:
    """A text encoder, loaded by itself: its library fills weights that are missing with random ones."""
    encoder, found = getattr(transformers, kind).from_pretrained(
        source, subfolder=name, variant=variant, output_loading_info=True, **options
    )
    for fault in ("missing_keys", "mismatched_keys"):
        if found[fault]:
            key = sorted(map(str, found[fault]))[0]
            what = "lack" if fault == "missing_keys" else "have another shape of"
            raise ValueError(f"the weights of its part {name!r} {what} {key} ({len(found[fault])} in all)")
    return encoder.eval()


def _check_complete(source: str, pipeline: DiffusionPipeline) -> None:
    """ValueError where a network's file left some of its weights unset."""
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            missing = [key for key, weight in part.named_parameters() if weight.is_meta]
            if missing:
                raise ValueError(
                    f"checkpoint {source!r} could not be loaded: the weights of its part {name!r} lack {missing[0]} "
                    f"({len(missing)} in all); bring the file anew."
                )


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype of that name, which a config gives; diffusers would take float32 for any name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in DTYPES:
        raise ValueError(
            f"dtype={dtype!r} is unknown: choose {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}."
        )
    return found


def _check_index(source: str, index: Mapping[str, object]) -> None:
    named, kind = parts_of(index), index.get("_class_name")
    known = {pipeline.__name__: family for family in FAMILIES for pipeline in family.pipelines}
    if not any(family.part in named for family in FAMILIES):
        raise ValueError(f"checkpoint {source!r} is a {kind} without a UNet or transformer; supported are {SUPPORTED}.")
    if kind not in known:
        alike = [name for name, family in known.items() if family.part in named]
        raise ValueError(
            f"model_index.json of checkpoint {source!r} says that it is a {kind}, which is no text-to-image pipeline "
            f"known here: if its parts are those of one, set _class_name to {', '.join(alike[:-1])} or {alike[-1]}."
        )
    required = (known[kind].part, *REQUIRED_PARTS)
    missing = [name for name in required if name not in named]
    if missing:
        raise ValueError(
            f"model_index.json of checkpoint {source!r} names no {', '.join(missing)}; a {kind} needs "
            f"{', '.join(required)}."
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
