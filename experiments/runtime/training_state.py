"""Resuming an interrupted training: checks the last checkpoint, and logs the earlier values of metrics again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from experiments.config.run_settings import first_difference
from experiments.runtime.running_means import loggers_without_history

OUTPUT_KEY = "task.output"
"""Config key of the folder of the trained network, which may be changed when a training is resumed."""


class TrainingSettings(Callback):
    """A callback that stores the settings of a training in its checkpoints.

    Args:
        settings: settings on which the trained network depends.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def state_dict(self) -> dict[str, Any]:
        return {"settings": json.dumps(self.settings, default=str)}


def last_checkpoint(trainer: Trainer) -> Path | None:
    """Return the checkpoint file from which the training resumes, or None if the training starts from the beginning."""
    checkpoint = next(c for c in trainer.callbacks if isinstance(c, ModelCheckpoint))
    path = Path(str(checkpoint.dirpath)) / "last.ckpt"
    return path if path.is_file() else None


def check_checkpoint(trainer: Trainer, settings: dict[str, Any]) -> None:
    """Check that the training can resume from the last checkpoint in its folder, if there is one.

    Args:
        trainer: trainer of the training.
        settings: settings on which the trained network depends.

    Raises:
        ValueError: the checkpoint is damaged, belongs to a training with other settings, or has more training steps
            than the trainer's ``max_steps``.
    """
    path = last_checkpoint(trainer)
    if path is None:
        return
    remedy = "delete the file to train from the start, or choose another run_dir"
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
        step = checkpoint["global_step"]
        callbacks = checkpoint["callbacks"]
    except Exception as error:  # a damaged file can raise exceptions of many types
        raise ValueError(f"{path} cannot be read as a checkpoint ({' '.join(str(error).split())}): {remedy}.") from None
    if TrainingSettings.__name__ not in callbacks:
        raise ValueError(f"{path} does not contain the settings of its training: {remedy}.")
    before = json.loads(callbacks[TrainingSettings.__name__]["settings"])
    now = json.loads(json.dumps(settings, default=str))
    for each in (before, now):
        each["task"].pop(OUTPUT_KEY.partition(".")[2], None)
    if difference := first_difference(before, now):
        key, old, new = difference
        raise ValueError(f"{key}: must be {old!r} as in the training of {path}, got {new!r}; {remedy}.")
    if step > trainer.max_steps:
        raise ValueError(
            f"trainer.max_steps: must be at least {step}, the number of training steps of {path}, got "
            f"{trainer.max_steps}; {remedy}."
        )


@rank_zero_only
def log_earlier_values(trainer: Trainer, checkpoint: Path) -> None:
    """Log the metrics of the interrupted training again, to loggers that lose these metrics when a training resumes.

    The file of the CSV logger is overwritten when a training resumes, and a new W&B run is empty. The values are read
    from ``metrics.csv``. Values after ``checkpoint`` are omitted, because the training computes these values again.
    """
    files = [Path(logger.log_dir) / "metrics.csv" for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    loops = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)["loops"]["fit_loop"]
    last = loops["epoch_loop.state_dict"]["_batches_that_stepped"]  # the resumed training begins with step last + 1
    rows = [row for file in files[:1] for row in _read_metrics(file) if row["step"] <= last]
    for logger in loggers_without_history(trainer.loggers):
        for row in rows:
            logger.log_metrics({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))
        logger.save()


def _read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a CSV file of metrics. Empty cells and an incomplete row at the end are omitted."""
    if not path.is_file():
        return []
    text = path.read_text()
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [{name: float(value) for name, value in row.items() if value} for row in rows if row.get("step")]
