"""Leases of units: a lease has at most one owner at a time, and the leases of dead processes can be acquired."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from experiments.cache.atomic import CannotWrite
from experiments.runtime import leases as module
from experiments.runtime.leases import OWNER_FILE, LeaseManager
from tools.chaos import stress_units


def wait_until(condition, timeout: float = 600.0) -> None:
    """Wait for a condition; fail after ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def two(tmp_path):
    managers = [LeaseManager(tmp_path / "leases") for _ in range(2)]
    yield managers
    for leases in managers:
        leases.close()


def on_another_machine(leases: LeaseManager) -> LeaseManager:
    """Return the manager as another machine would have it, which cannot see the processes of this one."""
    object.__setattr__(leases, "me", module.Owner(leases.me.id, "other", "other machine", 1, ""))
    return leases


def test_lease_has_one_owner(two):
    one, other = two
    assert one.acquire("a", {"x": 1}) and one.acquire("a") and not other.acquire("a") and other.acquire("b")
    assert other.owner_of("a") == (one.me, {"x": 1}) and other.owner_of("c") is None


def test_leases_are_free_after_close(two):
    one, other = two
    assert one.acquire("a")
    one.close()
    third = LeaseManager(other.root)
    assert other.acquire("a") and not third.acquire("a")
    other.finish()
    assert other.root.exists()  # the third is still active
    third.finish()
    assert not other.root.exists()


def test_killed_process_of_this_machine_loses_its_leases_immediately(tmp_path):
    code = (
        "import os; from experiments.runtime.leases import LeaseManager; "
        f"LeaseManager({str(tmp_path)!r}).acquire('a'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    leases = LeaseManager(tmp_path)
    assert (tmp_path / "a" / OWNER_FILE).is_file() and leases.acquire("a")
    leases.close()


def test_remote_process_is_dead_after_the_lease_timeout(tmp_path):
    far = on_another_machine(LeaseManager(tmp_path, heartbeat_interval=0.02, lease_timeout=60.0))
    near = LeaseManager(tmp_path, heartbeat_interval=0.02, lease_timeout=60.0)
    heartbeat = tmp_path / "heartbeats" / far.me.id

    def set_age(seconds: float) -> None:
        last = near._beat() - seconds
        os.utime(heartbeat, (last, last))

    assert far.acquire("a")
    set_age(61.0)
    wait_until(lambda: heartbeat.stat().st_mtime > near._beat() - 60.0)  # it sends heartbeats
    assert not near.acquire("a")
    far._stop.set()
    far._thread.join()
    set_age(30.0)
    assert not near.acquire("a")
    set_age(61.0)
    assert near.acquire("a") and not LeaseManager(tmp_path, lease_timeout=60).acquire("a")
    near.close()


def test_repeated_takeover_from_dead_remote_processes(tmp_path):
    for _ in range(3):  # the length of a name does not grow
        far = on_another_machine(LeaseManager(tmp_path, heartbeat_interval=60, lease_timeout=0.1))
        assert far.acquire("a")
        far._stop.set()
        time.sleep(0.2)
    near = LeaseManager(tmp_path, lease_timeout=0.1)
    assert near.acquire("a") and len(list(tmp_path.glob("a~*"))) == 3
    near.close()


def test_failed_acquisition_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    leases = LeaseManager(tmp_path)
    with pytest.raises(CannotWrite, match=r"cannot be written \(No space left on device\): free some space or choose"):
        leases.acquire("a")
    leases.close()
    assert not (tmp_path / "a").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_missing_folder_raises(tmp_path):
    leases = LeaseManager(tmp_path / "run" / "leases")
    (tmp_path / "run").write_text("")
    with pytest.raises(CannotWrite, match=r"cannot be written"):
        leases.acquire("a")


@pytest.fixture
def broken(monkeypatch):
    """Return a function after whose call every write and removal fails."""

    def fail(number):
        def exit_with_error(*_, **__):
            raise OSError(number, os.strerror(number))

        for name in ("write_text", "mkdir", "unlink"):
            monkeypatch.setattr(module.Path, name, exit_with_error)

    return fail


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file"), (errno.ESTALE, "Stale file")],
)
def test_disk_error_is_one_line_and_close_does_not_hide_it(tmp_path, broken, number, reason):
    leases = LeaseManager(tmp_path / "leases", heartbeat_interval=0.02)
    assert leases.acquire("a")
    broken(number)
    wait_until(lambda: leases._error is not None)
    with pytest.raises(CannotWrite) as caught:
        leases.acquire("b")
    assert re.fullmatch(
        rf"\S+ cannot be written \({reason}[^()]*\): free some space or [^:]* finished results are kept\.",
        str(caught.value),
    )
    leases.close()
    leases.finish()


def test_lost_mount_raises_and_nothing_is_written_below_it(tmp_path, monkeypatch):
    leases = LeaseManager(tmp_path / "run" / "leases", heartbeat_interval=60)
    assert leases.acquire("a")
    shutil.rmtree(tmp_path / "run")  # the folder of the mount
    with pytest.raises(CannotWrite, match=r"its disk is no longer mounted\): free some space or choose another"):
        leases.acquire("b")
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(module, "_device_of", lambda _: -1)  # also if that folder exists
    with pytest.raises(CannotWrite, match=r"its disk is no longer mounted"):
        leases.acquire("b")
    with pytest.raises(CannotWrite, match=r"its disk is no longer mounted"):
        leases._beat()
    leases.finish()
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.slow
def test_random_kills_neither_lose_nor_duplicate_units(tmp_path):
    summary = stress_units(tmp_path, kills=6, processes=3, units=40, pause=0.1, seed=1)
    assert summary.kills == 6 and summary.passed, summary
    assert len(list((tmp_path / "units").iterdir())) == 40
