"""Leases on a shared file system: a lease is the temporary exclusive right of a process to compute a result.

The processes that share a folder use leases to divide the work. At most one process holds a lease. If this process
dies, another process can take over the lease.

A lease is a folder that contains the id of its owner. A process creates the folder under a temporary name and then
renames the folder, so that a lease never exists without its owner. If two processes rename folders to the same lease at
the same time, one of the renames fails. To take over the lease of a dead owner, a process creates a second lease, whose
name is derived from the first lease and its owner. No lock has to be removed after a crash.
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

HEARTBEAT_INTERVAL_S = 3.0  # time between two writes of the file that shows that a process is alive
LEASE_TIMEOUT_S = 45.0  # a process on another machine counts as dead if its file was not written for this time
OWNER_FILE = "owner.json"
REMEDY = "free some space or choose another run_dir, and run the same command again; finished results are kept"


@dataclass(frozen=True)
class Owner:
    """A process that holds leases (temporary exclusive rights to compute results).

    Attributes:
        id: unique id of the :class:`LeaseManager` of the process.
        host: name of the machine on which the process runs.
        pid_namespace: id of the machine and the container in which the process runs.
        pid: process id.
        start_time: start time of the process, in kernel clock ticks since boot.
    """

    id: str
    host: str
    pid_namespace: str
    pid: int
    start_time: str

    def describe(self) -> str:
        return f"process {self.pid} on {self.host}"


def _pid_namespace() -> str:
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # Without /proc, a unique id is returned. No two processes then seem to run on the same machine, and is_alive()
        # uses heartbeats instead of process ids.
        return f"{sys.platform} {uuid4().hex}"


def _start_time(pid: int) -> str | None:
    """Return the start time of process ``pid`` in clock ticks, or None if the process is dead or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _takeover_name(name: str, current: str, owner: Owner) -> str:
    """Return the name of the lease that replaces a lease of a dead process.

    The name contains a hash, so that its length does not grow if leases are replaced repeatedly.

    Args:
        name: name of the original lease.
        current: name of the lease to replace, which is the original lease or a replacement of the original lease.
        owner: the dead process that holds the lease ``current``.
    """
    return f"{name}~{hashlib.sha256(f'{current} {owner.id}'.encode()).hexdigest()[:24]}"


def _device_of(folder: Path) -> int | None:
    try:
        return folder.stat().st_dev
    except OSError:
        return None


