"""What a process does when another of its run dies, or Slurm is about to end the job."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType

from lightning.pytorch.utilities import rank_zero_only

from experiments.runtime.distributed import launch
from experiments.runtime.unit_queue import DIED

FIRST = "FIRST_PROCESS_OF_THE_RUN"
"""The variable by which processes that Lightning starts know the one that started them."""
LOOK = 1.0  # seconds between two looks whether it lives
MINUTE = 60.0


def install_watchdogs() -> None:
    """Lets this process end where it would be left behind, in one sentence, and a job be queued again before its end.

    SIGUSR1, which ``sbatch --signal=USR1@120`` sends before the time limit, asks Slurm to queue the job again.
    Lightning would first save a checkpoint, for which all processes have to meet and no run has a use.
    """
    report_dead_children()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _check_torchrun()
        exit_when_parent_dies(os.getppid())
    elif launch() is None:
        exit_with_launcher_process()
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR1, requeue_slurm_job)


def report_dead_children() -> None:
    """Lightning kills the first process where one that it started died, and tells of it only who asks for details."""
    observer = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    if _is_child_death_record not in observer.filters:
        observer.addFilter(_is_child_death_record)
        observer.setLevel(logging.INFO)


def _is_child_death_record(record: logging.LogRecord) -> bool:
    if "Child process with PID" not in record.getMessage():
        return record.levelno > logging.INFO
    print(f"error: {DIED}", file=sys.stderr, flush=True)
    return False


def exit_with_launcher_process() -> None:
    """Ends a process that Lightning started once the one that started it is dead: it would wait for it for an hour."""
    first = os.environ.setdefault(FIRST, str(os.getpid()))
    if first == str(os.getpid()) or "LOCAL_RANK" not in os.environ:
        os.environ[FIRST] = str(os.getpid())
        return
    exit_when_parent_dies(int(first))


def _check_torchrun() -> None:
    """ValueError where torchrun was killed while this process loaded its programs: what processes meet at is its."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=MINUTE).close()
    except OSError as error:
        raise ValueError(DIED) from error


def exit_when_parent_dies(parent: int) -> None:
    """Ends this process when its parent has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        print(f"error: {DIED}", file=sys.stderr, flush=True)
        os._exit(1)  # from a thread, and wherever the process waits

    threading.Thread(target=watch, daemon=True, name="company").start()


def requeue_slurm_job(number: int, frame: FrameType | None) -> None:
    """The first process asks for it once; Slurm then ends them all."""
    if rank_zero_only.rank != 0:
        return
    job = job_id(os.environ)
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        failed = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        failed = str(error)
    said = f"cannot be queued again ({failed}): submit it anew" if failed else "is queued again"
    print(f"SIGUSR1: job {job} {said}; finished units are kept.", file=sys.stderr, flush=True)


def job_id(environment: Mapping[str, str]) -> str:
    """The number by which Slurm knows this job, which may be one of an array."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]
