"""Two runs of one folder: they share the units and one of them reports, or the second is refused."""

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

OTHERWISE = ("trainer", "logger", "run_dir", "plan")
"""Parts of a config that two runs which compute the same may differ in."""


def is_training(config: DictConfig) -> bool:
    """Whether the experiment is a training, which is one whole, and not made of units."""
    return OmegaConf.select(config, "trainer.max_steps") is not None


def enter(config: DictConfig, task: Any, trainer: Trainer) -> LeaseManager | None:
    """Claims the run's folder for its first process; the claims have to be finished. None in all other processes.

    Where another run is at work there with the same settings, this one joins it: without loggers, and reporting only
    if the other has died.

    Raises:
        ValueError: the other run has other settings, or is a training.
    """
    if rank_zero_only.rank != 0:
        return None
    claims = LeaseManager(Path(config.run_dir) / "claims")
    settings = OmegaConf.to_container(config, resolve=True)
    own = digest({name: value for name, value in settings.items() if name not in OTHERWISE})
    if claims.take("run", {"settings": own}):
        return claims
    found = claims.holder("run")
    if found is None:  # it has ended just now
        return enter(config, task, trainer)
    owner, note = found
    if note.get("settings") != own or is_training(config):
        claims.close()
        what = "trains there" if is_training(config) else "works there with other settings"
        raise ValueError(
            f"run_dir={config.run_dir}: {owner.said} {what}: wait for its end, or name another folder by run_dir=..."
        )
    print(
        f"{owner.said} works in {config.run_dir} already: this run shares its units, and that one reports.", flush=True
    )
    trainer.loggers = []
    task.lead = _successor(claims, Path(config.run_dir) / "results.json")
    return claims


def _successor(claims: LeaseManager, results: Path) -> Callable[[], bool]:
    """Whether the first run died before it wrote ``results``, and this one is to do that."""
    started = time.time()

    def lead() -> bool:
        if not claims.take("run"):
            return False
        return not results.is_file() or results.stat().st_mtime < started

    return lead
