"""Concurrent runs in the same folder.

Runs with the same settings divide the work among themselves, and one run writes the report. If a run with other
settings is active in the folder, a new run is rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from experiments.cache.atomic import digest
from experiments.config.run_settings import run_settings
from experiments.config.trainer_options import is_training
from experiments.runtime.leases import LeaseManager


def join_or_start_run(config: DictConfig, task: Any, trainer: Trainer) -> LeaseManager | None:
    """Reserve the run's folder for this run, or join the run that is active in the folder.

    If this run joins another run, both runs compute results. A run that joins another run has no loggers, and writes
    the report only if the other run dies.

    Returns:
        The manager of the lease (exclusive right) on the folder. The caller has to call the method ``finish`` of the
        manager at the end of the run. On ranks other than 0, the function returns None.

    Raises:
        ValueError: the run that is active in the folder has different settings, or is a training.
    """
    if rank_zero_only.rank != 0:
        return None
    leases = LeaseManager(Path(config.run_dir) / "leases")
    key = digest(run_settings(config))
    if leases.acquire("run", {"settings": key}):
        return leases
    active = leases.owner_of("run")
    if active is None:  # the other run has ended since the lease was refused
        return join_or_start_run(config, task, trainer)
    owner, note = active
    if note.get("settings") != key or is_training(config):
        leases.close()
        reason = "is training" if is_training(config) else "has different settings"
        raise ValueError(
            f"run_dir={config.run_dir} is in use by {owner.describe()}, which {reason}: wait until that process ends, "
            "or set run_dir to another folder."
        )
    print(
        f"{owner.describe()} is already running in {config.run_dir}: this run computes a part of the results, and "
        "the first run writes the report.",
        flush=True,
    )
    trainer.loggers = []
    task.is_reporter = _take_over(leases, Path(config.run_dir) / "results.json")
    return leases


def _take_over(leases: LeaseManager, results: Path) -> Callable[[], bool]:
    """Return a function that takes over the folder from a dead run, and returns whether this run writes the report.

    This run has to write the report if the other run has died before the other run wrote the file ``results``.
    """
    time_before = _modification_time(results)

    def is_reporter() -> bool:
        return leases.acquire("run") and _modification_time(results) == time_before

    return is_reporter


def _modification_time(file: Path) -> int | None:
    """Return the modification time of ``file`` in nanoseconds, or None if ``file`` does not exist.

    On a network file system, the modification time is a time of the server's clock.
    """
    return file.stat().st_mtime_ns if file.is_file() else None