class LeaseManager:
    """Acquires leases in the folder ``root`` for this process, and looks up the processes that hold other leases.

    A lease is the temporary exclusive right of a process, for example to compute a result. While a process holds
    leases, a thread regularly writes a heartbeat file, which shows that the process is alive.

    Args:
        root: folder that contains only leases and that every process of the run can access.
        heartbeat_interval: seconds between two heartbeats of this process.
        lease_timeout: seconds without a heartbeat after which a process on another machine counts as dead.
    """

    def __init__(
        self,
        root: str | Path,
        heartbeat_interval: float = HEARTBEAT_INTERVAL_S,
        lease_timeout: float = LEASE_TIMEOUT_S,
    ) -> None:
        self.root = Path(root)
        self.heartbeat_interval = heartbeat_interval
        self.lease_timeout = lease_timeout
        pid = os.getpid()
        self.me = Owner(uuid4().hex[:16], socket.gethostname(), _pid_namespace(), pid, _start_time(pid) or "")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._device: int | None = None

    def acquire(self, name: str, note: Mapping[str, Any] | None = None) -> bool:
        """Acquire the lease (exclusive right) ``name``, unless another live process holds the lease.

        Args:
            name: name of the lease.
            note: JSON-serializable values that are stored with the lease.

        Returns:
            Whether this process holds the lease.

        Raises:
            CannotWrite: the folder of the leases cannot be written.
        """
        if self._error is not None:
            raise CannotWrite(str(self._error)) from self._error
        self._start_heartbeat()
        self._check_device()
        lease = name
        while (owner := self._owner(lease)) is not None:
            if owner.id == self.me.id:
                return True
            if self.is_alive(owner):
                return False
            lease = _takeover_name(name, lease, owner)
        return self._create(lease, note)

    def owner_of(self, name: str) -> tuple[Owner, dict[str, Any]] | None:
        """Return the owner of the lease (exclusive right) ``name``, and the values that are stored with the lease.

        If no live process holds the lease, None is returned.
        """
        lease = name
        while (content := self._read(lease)) is not None:
            owner, note = content
            if owner.id == self.me.id or self.is_alive(owner):
                return owner, note
            lease = _takeover_name(name, lease, owner)
        return None

    def is_alive(self, owner: Owner) -> bool:
        """Return whether the process ``owner`` is alive.

        A process on the same machine is looked up in ``/proc``. A process on another machine counts as dead if its last
        heartbeat is older than ``lease_timeout``.
        """
        if owner.pid_namespace == self.me.pid_namespace:
            return _start_time(owner.pid) == owner.start_time and (self._heartbeats / owner.id).exists()
        try:
            last = (self._heartbeats / owner.id).stat().st_mtime
            now = self._beat()  # both times come from the file server, because the clocks of machines differ
        except FileNotFoundError:
            return False
        return now - last < self.lease_timeout

    def close(self) -> None:
        """Release all leases (exclusive rights) of this process by stopping its heartbeat."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            with suppress(OSError):  # the disk with the heartbeat file may have been unmounted
                (self._heartbeats / self.me.id).unlink(missing_ok=True)

    def finish(self) -> None:
        """Release the leases (exclusive rights) of this process.

        If no other process uses the folder of leases, the folder is deleted.
        """
        try:
            others = self._others_alive()
        except OSError:  # this error is not raised, because it could hide the error that ended the run
            others = True
        self.close()
        if not others:
            shutil.rmtree(self.root, ignore_errors=True)

    def _others_alive(self) -> bool:
        """Return whether another live process uses the folder of leases."""
        ids = [path.name for path in self._heartbeats.iterdir()] if self._heartbeats.is_dir() else []
        owners = {owner.id: owner for owner in map(self._owner, self._leases()) if owner is not None}
        return any(id != self.me.id and (id not in owners or self.is_alive(owners[id])) for id in ids)

    def _leases(self) -> list[str]:
        return [path.name for path in self.root.iterdir() if path != self._heartbeats and path.name[0] != "."]

    @cached_property
    def _heartbeats(self) -> Path:
        return self.root / "heartbeats"

    def _start_heartbeat(self) -> None:
        if self._thread is not None:
            return
        self._stop.clear()
        self._beat()
        self._thread = threading.Thread(target=self._run_heartbeat, daemon=True, name="heartbeat")
        self._thread.start()

    def _run_heartbeat(self) -> None:
        while not self._stop.wait(self.heartbeat_interval):
            try:
                self._beat()
                self._error = None
            except OSError as error:  # the next call of acquire() raises the error
                self._error = error

    def _beat(self) -> float:
        """Write the heartbeat file, and return its modification time according to the file server."""
        path = self._heartbeats / self.me.id
        self._check_device()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Touching the file would not be enough, because some file servers then use the clock of the client.
            path.write_text(self.me.describe())
            status = path.stat()
        except OSError as error:
            raise CannotWrite(f"{self.root} cannot be written ({error.strerror}): {REMEDY}.") from error
        self._device = self._device or status.st_dev
        return status.st_mtime

    def _check_device(self) -> None:
        """Raise CannotWrite if the disk that contains the leases has been unmounted."""
        if self._device is not None and _device_of(self.root.parent) != self._device:
            raise CannotWrite(f"{self.root} cannot be written (its disk is no longer mounted): {REMEDY}.")

    def _create(self, lease: str, note: Mapping[str, Any] | None) -> bool:
        temporary = self.root / f".{lease[:40]}.{self.me.id}.{uuid4().hex[:8]}"
        try:
            temporary.mkdir()
            (temporary / OWNER_FILE).write_text(json.dumps({"owner": vars(self.me), "note": dict(note or {})}))
            os.rename(temporary, self.root / lease)  # fails if the lease exists, because the folder is never empty
            return True
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            owner = self._owner(lease)
            if owner is None:
                raise CannotWrite(f"{self.root} cannot be written ({error.strerror}): {REMEDY}.") from error
            # The rename may have succeeded although it raised an error, if the response of the file server was lost.
            return owner.id == self.me.id

    def _owner(self, lease: str) -> Owner | None:
        content = self._read(lease)
        return None if content is None else content[0]

    def _read(self, lease: str) -> tuple[Owner, dict[str, Any]] | None:
        try:
            content = json.loads((self.root / lease / OWNER_FILE).read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CannotWrite(f"{self.root / lease} cannot be read ({error.strerror}): check the disk.") from error
        return Owner(**content["owner"]), content["note"]
