"""Processes whose company dies, and jobs that Slurm is about to end."""

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
from experiments.runtime import watchdog as company
from experiments.runtime.watchdog import FIRST, install_watchdogs
from tests.experiments.runtime import pair
from tools.chaos import Run


@pytest.fixture
def job(monkeypatch):
    """A process of a Slurm job, with the handler that it had before."""
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setenv(FIRST, "")
    for name in ("SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "LOCAL_RANK", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(company.rank_zero_only, "rank", 0)
    yield monkeypatch
    signal.signal(signal.SIGUSR1, before)


def scontrol(folder, monkeypatch, code: str) -> None:
    """A ``scontrol`` of our own, which notes what it is asked for."""
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{code}\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("exit 0", "SIGUSR1: job 17 is queued again; finished units are kept."),
        ("echo Invalid job id >&2; exit 1", "job 17 cannot be queued again (Invalid job id): submit it anew; finished"),
    ],
)
def test_sigusr1_asks_slurm_once_to_queue_the_job_again(job, tmp_path, capfd, code, said):
    scontrol(tmp_path, job, code)
    install_watchdogs()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert said in capfd.readouterr().err
    job.setattr(company.rank_zero_only, "rank", 1)  # the first process asks for all
    os.kill(os.getpid(), signal.SIGUSR1)
    assert (tmp_path / "asked").read_text() == "requeue 17\n"


def test_without_scontrol_that_is_said(job, tmp_path, capfd):
    install_watchdogs()
    job.setenv("PATH", str(tmp_path))
    os.kill(os.getpid(), signal.SIGUSR1)
    assert "job 17 cannot be queued again (" in capfd.readouterr().err


def test_a_job_of_an_array_is_named_by_both_its_numbers():
    assert company.job_id({"SLURM_JOB_ID": "20"}) == "20"
    array = {"SLURM_JOB_ID": "20", "SLURM_ARRAY_JOB_ID": "18", "SLURM_ARRAY_TASK_ID": "2"}
    assert company.job_id(array) == "18_2"


def test_elsewhere_the_signal_is_left_alone(job):
    before = signal.getsignal(signal.SIGUSR1)
    job.delenv("SLURM_JOB_ID")
    install_watchdogs()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_process_of_torchrun_ends_where_torchrun_has_ended(job, capfd):
    job.setenv("TORCHELASTIC_RUN_ID", "x")
    job.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    job.setattr(company, "LOOK", 0.01)
    ended, parents = threading.Event(), iter([7, 7, 7, 1])
    job.setattr(company.os, "getppid", lambda: next(parents, 1))
    job.setattr(company.os, "_exit", lambda code: (code == 1 and ended.set()) or sys.exit())
    with socket.create_server(("127.0.0.1", 0)) as store:
        job.setenv("MASTER_ADDR", "127.0.0.1")
        job.setenv("MASTER_PORT", str(store.getsockname()[1]))
        install_watchdogs()
        assert ended.wait(5) and f"error: {company.DIED}" in capfd.readouterr().err
    with pytest.raises(ValueError, match="another process of this run has ended"):  # it ended while programs loaded
        install_watchdogs()


def test_lightnings_end_of_all_processes_is_said_and_nothing_else_of_its_details(job, capfd):
    install_watchdogs()
    child = SimpleNamespace(pid=5, returncode=-9, poll=lambda: -9)
    observer, ended = _ChildProcessObserver(main_pid=4, child_processes=[child]), []
    job.setattr(observer, "_terminate_all", lambda: ended.append(True))
    assert observer._run() and ended
    logging.getLogger(type(observer).__module__).info("some detail")
    assert capfd.readouterr().err == f"error: {company.DIED}\n"


@pytest.mark.slow
def test_where_the_first_process_is_killed_the_other_ends_and_the_rest_is_done_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    units, said = UnitStore(tmp_path / "units", {}), tmp_path / "said"
    with said.open("w") as file:
        run = Run.begin([sys.executable, "-m", "tests.experiments.runtime.pair", str(tmp_path)], file)
    while len(list(units.root.glob("*.safetensors"))) < 2:  # both are at work
        assert run.leader.poll() is None, said.read_text()
        time.sleep(0.05)
    os.kill(run.leader.pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while run.processes():
        assert time.monotonic() < end, "a process was left behind"
        time.sleep(0.05)
    assert f"error: {company.DIED}" in said.read_text()
    found, began = len(list(units.root.glob("*.safetensors"))), time.time()
    pair.run(tmp_path, 0.0)
    made = [units.read(str(k))[1]["made"] for k in range(pair.UNITS)]
    assert sum(time < began for time in made) == found < pair.UNITS
