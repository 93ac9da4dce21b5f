"""Claims: one holder at a time, the dead leave nothing in the way."""

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
from experiments.runtime.leases import OWNER, LeaseManager
from tools.chaos import of_units


@pytest.fixture
def two(tmp_path):
    made = [LeaseManager(tmp_path / "claims") for _ in range(2)]
    yield made
    for claims in made:
        claims.close()


def elsewhere(claims: LeaseManager) -> LeaseManager:
    """The same as seen from another machine, which knows no process of this one."""
    object.__setattr__(claims, "me", module.Owner(claims.me.id, "other", "other machine", 1, ""))
    return claims


def test_one_holds_a_claim_and_knows_it(two):
    one, other = two
    assert one.take("a", {"x": 1}) and one.take("a") and not other.take("a") and other.take("b")
    assert other.holder("a") == (one.me, {"x": 1}) and other.holder("c") is None


def test_what_a_process_held_is_free_when_it_ends(two):
    one, other = two
    assert one.take("a")
    one.close()
    third = LeaseManager(other.root)
    assert other.take("a") and not third.take("a")
    other.finish()
    assert other.root.exists()  # the third is at work
    third.finish()
    assert not other.root.exists()


def test_a_killed_process_of_this_machine_is_known_at_once(tmp_path):
    code = f"from experiments.runtime.leases import Claims; import os; Claims({str(tmp_path)!r}).take('a'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    claims = LeaseManager(tmp_path)
    assert (tmp_path / "a" / OWNER).is_file() and claims.take("a")
    claims.close()


def test_a_process_elsewhere_is_dead_after_a_silence(tmp_path):
    far, near = (
        elsewhere(LeaseManager(tmp_path, beat=0.05, silence=0.4)),
        LeaseManager(tmp_path, beat=0.05, silence=0.4),
    )
    assert far.take("a")
    time.sleep(0.6)
    assert not near.take("a")  # it beats
    far._stop.set()
    far._thread.join()
    time.sleep(0.5)
    assert near.take("a") and not LeaseManager(tmp_path, silence=60).take("a")
    near.close()


def test_many_processes_elsewhere_that_died_are_succeeded_in_turn(tmp_path):
    for _ in range(3):  # a name has room for any number of them
        far = elsewhere(LeaseManager(tmp_path, beat=60, silence=0.1))
        assert far.take("a")
        far._stop.set()
        time.sleep(0.2)
    near = LeaseManager(tmp_path, silence=0.1)
    assert near.take("a") and len(list(tmp_path.glob("a~*"))) == 3
    near.close()


def test_a_claim_appears_with_its_owner_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    claims = LeaseManager(tmp_path)
    with pytest.raises(CannotWrite, match=r"cannot be written \(No space left on device\): make room or choose"):
        claims.take("a")
    claims.close()
    assert not (tmp_path / "a").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_folder_that_has_gone_is_said(tmp_path):
    claims = LeaseManager(tmp_path / "run" / "claims")
    (tmp_path / "run").write_text("")
    with pytest.raises(CannotWrite, match=r"cannot be written"):
        claims.take("a")


@pytest.fixture
def broken(monkeypatch):
    """Every write and removal fails once it is called."""

    def fail(number):
        def refuse(*_, **__):
            raise OSError(number, os.strerror(number))

        for name in ("write_text", "mkdir", "unlink"):
            monkeypatch.setattr(module.Path, name, refuse)

    return fail


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file"), (errno.ESTALE, "Stale file")],
)
def test_a_disk_that_breaks_in_the_middle_is_one_sentence_and_ends_do_not_hide_it(tmp_path, broken, number, reason):
    claims = LeaseManager(tmp_path / "claims", beat=0.02)
    assert claims.take("a")
    broken(number)
    time.sleep(0.2)
    with pytest.raises(CannotWrite) as caught:
        claims.take("b")
    assert re.fullmatch(
        rf"\S+ cannot be written \({reason}[^()]*\): make room or [^:]* finished units are kept\.", str(caught.value)
    )
    claims.close()
    claims.finish()


def test_a_mount_that_has_gone_is_said_and_nothing_is_made_below_it(tmp_path, monkeypatch):
    claims = LeaseManager(tmp_path / "run" / "claims", beat=60)
    assert claims.take("a")
    shutil.rmtree(tmp_path / "run")  # what is below the mount
    with pytest.raises(CannotWrite, match=r"its disk is no longer there\): make room or choose another run_dir, and"):
        claims.take("b")
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(module, "_disk", lambda _: -1)  # and where that folder exists
    with pytest.raises(CannotWrite, match=r"its disk is no longer there"):
        claims.take("b")
    with pytest.raises(CannotWrite, match=r"its disk is no longer there"):
        claims._touch()
    claims.finish()
    assert not list((tmp_path / "run").iterdir())


def test_processes_killed_at_random_lose_nothing_and_do_nothing_twice(tmp_path):
    summary = of_units(tmp_path, kills=6, processes=3, units=40, pause=0.1, seed=1)
    assert summary.kills == 6 and summary.sound, summary
    assert len(list((tmp_path / "units").iterdir())) == 40
