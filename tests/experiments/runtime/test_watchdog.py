"""Processes end if the parent process or another rank dies, and Slurm jobs end before their time limit."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from experiments.cache.store import UnitStore
from experiments.runtime import watchdog
from experiments.runtime.watchdog import ROOT_PID_ENV, install_watchdogs
from tests.experiments.runtime import pair
from tools.chaos import ProcessTree


@pytest.fixture
def job(monkeypatch):
    """A process of a Slurm job; the previous handler of SIGUSR1 is restored."""
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setenv(ROOT_PID_ENV, "")
    for name in ("SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "LOCAL_RANK", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(watchdog.rank_zero_only, "rank", 0)
    yield monkeypatch
    signal.signal(signal.SIGUSR1, before)


def scontrol(folder, monkeypatch, code: str) -> None:
    """Install a ``scontrol`` that records its arguments."""
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/arguments\n{code}\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("exit 0", "SIGUSR1: job 17 is requeued; finished results are kept."),
        (
            "echo Invalid job id >&2; exit 1",
            "job 17 cannot be requeued (Invalid job id): submit the job again; finished",
        ),
    ],
)
def test_sigusr1_requeues_the_job_once(job, tmp_path, capfd, code, message):
    scontrol(tmp_path, job, code)
    install_watchdogs()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert message in capfd.readouterr().err
    job.setattr(watchdog.rank_zero_only, "rank", 1)  # only rank 0 requeues
    os.kill(os.getpid(), signal.SIGUSR1)
    assert (tmp_path / "arguments").read_text() == "requeue 17\n"


def test_missing_scontrol_is_reported(job, tmp_path, capfd):
    install_watchdogs()
    job.setenv("PATH", str(tmp_path))
    os.kill(os.getpid(), signal.SIGUSR1)
    assert "job 17 cannot be requeued (" in capfd.readouterr().err


def test_array_job_id_has_both_numbers():
    assert watchdog.job_id({"SLURM_JOB_ID": "20"}) == "20"
    array = {"SLURM_JOB_ID": "20", "SLURM_ARRAY_JOB_ID": "18", "SLURM_ARRAY_TASK_ID": "2"}
    assert watchdog.job_id(array) == "18_2"


def test_signal_is_unchanged_without_slurm(job):
    before = signal.getsignal(signal.SIGUSR1)
    job.delenv("SLURM_JOB_ID")
    install_watchdogs()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_process_exits_when_torchrun_dies(job, capfd):
    job.setenv("TORCHELASTIC_RUN_ID", "x")
    job.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    job.setattr(watchdog, "POLL_INTERVAL_S", 0.01)
    ended = threading.Event()
    parents = iter([7, 7, 7, 1])
    job.setattr(watchdog.os, "getppid", lambda: next(parents, 1))
    job.setattr(watchdog.os, "_exit", lambda code: (code == 1 and ended.set()) or sys.exit())
    with socket.create_server(("127.0.0.1", 0)) as store:
        job.setenv("MASTER_ADDR", "127.0.0.1")
        job.setenv("MASTER_PORT", str(store.getsockname()[1]))
        install_watchdogs()
        assert ended.wait(600) and f"error: {watchdog.PEER_DIED_MESSAGE}" in capfd.readouterr().err
    with pytest.raises(ValueError, match="another process of this run has died"):  # it died during the imports
        install_watchdogs()


def test_only_child_deaths_of_lightnings_log_are_printed(job, capfd):
    install_watchdogs()
    child = SimpleNamespace(pid=5, returncode=-9, poll=lambda: -9)
    observer = _ChildProcessObserver(main_pid=4, child_processes=[child])
    ended = []
    job.setattr(observer, "_terminate_all", lambda: ended.append(True))
    assert observer._run() and ended
    logging.getLogger(type(observer).__module__).info("some detail")
    assert capfd.readouterr().err == f"error: {watchdog.PEER_DIED_MESSAGE}\n"


@pytest.mark.slow
def test_rank_1_exits_when_rank_0_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    units = UnitStore(tmp_path / "units", {})
    message = tmp_path / "message"
    with message.open("w") as file:
        run = ProcessTree.start([sys.executable, "-m", "tests.experiments.runtime.pair", str(tmp_path)], tmp_path, file)
    while len(units.files()) < 2:  # both processes are active
        assert run.root.poll() is None, message.read_text()
        time.sleep(0.05)
    os.kill(run.root.pid, signal.SIGKILL)
    end = time.monotonic() + 600
    while run.processes():
        assert time.monotonic() < end, "a process was left behind"
        time.sleep(0.05)
    assert f"error: {watchdog.PEER_DIED_MESSAGE}" in message.read_text()
    finished, began = len(units.files()), time.time()
    pair.run(tmp_path, 0.0)
    times = [units.read(str(k))[1]["time"] for k in range(pair.UNITS)]
    assert sum(time < began for time in times) == finished < pair.UNITS
