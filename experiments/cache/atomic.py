"""Atomic file writes, and hashes of settings. Imports no PyTorch, so that counting starts quickly."""

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
    """A file or folder cannot be written. The message is for the user."""


class CannotRead(OSError):
    """A stored file is missing or damaged. The message is for the user."""


def atomic_write(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` with a temporary file and move that file to ``path``, so that ``path`` is never incomplete.

    As with ``open(path, "w")``, a new file's mode follows the umask, an existing file keeps its mode, and a symbolic
    link is written through. Missing folders are created.

    Raises:
        CannotWrite: no permission, a full disk, or ``path`` is not a regular file. No temporary file remains.
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
    """Raise CannotWrite if ``atomic_write`` could not write ``path``; to be called before long computations."""
    target = Path(os.path.realpath(path))
    with _explained(path):
        _require_regular_file(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _temporary_sibling(target).unlink()


def _temporary_sibling(target: Path) -> Path:
    """Create an empty hidden file with the target's suffix in the target's folder, with the umask's mode."""
    # The stem is shortened, because the target's name may already have the maximum length.
    temporary = target.with_name(f".{target.stem[:32]}.{uuid4().hex[:16]}{target.suffix[:16]}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


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
    """Return the SHA-256 of JSON-serializable settings; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
