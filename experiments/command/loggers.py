"""Loggers before the work: an account where one is needed, and no advertisement above the results."""

from __future__ import annotations

import logging

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig


def check_account(loggers: DictConfig | None) -> None:
    """ValueError where Weights & Biases is asked for and would not let us in; says so before any work."""
    wanted = WandbLogger.__module__.rpartition(".")[0]
    online = [
        logger
        for logger in (loggers or {}).values()
        if str(logger.get("_target_")) in (f"{wanted}.WandbLogger", f"{WandbLogger.__module__}.WandbLogger")
        and not logger.get("offline", False)
    ]
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
    """Ends the run at Weights & Biases, if there is one, or the jobs of a multirun would become one run."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish()


def silence_tips() -> None:
    """Keeps Lightning from advertising its platform above the results; all else is heard."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logger = logging.getLogger(name)
        if _is_no_tip not in logger.filters:
            logger.addFilter(_is_no_tip)


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()
