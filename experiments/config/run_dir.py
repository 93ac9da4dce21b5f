"""The folder to which a run writes its outputs. In a sweep, each job has a separate folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

START_TIME_ENV = "START_TIME_OF_THE_RUN"
"""Environment variable that passes the start time of the run to the child processes of Lightning."""
SWEEP_ARGUMENTS_ENV = "ARGUMENTS_OF_THE_SWEEP"
"""Environment variable that passes the command-line arguments of a sweep to the processes of Hydra's launchers."""
MAX_NAME_BYTES = 100  # maximum length of the folder name of a sweep's job; most file systems allow 255 bytes
UNSAFE_CHARS = re.compile(r"[^\w.+-]+")
"""Characters that are replaced in a folder name, so that the name needs no quotes in shells and URLs."""


def multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def fix_time(started: str | None = None) -> None:
    """Make ``${now:...}`` return the start time of the run, also in the processes that Lightning starts for the run.

    Args:
        started: start time in ISO format. None means the start time in the parent process, or the current time if
            Lightning did not start this process.
    """
    if started is None and "LOCAL_RANK" in os.environ:
        started = os.environ.get(START_TIME_ENV)
    os.environ[START_TIME_ENV] = started or datetime.now().isoformat()
    time = datetime.fromisoformat(os.environ[START_TIME_ENV])
    OmegaConf.register_new_resolver("now", time.strftime, use_cache=True, replace=True)


def run_folder(run_dir: str) -> str:
    """Return the folder of this run.

    Without a sweep, the folder is ``run_dir``. In a sweep, each job has a subfolder of ``run_dir``. In a Hydra sweep,
    the name of the subfolder consists of the values that differ between the jobs. In a W&B sweep, the name of the
    subfolder is the id of the W&B run.
    """
    if multirun():
        hydra = HydraConfig.get()
        jobs = sweep_jobs(json.loads(os.environ.get(SWEEP_ARGUMENTS_ENV, "[]")) or sys.argv[1:])
        return str(Path(run_dir) / job_folder(list(hydra.overrides.task), jobs, hydra.job.num))
    if "WANDB_SWEEP_ID" in os.environ:
        if not os.environ.get("WANDB_RUN_ID"):
            raise ValueError(
                f"WANDB_SWEEP_ID={os.environ['WANDB_SWEEP_ID']}, but WANDB_RUN_ID is not set: start the run with "
                "`wandb agent`, or unset WANDB_SWEEP_ID."
            )
        return str(Path(run_dir) / os.environ["WANDB_RUN_ID"])
    return run_dir


def remember_sweep(arguments: Sequence[str]) -> None:
    """Store the command-line ``arguments`` of a sweep in the environment.

    The processes that Hydra starts for the jobs of the sweep have other command lines. Therefore :func:`run_folder`
    reads the arguments of the sweep from the environment.
    """
    os.environ[SWEEP_ARGUMENTS_ENV] = json.dumps(list(arguments))


def sweep_jobs(arguments: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a Hydra sweep, in the order of the jobs.

    If the command-line ``arguments`` are not valid arguments of a sweep, the returned list is empty.
    """
    try:
        overrides = OverridesParser.create().parse_overrides(get_args_parser().parse_known_args(arguments)[0].overrides)
        return BasicSweeper.split_arguments(overrides, None)[0]
    except HydraException:
        return []


def job_folder(overrides: Sequence[str], jobs: Sequence[Sequence[str]], index: int) -> str:
    """Return the folder name of a job of a sweep. Different jobs of a sweep have different names.

    The name consists of the overrides that differ between the jobs, such as ``lam_0.1``. If the name is too long or not
    unique among ``jobs``, a hash of the overrides is appended.

    Args:
        overrides: overrides of this job.
        jobs: overrides of every job of the sweep.
        index: index of this job in ``jobs``.
    """
    names = [_varied_name(job, jobs) for job in jobs]
    name = _varied_name(overrides, jobs)
    copies = [list(job) for job in jobs[:index]].count(list(overrides))
    if not name or names.count(name) != 1 or len(name.encode()) > MAX_NAME_BYTES:
        key = hashlib.sha256("\n".join([*overrides, str(copies)]).encode()).hexdigest()[:12]
        name = f"{name[: MAX_NAME_BYTES // 4] or 'run'}-{key}"
    return name


def _varied_name(overrides: Sequence[str], jobs: Sequence[Sequence[str]]) -> str:
    common = set.intersection(*map(set, jobs)) if jobs else set()
    return values_name(dict(_key_and_value(text) for text in overrides if text not in common))


def _key_and_value(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def values_name(values: Mapping[str, Any]) -> str:
    """Return a name that consists of config keys and their values, such as ``lam_0.1-seed_3``.

    A dotted key is shortened to its last part, unless another key has the same last part.
    """
    shortened = {key: re.split(r"[./@]", key)[-1] for key in values}
    last_parts = list(shortened.values())
    names = {key: short if last_parts.count(short) == 1 else key for key, short in shortened.items()}
    return "-".join(f"{_safe(names[key])}_{_safe(str(values[key]))}" for key in sorted(values)).lstrip(".")


def _safe(text: str) -> str:
    return UNSAFE_CHARS.sub("_", unicodedata.normalize("NFC", text)).strip("_")


def check_writable(run_dir: str) -> None:
    """Raise ValueError if the folder ``run_dir`` is not writable or cannot be created."""
    path = Path(run_dir)
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise ValueError(f"run_dir={run_dir}: {existing} is a file; choose another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"run_dir={run_dir}: {existing} is not writable; choose another folder.")
