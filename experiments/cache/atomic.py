"""Atomic file writes (a file is written completely or not at all), and hashes of settings.

This module does not import PyTorch, so that commands without PyTorch, such as ``experiments.counting.count_captions``,
start quickly.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

TEMPORARY = re.compile(r"\..+\.(?P<processes>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}(\..*)?")
"""Pattern of the name of a temporary file, which contains a hash of the machine and the id of the writing process."""
MAX_WRITE_S = 24 * 3600  # a temporary file of another machine is stale if it has not changed for this time in seconds


class CannotWrite(OSError):
    """Error that is raised if a file or folder cannot be written. The error message is shown to the user."""


class CannotRead(OSError):
    """Error that is raised if a stored file is missing or damaged. The error message is shown to the user."""


def atomic_write(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Write a file atomically: call ``write`` with a temporary path, then rename the temporary file to ``path``.

    The file ``path`` is therefore never incomplete. As with ``open(path, "w")``, the permissions of a new file follow
    the umask, and the permissions of an existing file do not change. If ``path`` is a symbolic link, the target of the
    link is replaced. Missing folders are created. If ``write`` raises an exception, the temporary file is deleted.

    Raises:
        CannotWrite: the file cannot be written, for example because the disk is full or ``path`` is not a regular file.
    """
    target = Path(os.path.realpath(path))
    with _explained(path):
        _require_regular_file(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_sibling(target)
        try:
            write(temporary)
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise CannotWrite if :func:`atomic_write` would not be able to write ``path``.

    Call this function before a long computation whose results will be written to ``path``.
    """
    target = Path(os.path.realpath(path))
    with _explained(path):
        _require_regular_file(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _temporary_sibling(target).unlink()


def _temporary_sibling(target: Path) -> Path:
    """Create an empty hidden file in the folder of ``target`` and with its suffix; return the path of the file."""
    # The stem is shortened, because the name of ``target`` may have the maximum length of a file name.
    writer = f"{_process_namespace()}-{os.getpid()}-{uuid4().hex[:8]}"
    temporary = target.with_name(f".{target.stem[:32]}.{writer}{target.suffix[:16]}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


@cache
def _process_namespace() -> str:
    """Return a hash that identifies the machine since its last boot, and the PID namespace (container) of this process.

    If two processes have the same hash, each process can look up the other process by its process id.
    """
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        content = f"{boot_id} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # without /proc, the PID namespace is unknown, and the hash is random
        content = uuid4().hex
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def remove_stale_temporaries(folder: str | Path) -> None:
    """Delete the temporary files of killed processes in ``folder`` and its subfolders.

    A temporary file of :func:`atomic_write` is deleted if the process that wrote the file is dead. A temporary file
    from another machine is deleted if it has not changed for a day.
    """
    for path in Path(folder).rglob(".*"):
        name = TEMPORARY.fullmatch(path.name)
        if name and _is_stale(path, name):
            with suppress(OSError):
                path.unlink()


def _is_stale(path: Path, name: re.Match[str]) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:  # another process has renamed or deleted the file
        return False
    if not stat.S_ISREG(status.st_mode):
        return False
    if name["processes"] == _process_namespace():
        return not _is_alive(int(name["pid"]))
    return time.time() - status.st_mtime > MAX_WRITE_S


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process exists and belongs to another user
        return True
    return True


def finished_files(folder: str | Path, pattern: str) -> list[Path]:
    """Return the files in ``folder`` that match ``pattern``, sorted by name, without hidden and temporary files.

    This function replaces ``Path.glob``, which also returns the hidden temporary files of :func:`atomic_write`.
    """
    return sorted(path for path in Path(folder).glob(pattern) if not path.name.startswith("."))


def _require_regular_file(target: Path) -> None:
    if target.exists() and not target.is_file():
        raise OSError(f"it is {'a folder' if target.is_dir() else 'not a regular file'}")


@contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "one of its folders is a file"
        raise CannotWrite(f"{path} cannot be written ({reason}): free some space or choose another path.") from error


def digest(fields: Mapping[str, Any]) -> str:
    """Return the SHA-256 hash of JSON-serializable settings. The hash does not depend on the order of the keys."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
