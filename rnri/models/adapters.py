"""What is put on a loaded pipeline before anything else: another of diffusers' schedulers, a LoRA."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin


def check_scheduler_name(name: str | None) -> None:
    """ValueError unless ``name`` is None or a scheduler class of diffusers."""
    kind = getattr(diffusers, name, None) if name else None
    if name is not None and not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"scheduler={name!r} is no scheduler of diffusers: give a class such as LCMScheduler.")


def set_scheduler(pipeline: DiffusionPipeline, name: str) -> None:
    """``pipe.scheduler = NAME.from_config(pipe.scheduler.config)``."""
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)


def check_lora(path: str | Path | None) -> None:
    """ValueError where a LoRA is asked for and ``peft`` is missing, or a local folder has none."""
    if path is None:
        return
    if find_spec("peft") is None:
        raise ValueError(f"lora={str(path)!r} needs the package peft: pip install peft.")
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ValueError(f"lora folder {str(path)!r} holds no *.safetensors file.")
    if folder.is_file() and folder.suffix != ".safetensors":
        raise ValueError(f"lora file {str(path)!r} is no .safetensors file.")


def load_lora(pipeline: DiffusionPipeline, path: str | Path, *, local_files_only: bool) -> None:
    """``pipe.load_lora_weights(path)``, as one loads SD's LCM-LoRA, then added to the weights that it changes.

    Beside them it would cost each call of a small network more than half as much again.

    Raises:
        ValueError: one sentence for a LoRA that cannot be reached or read, or that fits no layer of the pipeline.
    """
    before = _layers(pipeline)
    try:
        pipeline.load_lora_weights(str(path), local_files_only=local_files_only)
    except Exception as error:  # readers of damaged files raise all kinds
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ValueError(f"lora {str(path)!r} could not be loaded: {reason}") from error
    if _layers(pipeline) == before:
        raise ValueError(f"lora {str(path)!r} fits no layer of this checkpoint: it belongs to another architecture.")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def _layers(pipeline: DiffusionPipeline) -> int:
    """How many parts the networks have; adapters add some."""
    return sum(len(list(part.modules())) for part in pipeline.components.values() if hasattr(part, "modules"))
