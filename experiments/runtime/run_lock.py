"""Several runs of one folder: they share its units and one of them reports, or the second is rejected."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from experiments.cache.atomic import digest
from experiments.runtime.leases import LeaseManager

KEYS_WITHOUT_EFFECT_ON_RESULTS = ("trainer", "logger", "run_dir", "plan")
"""Parts of the config that may differ between two runs that share units."""


def is_training(config: DictConfig) -> bool:
    """Return whether the experiment is a training, which is not divided into units."""
    return OmegaConf.select(config, "trainer.max_steps") is not None


def join_or_start_run(config: DictConfig, task: Any, trainer: Trainer) -> LeaseManager | None:
    """Acquire the lease on the run's folder, on rank 0; the caller has to ``finish`` it. Other ranks get None.

    If another run with the same settings is active in the folder, this run joins it: without loggers, and writing the
    report only if the other run dies.

    Raises:
        ValueError: the other run has different settings, or is a training.
    """
    if rank_zero_only.rank != 0:
        return None
    leases = LeaseManager(Path(config.run_dir) / "leases")
    settings = OmegaConf.to_container(config, resolve=True)
    key = digest({name: value for name, value in settings.items() if name not in KEYS_WITHOUT_EFFECT_ON_RESULTS})
    if leases.acquire("run", {"settings": key}):
        return leases
    active = leases.owner_of("run")
    if active is None:  # it has just ended
        return join_or_start_run(config, task, trainer)
    owner, note = active
    if note.get("settings") != key or is_training(config):
        leases.close()
        reason = "is training" if is_training(config) else "has different settings"
        raise ValueError(
            f"run_dir={config.run_dir} is in use: {owner.describe()} {reason}. Wait until it ends, or choose another "
            "run_dir."
        )
    print(
        f"{owner.describe()} is already running in {config.run_dir}: this run shares its units, and that one reports.",
        flush=True,
    )
    trainer.loggers = []
    task.is_reporter = _take_over(leases, Path(config.run_dir) / "results.json")
    return leases


def _take_over(leases: LeaseManager, results: Path) -> Callable[[], bool]:
    """Return a function that tells whether the first run died before it wrote ``results``, so that this one reports."""
    start_time = time.time()

    def is_reporter() -> bool:
        if not leases.acquire("run"):
            return False
        return not results.is_file() or results.stat().st_mtime < start_time

    return is_reporter
