"""Loggers before the work: an account where one is needed, and no advertisement above the results."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from experiments.cache.atomic import atomic_write
from experiments.config.run_dir import multirun

ID = "wandb_id"
"""The file of a run's folder that holds its id at Weights & Biases."""
LONGEST = 64  # signs of a job type there


def _of_wandb(loggers: DictConfig | None) -> list[DictConfig]:
    wanted = WandbLogger.__module__.rpartition(".")[0]
    targets = (f"{wanted}.WandbLogger", f"{WandbLogger.__module__}.WandbLogger")
    return [logger for logger in (loggers or {}).values() if str(logger.get("_target_")) in targets]


def resume(config: DictConfig) -> None:
    """Gives W&B's run the id that its folder has, so that a run that goes on is one there; and its name and kind.

    Under a sweep's agent the id is the agent's.
    """
    for logger in _of_wandb(config.logger):
        if "id" in logger and logger.id is None and "WANDB_RUN_ID" not in os.environ:
            known = Path(config.run_dir) / ID
            logger.id = known.read_text().strip() if known.is_file() else uuid4().hex[:8]
        if "name" in logger and logger.name is None:
            logger.name = _name(config)
        if "job_type" in logger and logger.job_type is None:
            arms = OmegaConf.select(config, "task.arms") or [config.name]
            logger.job_type = _kind(list(map(str, arms)))


def _name(config: DictConfig) -> str:
    """What a run is called: the runs of a sweep by what differs."""
    if multirun():
        return Path(config.run_dir).name
    if "WANDB_SWEEP_PARAM_PATH" in os.environ:  # the agent's file of this run's values
        given = OmegaConf.load(os.environ["WANDB_SWEEP_PARAM_PATH"])
        return ",".join(f"{key}={own.value}" for key, own in given.items() if key != "wandb_version")
    return str(config.name)


def _kind(arms: Sequence[str]) -> str:
    """The arms' names; of many the first, and how many more there are."""
    for k in range(len(arms), 0, -1):
        kind = "+".join([*arms[:k], *([f"{len(arms) - k} more"] if k < len(arms) else [])])
        if len(kind) <= LONGEST:
            return kind
    return arms[0][:LONGEST]


@rank_zero_only
def note(loggers: Sequence[Logger], config: DictConfig) -> None:
    """Writes the resolved config to W&B, and the run's id there to the folder."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
            if logger.version:
                atomic_write(Path(config.run_dir) / ID, lambda path, id=logger.version: path.write_text(f"{id}\n"))


def check_account(loggers: DictConfig | None) -> None:
    """ValueError where Weights & Biases is asked for and would not let us in; says so before any work."""
    online = [logger for logger in _of_wandb(loggers) if not logger.get("offline", False)]
    if online and rank_zero_only.rank == 0:
        _log_in()


def _log_in() -> None:
    import wandb  # takes seconds, and few runs need it

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return
    try:
        known, why = wandb.login(prompt=False), "there is no account on this machine"
    except wandb.Error as error:
        known, why = False, " ".join(str(error).split())
    if not known:
        raise ValueError(f"logger=wandb: {why}: run `wandb login`, or give logger.wandb.offline=true or logger=csv.")


def close(loggers: list) -> None:
    """Ends the run at Weights & Biases, if there is one, or the jobs of a multirun would become one run.

    Called while an error or a signal ends the command, it says there that the run has failed.
    """
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish(exit_code=0 if sys.exception() is None else 1)


def silence_tips() -> None:
    """Keeps Lightning from advertising its platform above the results; all else is heard."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logger = logging.getLogger(name)
        if _is_no_tip not in logger.filters:
            logger.addFilter(_is_no_tip)


def silence_deletion() -> None:
    """Keeps Lightning from telling that it deletes files of values: of units they are all written again."""
    warnings.filterwarnings("ignore", message="Experiment logs directory")


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()
