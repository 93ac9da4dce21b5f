"""Atomic writes: a file is complete or does not exist, has the usual permissions, and errors are reported."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cache import atomic
from experiments.cache.atomic import (
    CannotWrite,
    atomic_write,
    check_writable,
    finished_files,
    remove_stale_temporaries,
)


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def put(path: Path, text: str = "new") -> None:
    atomic_write(path, lambda temporary: temporary.write_text(text))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_files_and_folders_follow_the_umask(tmp_path, umask):
    put(tmp_path / "folder" / "file.txt")
    assert mode(tmp_path / "folder" / "file.txt") == 0o640 and mode(tmp_path / "folder") == 0o750


def test_rewritten_file_keeps_its_mode(tmp_path, umask):
    path = tmp_path / "file.txt"
    path.write_text("old")
    path.chmod(0o664)
    put(path)
    assert (path.read_text(), mode(path)) == ("new", 0o664)


@pytest.mark.parametrize("target_exists", [True, False])
def test_symbolic_link_is_written_through(tmp_path, target_exists):
    target, link = tmp_path / "elsewhere" / "target.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    if target_exists:
        put(target, "old")
    put(link)
    assert link.is_symlink() and target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_temporary_file_has_suffix_and_allowed_length(tmp_path):
    seen = []
    atomic_write(tmp_path / f"{'x' * 247}.parquet", lambda temporary: seen.append(temporary) or temporary.touch())
    assert seen[0].suffix == ".parquet" and seen[0].name.startswith(".")


def test_interrupted_write_leaves_no_file(tmp_path):
    def fail(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "file.txt", fail)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_raises_and_preserves_old_file(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    put(tmp_path / "file.txt", "old")
    with pytest.raises(CannotWrite, match=r"file\.txt cannot be written \(No space left on device\): free some space"):
        atomic_write(tmp_path / "file.txt", fail)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_folder_without_permission_raises(tmp_path, monkeypatch):
    def deny(path, flags, mode=0o777):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", deny)  # chmod does not restrict root
    for function in (put, check_writable):
        with pytest.raises(CannotWrite, match=r"file\.txt cannot be written \(Permission denied\)"):
            function(tmp_path / "file.txt")
    assert list(tmp_path.iterdir()) == []


def test_target_that_is_no_regular_file_raises(tmp_path):
    put(tmp_path / "file")
    (tmp_path / "null").symlink_to(os.devnull)
    reasons = {
        tmp_path: "it is a folder",
        tmp_path / "null": "it is not a regular file",
        tmp_path / "file" / "a.txt": "one of its folders is a file",
    }
    for path, reason in reasons.items():
        for function in (put, check_writable):
            with pytest.raises(CannotWrite, match=rf"cannot be written \({reason}\)"):
                function(path)


KILLED = """
import os, signal, sys
from experiments.cache.atomic import atomic_write
def write(temporary):
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
atomic_write(sys.argv[1], write)
"""


def test_temporary_file_of_a_killed_process_is_removed_and_never_counted(tmp_path):
    put(tmp_path / "units" / "a.safetensors")
    target = tmp_path / "units" / "b.safetensors"
    process = subprocess.run([sys.executable, "-c", KILLED, target], cwd=Path(__file__).parents[3])
    assert process.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "units").glob("*.safetensors"))) == 2  # one of them is hidden and incomplete
    assert finished_files(tmp_path / "units", "*.safetensors") == [tmp_path / "units" / "a.safetensors"]
    remove_stale_temporaries(tmp_path)
    assert [path.name for path in (tmp_path / "units").iterdir()] == ["a.safetensors"]


def test_temporary_file_of_a_living_process_is_not_removed(tmp_path):
    def write(temporary):
        temporary.write_text("whole")
        os.utime(temporary, (1, 1))
        remove_stale_temporaries(tmp_path)

    (tmp_path / ".hidden.txt").write_text("of the user")
    (tmp_path / ".git.0123abcd-1-0123abcd").mkdir()
    atomic_write(tmp_path / "file.txt", write)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git.0123abcd-1-0123abcd", ".hidden.txt", "file.txt"]


def test_temporary_file_of_another_machine_is_removed_after_a_day(tmp_path):
    old, new = tmp_path / ".a.00000000-1-0123abcd.txt", tmp_path / ".b.00000000-1-0123abcd.txt"
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    assert atomic._process_namespace() != "00000000"
    remove_stale_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_check_writable_leaves_no_file(tmp_path):
    check_writable(tmp_path / "file.txt")
    assert list(tmp_path.iterdir()) == []


def test_counting_does_not_import_pytorch():
    code = "import sys, experiments.counting.count_captions; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3], timeout=600)
