"""Changes to a pipeline right after it is loaded: another scheduler of diffusers, a LoRA."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from rnri.validation import first_line


def check_scheduler_name(name: str | None) -> None:
    """Raise ValueError unless ``name`` is None or a scheduler class of diffusers."""
    if name is None:
        return
    scheduler_class = getattr(diffusers, name, None)
    if not isinstance(scheduler_class, type) or not issubclass(scheduler_class, SchedulerMixin):
        raise ValueError(f"scheduler={name!r}: must be a scheduler class of diffusers, such as LCMScheduler.")


def set_scheduler(pipeline: DiffusionPipeline, name: str) -> None:
    """Set ``pipeline.scheduler`` to ``NAME.from_config(pipeline.scheduler.config)``."""
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)


def check_lora(path: str | Path | None) -> None:
    """Raise ValueError if a LoRA is requested and ``peft`` is not installed."""
    if path is not None and find_spec("peft") is None:
        raise ValueError(f"lora={str(path)!r} needs the package peft: pip install peft.")


def load_lora(pipeline: DiffusionPipeline, path: str | Path, *, local_files_only: bool) -> None:
    """Load a LoRA by ``pipeline.load_lora_weights(path)`` and fuse it into the weights.

    An unfused LoRA would make each call of a small network more than 1.5 times as slow.

    Raises:
        ValueError: the LoRA cannot be found or read, or matches no layer of the pipeline.
    """
    modules_before = _count_modules(pipeline)
    try:
        pipeline.load_lora_weights(str(path), local_files_only=local_files_only)
    except Exception as error:  # damaged files raise errors of various types
        raise ValueError(f"lora {str(path)!r} could not be loaded: {first_line(error)}") from error
    if _count_modules(pipeline) == modules_before:
        raise ValueError(f"lora {str(path)!r} fits no layer of this checkpoint: it belongs to another architecture.")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def _count_modules(pipeline: DiffusionPipeline) -> int:
    """Return the number of modules of all networks, which adapters increase."""
    return sum(len(list(value.modules())) for value in pipeline.components.values() if hasattr(value, "modules"))
