"""Watchdogs: a process exits when its parent process has died, and a Slurm job is requeued before its time limit.

A thread polls the id of the parent process. The alternative is ``prctl(PR_SET_PDEATHSIG)``, a function of Linux that
sends a signal when the parent process dies. A Python handler of the signal could not print an error message while a
collective operation blocks the main thread.
"""

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

from experiments.runtime.distributed import ROOT_PID_ENV, detect_launcher
from experiments.runtime.unit_queue import PEER_DIED_MESSAGE

POLL_INTERVAL_S = 1.0  # seconds between two checks whether the parent process is alive
CONNECT_TIMEOUT_S = 60.0  # timeout in seconds of the test connection to torchrun


def install_watchdogs() -> None:
    """Make this process exit if its parent process dies, and requeue the Slurm job when this process receives SIGUSR1.

    The option ``sbatch --signal=USR1@120`` sends SIGUSR1 two minutes before the time limit of the job. The handler of
    Lightning for SIGUSR1 is not used, because that handler saves a checkpoint, for which all processes would have to
    synchronize.
    """
    report_dead_children()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _check_torchrun()
        exit_when_parent_dies(os.getppid())
    elif detect_launcher() is None:
        exit_with_launcher_process()
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR1, requeue_slurm_job)


def report_dead_children() -> None:
    """Print an error message when a child process of Lightning dies.

    Without this function, Lightning ends the run and only logs a message of level INFO.
    """
    observer = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    if _is_child_death_record not in observer.filters:
        observer.addFilter(_is_child_death_record)
        observer.setLevel(logging.INFO)


def _is_child_death_record(record: logging.LogRecord) -> bool:
    """Log filter that drops records of level INFO, and prints an error message for a record of a dead child process."""
    if "Child process with PID" not in record.getMessage():
        return record.levelno > logging.INFO
    print(f"error: {PEER_DIED_MESSAGE}", file=sys.stderr, flush=True)
    return False


def exit_with_launcher_process() -> None:
    """Make this rank exit if the process that launched the rank dies.

    Without this function, the rank would wait for the dead process until the timeout of the process group.
    """
    root = os.environ.setdefault(ROOT_PID_ENV, str(os.getpid()))
    if root == str(os.getpid()) or "LOCAL_RANK" not in os.environ:
        os.environ[ROOT_PID_ENV] = str(os.getpid())
        return
    exit_when_parent_dies(int(root))


def _check_torchrun() -> None:
    """Raise ValueError if torchrun has died, because torchrun hosts the store through which the ranks connect."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    try:
        socket.create_connection(address, timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ValueError(PEER_DIED_MESSAGE) from error


def exit_when_parent_dies(parent: int) -> None:
    """Start a thread that ends this process when its parent process, which has the id ``parent``, dies."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_INTERVAL_S)
        print(f"error: {PEER_DIED_MESSAGE}", file=sys.stderr, flush=True)
        os._exit(1)  # sys.exit() would not end the main thread, which may be blocked in a collective operation

    threading.Thread(target=watch, daemon=True, name="watchdog").start()


def requeue_slurm_job(number: int, frame: FrameType | None) -> None:
    """Signal handler that requeues the Slurm job, whose processes are then terminated by Slurm."""
    if rank_zero_only.rank != 0:
        return
    job = job_id(os.environ)
    try:
        process = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        reason = process.stderr.strip() if process.returncode else ""
    except OSError as error:
        reason = str(error)
    outcome = f"cannot be requeued ({reason}): submit the job again" if reason else "is requeued"
    print(f"SIGUSR1: job {job} {outcome}; finished results are kept.", file=sys.stderr, flush=True)


def job_id(environment: Mapping[str, str]) -> str:
    """Return the id of this Slurm job, such as ``17``, or ``17_3`` for a task of a job array."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]
