"""Where a run writes; the jobs of a sweep have a folder each."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode

LONGEST_NAME = 200  # bytes; most file systems take 255
NOT_IN_NAME = ("experiment", "run_dir", "logger", "logger.wandb.offline")
"""Keys that say nothing of a job where all jobs have the same."""
UNSAFE_CHARS = re.compile(r"[^\w.,=+@~\[\]{}'() -]")


def multirun() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_folder(run_dir: str) -> str:
    """The runs of a sweep have a folder each in ``run_dir``, named by what the sweep changes or W&B's id of the run."""
    if multirun():
        hydra = HydraConfig.get()
        return str(Path(run_dir) / job_folder(list(hydra.overrides.task), sweep_jobs(sys.argv[1:]), hydra.job.num))
    if "WANDB_SWEEP_ID" in os.environ:
        return str(Path(run_dir) / os.environ["WANDB_RUN_ID"])
    return run_dir


def sweep_jobs(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of Hydra's sweep, in its order; none where ``arguments`` are not those of a sweep."""
    try:  # a launcher with processes of its own has another command line there
        overrides = OverridesParser.create().parse_overrides(get_args_parser().parse_known_args(arguments)[0].overrides)
        return BasicSweeper.split_arguments(overrides, None)[0]
    except HydraException:
        return []


def job_folder(own: Sequence[str], jobs: Sequence[Sequence[str]], number: int) -> str:
    """A name for the job of the overrides ``own``, the ``number``-th of ``jobs``: one folder name, no other job's.

    It is what one types, where a file system takes that; else it ends in a hash of it.
    """
    same = set.intersection(*map(set, jobs)) if jobs else set()
    told = [text for text in own if not (text in same and text.partition("=")[0] in NOT_IN_NAME)]
    name = ",".join(sorted(told))
    safe = UNSAFE_CHARS.sub("_", unicodedata.normalize("NFC", name)).strip(" ")
    copies = [list(job) for job in jobs[:number]].count(list(own))
    if safe != name or not safe.strip(".") or safe.startswith(".") or copies or len(safe.encode()) > LONGEST_NAME:
        key = hashlib.sha256("\n".join([*own, str(copies)]).encode()).hexdigest()[:12]
        safe = f"{safe[: LONGEST_NAME // 4].lstrip('.')},{key}"
    return safe


def check_writable(run_dir: str) -> None:
    """ValueError, naming the key, where no run can write."""
    path = Path(run_dir)
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise ValueError(f"run_dir={run_dir}: {existing} is a file: name a folder, or one that can be made.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"run_dir={run_dir}: {existing} cannot be written to: name another folder.")
