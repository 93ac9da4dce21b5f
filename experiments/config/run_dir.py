"""The folder of a run. Each job of a sweep has a separate folder."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

START_TIME_ENV = "START_TIME_OF_THE_RUN"
"""Environment variable with the time at which the run started; Lightning's child processes read it."""
MAX_NAME_BYTES = 200  # maximum length of a folder name; most file systems allow 255
NOT_IN_NAME = ("experiment", "run_dir", "logger", "logger.wandb.offline")
"""Config keys that are omitted from the folder name of a job if all jobs of the sweep have the same value."""
UNSAFE_CHARS = re.compile(r"[^\w.,=+@~\[\]{}'() -]")


def multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def fix_time(started: str | None = None) -> None:
    """Make ``${now:...}`` the time at which the run started, also in the processes that Lightning starts for the run.

    Args:
        started: time in ISO format. Default: the time of the parent process, or now in a process without one.
    """
    if started is None and "LOCAL_RANK" in os.environ:
        started = os.environ.get(START_TIME_ENV)
    os.environ[START_TIME_ENV] = started or datetime.now().isoformat()
    time = datetime.fromisoformat(os.environ[START_TIME_ENV])
    OmegaConf.register_new_resolver("now", time.strftime, use_cache=True, replace=True)


def run_folder(run_dir: str) -> str:
    """Return the folder of this run.

    It is ``run_dir``, or in a sweep a subfolder of ``run_dir`` for each job. The subfolder is named after the job's
    overrides in a Hydra sweep, and after the id of the W&B run in a W&B sweep.
    """
    if multirun():
        hydra = HydraConfig.get()
        return str(Path(run_dir) / job_folder(list(hydra.overrides.task), sweep_jobs(sys.argv[1:]), hydra.job.num))
    if "WANDB_SWEEP_ID" in os.environ:
        if not os.environ.get("WANDB_RUN_ID"):
            raise ValueError(
                f"WANDB_SWEEP_ID={os.environ['WANDB_SWEEP_ID']}, but WANDB_RUN_ID is not set: start the run with "
                "`wandb agent`, or unset WANDB_SWEEP_ID."
            )
        return str(Path(run_dir) / os.environ["WANDB_RUN_ID"])
    return run_dir


def sweep_jobs(arguments: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a Hydra sweep, in order.

    The result is empty if the command-line ``arguments`` cannot be parsed as those of a sweep.
    """
    try:  # parsing fails in a process that a Hydra launcher has started with another command line
        overrides = OverridesParser.create().parse_overrides(get_args_parser().parse_known_args(arguments)[0].overrides)
        return BasicSweeper.split_arguments(overrides, None)[0]
    except HydraException:
        return []


def job_folder(overrides: Sequence[str], jobs: Sequence[Sequence[str]], index: int) -> str:
    """Return the folder name of a job of a sweep. Every job of the sweep has a different name.

    The name consists of the job's overrides. If it contains characters that are unsafe in file names, is too long, or
    is not unique, it is shortened and a hash is appended.

    Args:
        overrides: overrides of this job.
        jobs: overrides of every job of the sweep.
        index: index of this job in ``jobs``.
    """
    common = set.intersection(*map(set, jobs)) if jobs else set()
    shown = [text for text in overrides if not (text in common and text.partition("=")[0] in NOT_IN_NAME)]
    name = ",".join(sorted(shown))
    safe = UNSAFE_CHARS.sub("_", unicodedata.normalize("NFC", name)).strip(" ")
    copies = [list(job) for job in jobs[:index]].count(list(overrides))
    if safe != name or not safe.strip(".") or safe.startswith(".") or copies or len(safe.encode()) > MAX_NAME_BYTES:
        key = hashlib.sha256("\n".join([*overrides, str(copies)]).encode()).hexdigest()[:12]
        safe = f"{safe[: MAX_NAME_BYTES // 4].lstrip('.')},{key}"
    return safe


def check_writable(run_dir: str) -> None:
    """Raise ValueError if the folder ``run_dir`` cannot be created or is not writable."""
    path = Path(run_dir)
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise ValueError(f"run_dir={run_dir}: {existing} is a file; choose another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"run_dir={run_dir}: {existing} is not writable; choose another folder.")
