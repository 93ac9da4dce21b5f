"""Changes to a pipeline right after loading: replace its scheduler, or fuse a LoRA into its weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from rnri.validation import first_line


def check_scheduler_name(name: str | None) -> None:
    """Raise ValueError unless ``name`` is None or the name of a scheduler class of diffusers."""
    if name is None:
        return
    scheduler_class = getattr(diffusers, name, None)
    if not isinstance(scheduler_class, type) or not issubclass(scheduler_class, SchedulerMixin):
        raise ValueError(f"scheduler={name!r}: must be a scheduler class of diffusers, such as LCMScheduler.")


def set_scheduler(pipeline: DiffusionPipeline, name: str) -> None:
    """Set ``pipeline.scheduler`` to a scheduler of the class ``name``, created from the old scheduler's config."""
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)


def check_lora(path: str | Path | None) -> None:
    """Raise ValueError if ``path`` is not None and the package ``peft``, which loads LoRAs, is not installed."""
    if path is not None and find_spec("peft") is None:
        raise ValueError(f"lora={str(path)!r} needs the package peft: pip install peft.")


def load_lora(pipeline: DiffusionPipeline, path: str | Path, *, local_files_only: bool) -> None:
    """Load a LoRA by ``pipeline.load_lora_weights(path)`` and fuse it into the pipeline's weights.

    Without fusing, each call of a small network would take more than 1.5 times as long.

    Raises:
        ValueError: the LoRA cannot be found, cannot be read, or has no weights for a layer of the pipeline.
    """
    modules_before = _count_modules(pipeline)
    try:
        pipeline.load_lora_weights(str(path), local_files_only=local_files_only)
    except Exception as error:  # damaged files raise errors of various types
        raise ValueError(f"lora {str(path)!r} could not be loaded: {first_line(error)}") from error
    if _count_modules(pipeline) == modules_before:
        raise ValueError(
            f"lora {str(path)!r} fits no layer of this checkpoint: the LoRA is for a different architecture."
        )
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def _count_modules(pipeline: DiffusionPipeline) -> int:
    """Return the total number of modules in the pipeline's networks; adapters add modules."""
    return sum(len(list(value.modules())) for value in pipeline.components.values() if hasattr(value, "modules"))
