"""Find the model family of a pipeline. Importing this module registers the built-in model families."""

from __future__ import annotations

import inspect

from diffusers import DiffusionPipeline

from rnri.models import (  # noqa: F401 - these modules register their families
    chroma,
    flux,
    flux2,
    pixart,
    qwen_image,
    sana,
    sd3,
    unet,
    z_image,
)
from rnri.models.checks.components import check_required_components
from rnri.models.family import Family, registered_families, registered_family, supported_models


def family_of(pipeline: DiffusionPipeline) -> Family:
    """Return the model family of a pipeline that is already loaded.

    Raises:
        ValueError: no family is registered for the pipeline's class, or the pipeline lacks a required component.
    """
    family = registered_family(type(pipeline))
    if family is None:
        similar = _similar_pipeline(pipeline)
        remedy = (
            f"create a supported pipeline from its components, such as {similar}(**pipe.components)" if similar else ""
        )
        raise ValueError(
            f"{type(pipeline).__name__} is not a supported text-to-image pipeline: "
            f"{remedy or f'load a supported model ({supported_models()})'}."
        )
    check_required_components(pipeline, family.required_components(type(pipeline)))
    return family(pipeline)


def _similar_pipeline(pipeline: DiffusionPipeline) -> str | None:
    """Return the supported pipeline class with the most similar name that accepts the components of ``pipeline``."""
    name = type(pipeline).__name__
    candidates = [
        pipeline_class.__name__
        for family in registered_families()
        for pipeline_class in family.pipelines
        if _accepts_components(family, pipeline_class, pipeline)
    ]
    similar = max(candidates, key=lambda candidate: _common_prefix_length(candidate, name), default=None)
    return similar if similar and _common_prefix_length(similar, name) else None


def _accepts_components(
    family: type[Family], pipeline_class: type[DiffusionPipeline], pipeline: DiffusionPipeline
) -> bool:
    """Return whether images can be inverted with a pipeline of the class ``pipeline_class``.

    The pipeline would have the components of ``pipeline``.
    """
    parameter = inspect.signature(pipeline_class).parameters.get(family.network_name)
    network_class = getattr(parameter, "annotation", None)
    if isinstance(network_class, type) and not isinstance(getattr(pipeline, family.network_name, None), network_class):
        return False
    try:
        check_required_components(pipeline, family.required_components(pipeline_class))
        family(pipeline).check()
    except ValueError:
        return False
    return True


def _common_prefix_length(one: str, other: str) -> int:
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
