"""Who works at what, on a file system that processes share: claims that at most one of them holds, and heartbeats.

A claim is a folder that appears whole, by a rename, and holds the name of its owner's heartbeat; of two processes that
rename at once one fails. An owner that has died is not disturbed: whoever finds it dead claims its *succession*, a
name made of the claim's and the owner's, which again only one can. Nothing is locked, and nothing has to be undone
after a kill. It imports no PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from experiments.cache.atomic import CannotWrite

BEAT, SILENCE = 3.0, 45.0  # seconds between heartbeats, and after which an owner counts as dead
OWNER = "owner.json"
REMEDY = "make room or choose another run_dir, and run the same command again; finished units are kept"


@dataclass(frozen=True)
class Owner:
    """A process that holds claims: its own id, where it runs, and the moment it began there."""

    id: str
    host: str
    space: str
    pid: int
    began: str

    @property
    def said(self) -> str:
        return f"process {self.pid} on {self.host}"


def _space() -> str:
    """What tells apart the machines, and on them the containers, whose process numbers have different meanings."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{sys.platform} {uuid4().hex}"  # nothing is known of others' processes there


def _began(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None if there is none, or it is a zombie."""
    try:
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after[0] in "ZX" else after[19]


def _succession(name: str, place: str, owner: Owner) -> str:
    """Where ``name`` is claimed next, after a dead owner in ``place``; its length does not grow."""
    return f"{name}~{hashlib.sha256(f'{place} {owner.id}'.encode()).hexdigest()[:24]}"


def _disk(folder: Path) -> int | None:
    try:
        return folder.stat().st_dev
    except OSError:
        return None


class LeaseManager:
    """What this process has claimed below ``root``, and who holds the rest.

    Args:
        root: a folder of its own, which every process of the run sees.
        beat: seconds between two heartbeats.
        silence: seconds without one after which a process of another machine counts as dead.
    """

    def __init__(self, root: str | Path, beat: float = BEAT, silence: float = SILENCE) -> None:
        self.root, self.beat, self.silence = Path(root), beat, silence
        pid = os.getpid()
        self.me = Owner(uuid4().hex[:16], socket.gethostname(), _space(), pid, _began(pid) or "")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed: OSError | None = None
        self._disk: int | None = None

    def take(self, name: str, note: Mapping[str, Any] | None = None) -> bool:
        """Whether ``name`` is now this process's: nobody had it, or all who had it are dead.

        CannotWrite where the folder cannot be written.
        """
        if self._failed is not None:
            raise CannotWrite(str(self._failed)) from self._failed
        self._start()
        self._check_disk()
        place = name
        while (owner := self._owner(place)) is not None:
            if owner.id == self.me.id:
                return True
            if self.alive(owner):
                return False
            place = _succession(name, place, owner)
        return self._create(place, note)

    def holder(self, name: str) -> tuple[Owner, dict[str, Any]] | None:
        """Who holds ``name`` and what was noted with it; None if nobody alive does."""
        place = name
        while (found := self._read(place)) is not None:
            owner, note = found
            if owner.id == self.me.id or self.alive(owner):
                return owner, note
            place = _succession(name, place, owner)
        return None

    def alive(self, owner: Owner) -> bool:
        """Whether an owner lives: by the kernel where it runs beside this process, else by its heartbeat."""
        if owner.space == self.me.space:
            return _began(owner.pid) == owner.began and (self._beats / owner.id).exists()
        try:
            beat = (self._beats / owner.id).stat().st_mtime
            now = self._touch()  # both times are the file system's: clocks of machines differ
        except FileNotFoundError:
            return False
        return now - beat < self.silence

    def close(self) -> None:
        """Ends the heartbeat: whatever this process still holds is free."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            with suppress(OSError):  # a disk that has gone: no beat comes any more, in any case
                (self._beats / self.me.id).unlink(missing_ok=True)

    def finish(self) -> None:
        """Closes, and removes all claims unless another process is alive."""
        try:
            others = self._others()
        except OSError:  # a disk that is full, read-only or gone: the error that ended the run is said, not this one
            others = True
        self.close()
        if not others:
            shutil.rmtree(self.root, ignore_errors=True)

    def _others(self) -> bool:
        """Whether another process is alive."""
        beats = [path.name for path in self._beats.iterdir()] if self._beats.is_dir() else []
        owners = {owner.id: owner for owner in map(self._owner, self._places()) if owner is not None}
        return any(id != self.me.id and (id not in owners or self.alive(owners[id])) for id in beats)

    def _places(self) -> list[str]:
        return [path.name for path in self.root.iterdir() if path.name != "alive" and not path.name.startswith(".")]

    @cached_property
    def _beats(self) -> Path:
        return self.root / "alive"

    def _start(self) -> None:
        if self._thread is not None:
            return
        self._stop.clear()
        self._touch()
        self._thread = threading.Thread(target=self._beating, daemon=True, name="heartbeat")
        self._thread.start()

    def _beating(self) -> None:
        while not self._stop.wait(self.beat):
            try:
                self._touch()
                self._failed = None
            except OSError as error:  # said by the next claim
                self._failed = error

    def _touch(self) -> float:
        """Beats once; returns the file system's time."""
        path = self._beats / self.me.id
        self._check_disk()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A write: some servers set the time of a mere touch by the client's clock.
            path.write_text(self.me.said)
            found = path.stat()
        except OSError as error:
            raise CannotWrite(f"{self.root} cannot be written ({error.strerror}): {REMEDY}.") from error
        self._disk = self._disk or found.st_dev
        return found.st_mtime

    def _check_disk(self) -> None:
        """CannotWrite where the folder has changed its disk: below a mount that has gone one could write on."""
        if self._disk is not None and _disk(self.root.parent) != self._disk:
            raise CannotWrite(f"{self.root} cannot be written (its disk is no longer there): {REMEDY}.")

    def _create(self, place: str, note: Mapping[str, Any] | None) -> bool:
        made = self.root / f".{place[:40]}.{self.me.id}.{uuid4().hex[:8]}"
        try:
            made.mkdir()
            (made / OWNER).write_text(json.dumps({"owner": vars(self.me), "note": dict(note or {})}))
            os.rename(made, self.root / place)  # fails where there is one, for no claim is empty
            return True
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            owner = self._owner(place)
            if owner is None:
                raise CannotWrite(f"{self.root} cannot be written ({error.strerror}): {REMEDY}.") from error
            return owner.id == self.me.id  # a server may have renamed, and its answer been lost

    def _owner(self, place: str) -> Owner | None:
        found = self._read(place)
        return None if found is None else found[0]

    def _read(self, place: str) -> tuple[Owner, dict[str, Any]] | None:
        try:
            content = json.loads((self.root / place / OWNER).read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CannotWrite(f"{self.root / place} cannot be read ({error.strerror}): is its disk there?") from error
        return Owner(**content["owner"]), content["note"]
