"""Files that are whole or absent, and the hashes that name them. It imports no PyTorch: counting starts in a moment."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


class CannotWrite(OSError):
    """A file or folder cannot be written; its text is one sentence for the user."""


class CannotRead(OSError):
    """A file that was written is not there or damaged; its text is one sentence for the user."""


def atomic_write(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Lets ``write`` make a file and moves it to ``path`` when it is complete; other processes see all or nothing.

    As with ``open(path, "w")``, a new file's mode is the umask's, an old one keeps its mode, and a symbolic link is
    written through. Missing folders are made.

    Raises:
        CannotWrite: no right to write, a full disk, or ``path`` is no regular file. Nothing is left behind.
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
    """Finds before long work whether ``atomic_write`` could write ``path``. Raises CannotWrite as it would."""
    target = Path(os.path.realpath(path))
    with _explained(path):
        _require_regular_file(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _temporary_sibling(target).unlink()


def _temporary_sibling(target: Path) -> Path:
    """A new empty file in the target's folder, hidden, with its ending; the kernel gives it the umask's mode."""
    # Shortened, because the file system may take no longer name than the target's.
    temporary = target.with_name(f".{target.stem[:32]}.{uuid4().hex[:16]}{target.suffix[:16]}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _require_regular_file(target: Path) -> None:
    if target.exists() and not target.is_file():
        raise OSError(f"it is {'a folder' if target.is_dir() else 'no regular file'}")


@contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "one of its folders is a file"
        raise CannotWrite(f"{path} cannot be written ({reason}): make room or choose another place.") from error


def digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 of JSON-able settings, the same for the same values in any order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
