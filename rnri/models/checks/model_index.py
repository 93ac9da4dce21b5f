"""Check of ``model_index.json``, the file that lists the class and the components of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping

from rnri.models.checks.folder import component_names
from rnri.models.family import registered_families, supported_models


def check_model_index(source: str, index: Mapping[str, object]) -> None:
    """Raise ValueError unless ``index`` lists a pipeline of a registered model family with all required components.

    Args:
        source: folder or hub id of the checkpoint, for the error message.
        index: content of the checkpoint's ``model_index.json``.
    """
    names = component_names(index)
    class_name = str(index.get("_class_name"))
    families = registered_families()
    candidates = [family for family in families if family.network_name in names]
    if not candidates:
        raise ValueError(
            f"checkpoint {source!r} is a {class_name} without a UNet or transformer; load a supported model "
            f"({supported_models()})."
        )
    if index.get("requires_aesthetics_score"):
        raise ValueError(
            f"requires_aesthetics_score is on in model_index.json of checkpoint {source!r}: SDXL's refiner does not "
            "generate images from text alone; load SDXL's base model or another supported model "
            f"({supported_models()})."
        )
    pipelines = {pipeline.__name__: (family, pipeline) for family in families for pipeline in family.pipelines}
    if class_name not in pipelines:
        similar = [pipeline.__name__ for family in candidates for pipeline in family.pipelines]
        raise ValueError(
            f"model_index.json of checkpoint {source!r} has _class_name {class_name}, which is not a supported "
            "text-to-image pipeline: if its components are those of a supported pipeline, set _class_name to "
            f"{' or '.join(similar)}."
        )
    family, pipeline = pipelines[class_name]
    required = family.required_components(pipeline)
    missing = [name for name in required if name not in names]
    if missing:
        raise ValueError(
            f"model_index.json of checkpoint {source!r} lacks {', '.join(missing)}; use a checkpoint with all "
            f"components of a {class_name} ({', '.join(required)})."
        )
