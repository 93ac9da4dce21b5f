"""Load a diffusers pipeline; the files of the checkpoint folder are checked before the weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from rnri.loading import check_loading_info
from rnri.models import families  # noqa: F401 - registers the families
from rnri.models.checks.folder import (
    IGNORED_COMPONENTS,
    TOKENIZER_PREFIXES,
    available_variant,
    check_components,
    check_folder,
    component_names,
    is_local,
)
from rnri.models.checks.model_index import check_model_index
from rnri.models.checks.tokenizers import limit_prompt_lengths
from rnri.validation import first_line

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

OTHER_CLIP_WEIGHTS = ("position_ids", "vision_model.", "logit_scale", "_projection")
"""Parts of the names of CLIP weights that a text encoder's file may contain although the text encoder ignores them."""

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def load_pipeline(
    path: str | Path, *, dtype: torch.dtype | str, local_files_only: bool, variant: str | None, revision: str | None
) -> DiffusionPipeline:
    """Load the pipeline from a local folder or a hub id, without its safety checker.

    Raises:
        ValueError: ``dtype`` is unknown; the folder does not exist or lacks a component; the hub id cannot be reached;
            no model family is registered for the pipeline; or a component's weights cannot be read or do not fit the
            component's config.
    """
    source = str(path)
    dtype = _as_dtype(dtype)
    folder = Path(source)
    local = is_local(source)
    if local:
        check_folder(folder)
    index = _load_index(source, local_files_only, revision)
    check_model_index(source, index)
    omitted = _omitted_components(index)
    if not local:
        folder = _download(source, omitted, local_files_only=local_files_only, variant=variant, revision=revision)
    check_components(folder, index, variant)
    try:
        networks = _load_networks(folder, index, variant, dtype)
        if "safety_checker" in omitted:
            omitted["requires_safety_checker"] = False
        pipeline = DiffusionPipeline.from_pretrained(folder, variant=variant, dtype=dtype, **omitted, **networks)
    except Exception as error:  # damaged files raise errors of various types
        raise ValueError(f"checkpoint {source!r} could not be loaded: {first_line(error)}") from error
    limit_prompt_lengths(pipeline)
    return pipeline


def _load_index(source: str, local_files_only: bool, revision: str | None) -> dict[str, object]:
    """Return the content of ``model_index.json``."""
    try:
        return dict(DiffusionPipeline.load_config(source, local_files_only=local_files_only, revision=revision))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint {source!r} is neither a local folder nor a reachable hub id: {first_line(error)}"
        ) from error


def _omitted_components(index: Mapping[str, object]) -> dict[str, object]:
    """Return a dict that maps the name of each component that is not loaded to None.

    diffusers must receive each omitted component as an argument, even if ``model_index.json`` marks the component as
    absent, for example the T5 text encoder of Stable Diffusion 3.
    """
    absent = [name for name, value in index.items() if isinstance(value, list | tuple) and value and value[0] is None]
    return {name: None for name in index if name in (*IGNORED_COMPONENTS, *absent)}


def _download(source: str, omitted: Mapping[str, object], **options: object) -> Path:
    """Download the checkpoint of a hub id without the components ``omitted``; return its local folder."""
    try:
        return Path(DiffusionPipeline.download(source, **omitted, **options))
    except Exception as error:  # the hub's client raises errors of various types
        raise ValueError(
            f"checkpoint {source!r} could not be downloaded: {first_line(error)}; check that the hub can be reached, "
            "or pass a local folder."
        ) from error


def _load_networks(
    folder: Path, index: Mapping[str, Any], variant: str | None, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Load each network separately, so that missing and unknown weights are detected; return the networks by name."""
    networks = {}
    for name in component_names(index):
        library, class_name = index[name]
        if library not in LIBRARIES or name.startswith((*TOKENIZER_PREFIXES, "scheduler")):
            continue
        try:
            network_class = getattr(LIBRARIES[library], class_name)
            network, loading_info = network_class.from_pretrained(
                folder / name,
                variant=available_variant(folder, name, variant),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # check_loading_info raises an error with the names of these weights
                local_files_only=True,
                dtype=dtype,
            )
        except Exception as error:  # damaged files raise errors of various types
            raise ValueError(f"component {name!r}: {first_line(error)}") from error
        check_loading_info(f"the weights of the component {name!r}", class_name, loading_info, extra=OTHER_CLIP_WEIGHTS)
        networks[name] = network.eval()
    return networks


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return the ``torch.dtype`` of a name such as "float16"; diffusers would use float32 for an unknown name."""
    result = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if result not in DTYPES:
        names = ", ".join(str(supported).removeprefix("torch.") for supported in DTYPES)
        raise ValueError(f"dtype={dtype!r} is unknown: choose one of {names}.")
    return result
