"""Setup of loggers: id, name and job type of the W&B run, login to W&B, and checks of packages and options."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pydantic
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from experiments.cache.atomic import atomic_write, digest
from experiments.config.errors import nearest
from experiments.config.run_dir import multirun, values_name
from experiments.config.run_settings import run_settings
from rnri.validation import describe

WANDB_ID_FILE = "wandb_id"
"""Name of the file in the run's folder that contains the id of the W&B run."""
EXTRAS = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow"}
"""Packages that are not installed by default, by the class name of the logger that needs the package.

For each package, ``pyproject.toml`` has an extra (group of optional dependencies) with the name of the package.
"""
MAX_JOB_TYPE_CHARS = 64  # maximum length of a job type in W&B


def _wandb_configs(loggers: DictConfig | None) -> list[DictConfig]:
    package = WandbLogger.__module__.rpartition(".")[0]
    targets = (f"{package}.WandbLogger", f"{WandbLogger.__module__}.WandbLogger")
    return [logger for logger in (loggers or {}).values() if str(logger.get("_target_")) in targets]


def set_wandb_identity(config: DictConfig) -> None:
    """Set the id, the name and the job type of the W&B run, if they are null in the config.

    If the run's folder contains the id of an earlier W&B run with the same settings, the earlier W&B run is resumed.
    The id ends with a hash of the settings, by which the settings are compared. In a W&B sweep, the agent of the sweep
    sets the id.
    """
    for logger in _wandb_configs(config.logger):
        if "id" in logger and logger.id is None and "WANDB_RUN_ID" not in os.environ:
            file = Path(config.run_dir) / WANDB_ID_FILE
            earlier = file.read_text().strip() if file.is_file() else ""
            suffix = f"-{digest(run_settings(config))[:8]}"
            logger.id = earlier if earlier.endswith(suffix) else f"{uuid4().hex[:8]}{suffix}"
        if "name" in logger and logger.name is None:
            logger.name = _run_name(config)
        os.environ.setdefault("WANDB_QUIET", "true")  # W&B prints no summary of all metrics at the end of the run
        if "job_type" in logger and logger.job_type is None:
            arms = OmegaConf.select(config, "task.arms") or [config.name]
            logger.job_type = _job_type(list(map(str, arms)))


def _run_name(config: DictConfig) -> str:
    """Return the name of the W&B run, which is the name of the experiment.

    In a sweep, the name consists of the values that the sweep has chosen for this run.
    """
    if multirun():
        return Path(config.run_dir).name
    if "WANDB_SWEEP_PARAM_PATH" in os.environ:  # path of the file with the values that the sweep chose for this run
        parameters = OmegaConf.load(os.environ["WANDB_SWEEP_PARAM_PATH"])
        return values_name({key: entry.value for key, entry in parameters.items() if key != "wandb_version"})
    return str(config.name)


def _job_type(arms: Sequence[str]) -> str:
    """Return the W&B job type, such as ``plain+nao+3 more``, from the names of the arms (compared pipelines).

    If all names together are too long, the last names are replaced by their number.
    """
    for k in range(len(arms), 0, -1):
        job_type = "+".join([*arms[:k], *([f"{len(arms) - k} more"] if k < len(arms) else [])])
        if len(job_type) <= MAX_JOB_TYPE_CHARS:
            return job_type
    return arms[0][:MAX_JOB_TYPE_CHARS]


def omit_anonymous_option(loggers: Sequence[Logger]) -> None:
    """Remove the option ``anonymous``, which Lightning always passes to W&B, because W&B warns about this option."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger._wandb_init.get("anonymous") is None:
            logger._wandb_init.pop("anonymous", None)


@rank_zero_only
def log_config(loggers: Sequence[Logger], config: DictConfig) -> None:
    """Log the resolved config to all loggers except CSV, and write the id of the W&B run to the file ``wandb_id``."""
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
        if isinstance(logger, WandbLogger) and logger.version:
            file = Path(config.run_dir) / WANDB_ID_FILE
            atomic_write(file, lambda path, id=logger.version: path.write_text(f"{id}\n"))


def check_wandb_options(loggers: DictConfig | None) -> None:
    """Check the options of W&B loggers before a W&B run is started.

    Raises:
        ValueError: an option does not exist in W&B, or W&B does not accept its value.
    """
    for name, logger in (loggers or {}).items():
        if logger not in _wandb_configs(loggers):
            continue
        import wandb  # imported here, because the import takes seconds

        lightning_options = inspect.signature(WandbLogger).parameters
        accepted = inspect.signature(wandb.init).parameters
        settings = wandb.Settings.model_fields
        for key, value in OmegaConf.to_container(logger, resolve=True).items():
            if key not in lightning_options and key not in accepted and key != "_target_":
                raise ValueError(f"logger.{name}.{key}: unknown option of W&B; {nearest(str(key), list(accepted))}.")
            field = key if key in settings else f"run_{key}"
            if field in settings and value is not None:
                try:
                    wandb.Settings(**{field: value})
                except pydantic.ValidationError as error:
                    raise ValueError(f"logger.{name}.{key}: {describe(error)}") from None
                except (wandb.Error, TypeError, ValueError) as error:
                    reason = " ".join(str(error).split())
                    raise ValueError(f"logger.{name}.{key}: {reason}; choose another value.") from None


def check_packages(loggers: DictConfig | None) -> None:
    """Raise ValueError if the config contains a logger whose package is not installed."""
    for name, logger in (loggers or {}).items():
        package = EXTRAS.get(str(logger.get("_target_")).rpartition(".")[2])
        if package is not None and find_spec(package) is None:
            raise ValueError(f'logger={name} requires the extra {package}: run pip install -e ".[{package}]".')


def check_account(loggers: DictConfig | None) -> None:
    """Raise ValueError if the config contains an online W&B logger and the login to W&B fails."""
    online = [logger for logger in _wandb_configs(loggers) if not logger.get("offline", False)]
    if online and rank_zero_only.rank == 0:
        _log_in()


def _log_in() -> None:
    import wandb  # imported here, because the import takes seconds

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return
    try:
        success = wandb.login(prompt=False)
        reason = "no account is configured on this machine"
    except wandb.Error as error:
        success = False
        reason = " ".join(str(error).split())
    if not success:
        raise ValueError(f"logger=wandb: {reason}; run `wandb login`, or use logger.wandb.offline=true or logger=csv.")


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """Finish the W&B run, so that the next job of a Hydra multirun starts a new W&B run.

    The W&B run is marked as failed if this function is called while an exception is handled.
    """
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish(exit_code=0 if sys.exception() is None else 1)


def ignore_deleted_logs() -> None:
    """Ignore Lightning's warning that the CSV log is overwritten, because a resumed run logs all values again."""
    warnings.filterwarnings("ignore", message="Experiment logs directory")
