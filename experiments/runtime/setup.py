"""Creation of the task and the trainer from a config, and execution of the experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.base import Task
from experiments.cache.atomic import atomic_write
from experiments.config.errors import exit_with_error, instantiation_error, one_line
from experiments.config.run_dir import check_writable
from experiments.config.run_settings import describe_differences, run_settings
from experiments.config.trainer_options import is_training, precision_error
from experiments.config.validate import check
from experiments.data.images import UnreadableImage
from experiments.finite import NonFiniteError
from experiments.runtime.distributed import (
    apply_launcher_topology,
    check_topology,
    cluster_environments,
    set_process_group_timeout,
)
from experiments.runtime.loggers import (
    check_account,
    check_packages,
    check_wandb_options,
    finish_loggers,
    ignore_deleted_logs,
    log_config,
    omit_anonymous_option,
    set_wandb_identity,
)
from experiments.runtime.run_lock import join_or_start_run
from experiments.runtime.shared_identity import share_identity
from experiments.runtime.training_state import TrainingSettings, check_checkpoint
from experiments.runtime.unit_queue import PeerDied, Terminated
from experiments.runtime.watchdog import install_watchdogs
from rnri.quiet import quiet_libraries


def run(config: DictConfig) -> float | None:
    """Set up and run an experiment, or print its plan if ``plan=true``.

    If the input is invalid or a file cannot be written, the program exits with a one-line error message.

    Returns:
        The value that a hyperparameter sweep optimizes, or None if the experiment has no such value.
    """
    try:
        task, trainer = setup(config)
        if config.plan:
            from experiments.planning.plan import print_plan

            return print_plan(config, task, trainer)
        leases = join_or_start_run(config, task, trainer)
        if rank_zero_only.rank == 0:
            save_config(config)
    except (ValueError, OSError, OmegaConfBaseException) as error:
        exit_with_error(one_line(error))
    try:
        log_config(trainer.loggers, config)
        return task.run(trainer)
    except (NonFiniteError, UnreadableImage, PeerDied, Terminated, OSError) as error:
        exit_with_error(one_line(error))
    finally:
        finish_loggers(trainer.loggers)
        if leases is not None:
            leases.finish()


def setup(config: DictConfig) -> tuple[Task, Trainer]:
    """Validate a config, create its task and trainer, and load data and networks.

    The order of the calls matters. The run's folder has to be known before the W&B id is read from the folder. The
    launcher has to be detected before the trainer is created. Loading networks takes longest and comes last.

    Raises:
        ValueError: the config or a file is invalid; the one-line message contains the config key or the file.
    """
    check(config)
    _setup_processes(config)
    share_identity(config)
    check_writable(config.run_dir)
    set_wandb_identity(config)
    task = instantiate_part(config, "task")
    trainer = _create_trainer(config)
    task.prepare(trainer)
    check_account(config.logger)
    return task, trainer


def _setup_processes(config: DictConfig) -> None:
    apply_launcher_topology(config.trainer)
    install_watchdogs()
    set_process_group_timeout(units=not is_training(config))
    seed_everything(config.seed, verbose=False)
    quiet_libraries()
    ignore_deleted_logs()


def _create_trainer(config: DictConfig) -> Trainer:
    check_packages(config.logger)
    check_wandb_options(config.logger)
    loggers = list(instantiate_part(config, "logger").values()) if config.logger else []
    omit_anonymous_option(loggers)
    plugins = {} if "plugins" in config.trainer else {"plugins": cluster_environments()}
    trainer = instantiate_part(config, "trainer", logger=loggers, **plugins)
    check_topology(trainer, str(config.trainer.strategy))
    if is_training(config):
        settings = run_settings(config)
        check_checkpoint(trainer, settings)
        trainer.callbacks.append(TrainingSettings(settings))
    elif error := precision_error(trainer.precision, OmegaConf.select(config, "model.dtype")):
        raise ValueError(error)
    return trainer


def instantiate_part(config: DictConfig, part: str, **kwargs: Any) -> Any:
    """Instantiate the objects in the section ``part`` of the config.

    Raises:
        ValueError: a constructor failed; the message contains the config key and the constructor's message.
    """
    try:
        return instantiate(config[part], **kwargs)
    except HydraException as error:
        raise ValueError(instantiation_error(error, config, part)) from error


def save_config(config: DictConfig) -> None:
    """Write the resolved config to the run's folder.

    If the folder contains the report of a run with other settings, a line with the different settings is printed,
    because the report will be replaced.
    """
    folder = Path(config.run_dir)
    if (folder / "config.yaml").is_file() and (folder / "results.json").is_file():
        earlier = OmegaConf.load(folder / "config.yaml")
        if different := describe_differences(run_settings(earlier), run_settings(config)):
            print(
                f"run_dir={folder}: this run replaces the report of an earlier run with other settings: {different}. "
                "Finished images are kept."
            )
    atomic_write(folder / "config.yaml", lambda path: OmegaConf.save(config, path, resolve=True))
