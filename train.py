"""The command: ``python train.py experiment=NAME [key=value ...]``; bare ``python train.py`` runs the main job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.cache.atomic import atomic_write
from experiments.config.errors import (
    explain,
    failed_call,
    failed_composition,
    failed_launcher,
    let_hydra_raise,
    refuse,
)
from experiments.config.run_dir import check_writable, multirun, run_folder
from experiments.config.validate import check
from experiments.data.images import UnreadableImage
from experiments.planning.plan import print_plan
from experiments.reporting.finite import NonFiniteError
from experiments.runtime.distributed import (
    apply_launcher_topology,
    check_launch,
    environments,
    launch,
    set_process_group_timeout,
)
from experiments.runtime.loggers import check_account, close, note, resume, silence_deletion, silence_tips
from experiments.runtime.run_lock import enter, is_training
from experiments.runtime.unit_queue import PeerDied, Stopped
from experiments.runtime.watchdog import install_watchdogs


def prepare(config: DictConfig) -> tuple[Any, Trainer]:
    """Everything that can be wrong with the input is found here, before any long work.

    Raises:
        ValueError: one sentence that names the key, as one types it, or the file.
    """
    check(config)
    config.run_dir = run_folder(config.run_dir)
    check_writable(config.run_dir)
    apply_launcher_topology(config.trainer)
    install_watchdogs()
    seed_everything(config.seed, verbose=False)
    silence_tips()
    if not is_training(config):
        silence_deletion()
    set_process_group_timeout(units=not is_training(config))
    resume(config)
    task = made(config, "task")
    loggers = list(made(config, "logger").values()) if config.logger else []
    places = {} if "plugins" in config.trainer else {"plugins": environments()}
    trainer = made(config, "trainer", logger=loggers, **places)
    check_launch(trainer)
    if (
        multirun()
        and trainer.world_size > 1
        and launch() is None
        and not re.search("spawn|fork|notebook", str(config.trainer.strategy))
    ):
        raise ValueError(
            "Hydra's multirun (-m) and trainer.strategy=ddp do not go together, each process would repeat the sweep: "
            "use one device, trainer.strategy=ddp_spawn, or a W&B sweep."
        )
    task.prepare(trainer)
    check_account(config.logger)
    return task, trainer


def made(config: DictConfig, part: str, **given: Any) -> Any:
    """What ``config`` says of ``part``; ValueError says what its classes and functions have against it."""
    try:
        return instantiate(config[part], **given)
    except HydraException as error:
        raise ValueError(failed_call(error, config, part)) from error


def save_config(config: DictConfig) -> None:
    atomic_write(Path(config.run_dir) / "config.yaml", lambda path: OmegaConf.save(config, path, resolve=True))


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> float | None:
    try:
        task, trainer = prepare(config)
        if config.plan:
            return print_plan(config, task, trainer)
        claims = enter(config, task, trainer)
        if rank_zero_only.rank == 0:
            save_config(config)
    except (ValueError, OSError, OmegaConfBaseException) as error:
        refuse(explain(error))
    try:
        note(trainer.loggers, config)
        return task.run(trainer)
    except (NonFiniteError, UnreadableImage, PeerDied, Stopped, OSError) as error:
        refuse(explain(error))
    finally:
        close(trainer.loggers)
        if claims is not None:
            claims.finish()


def command() -> None:
    let_hydra_raise()
    try:
        main()
    except (HydraException, OmegaConfBaseException, OSError) as error:  # Hydra's, before there is a config
        refuse(failed_composition(error))
    except RuntimeError as error:
        if said := failed_launcher(error):
            refuse(said)
        raise


if __name__ == "__main__":
    command()
