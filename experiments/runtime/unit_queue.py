"""Units of work that several processes share: each finished unit is on disk, and none is computed twice."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from torch.multiprocessing import ProcessRaisedException

from experiments.cache.atomic import CannotWrite
from experiments.cache.store import UnitStore
from experiments.finite import NonFiniteError
from experiments.runtime.leases import LeaseManager
from experiments.runtime.progress import Progress
from experiments.runtime.running_means import RunningMeans, loggers_without_history

Stage = tuple[LightningModule, "UnitDataModule"]
"""A module whose ``predict_step`` writes units, and the units."""

POLL_INTERVAL_S = 0.5  # between two checks of what other processes have finished
PEER_DIED_MESSAGE = "another process of this run has died: run the same command again; finished units are kept."
CONNECTION_ERRORS = (
    "connection closed by peer",
    "connection reset",
    "broken pipe",
    "socket closed",
    "connection refused",
)
"""Parts of PyTorch's error messages when a peer has died."""


class PeerDied(RuntimeError):
    """Another process of the run has died. The message is for the user."""


class Terminated(RuntimeError):
    """A signal has ended the run. The message is for the user."""


class ResumableRun:
    """Base class of tasks that compute units in a folder which several processes and runs may share."""

    run_dir: str

    @property
    def leases(self) -> Path:
        """Folder of the leases, shared by all runs of ``run_dir``."""
        return Path(self.run_dir) / "leases"

    def writes_report(self, trainer: Trainer) -> bool:
        """Return whether this process writes the report: rank 0, unless another run of the folder writes it."""
        is_reporter: Callable[[], bool] | None = vars(self).get("is_reporter")
        return trainer.is_global_zero and (is_reporter is None or is_reporter())


class UnitDataModule(LightningDataModule):
    """The units that are not on disk yet, as batches for ``predict_step``.

    A process acquires the leases of a group of units, computes the group, and continues with the next. When none is
    left it waits for the other processes and takes over the units of those that have died. Subclasses define which
    units are on disk, the name of a unit's lease and, for units that are computed together, the groups and their batch.

    Args:
        leases: folder of the leases; the same for all processes and runs. Default: in the trainer's folder.
        running_means: logs means as units finish, on rank 0. None logs nothing before the report.
    """

    def __init__(
        self,
        units: Sequence[Any],
        progress: Progress,
        leases: str | Path | None = None,
        running_means: RunningMeans | None = None,
    ) -> None:
        super().__init__()
        self.units = list(units)
        self.progress = progress
        self.leases = leases
        self.running_means = running_means
        self.units_before = 0  # number of units in earlier stages
        self._batches: Generator[Any, None, None] | None = None

    def done(self, unit: Any) -> bool:
        """Return whether the unit is on disk."""
        raise NotImplementedError

    def lease_name(self, unit: Any) -> str:
        """Return the name of the unit's lease: unique among all units of all runs of the folder."""
        raise NotImplementedError

    def groups(self, units: list[Any]) -> list[list[Any]]:
        """Return ``units`` in groups that one step computes. Default: each unit by itself."""
        return [[unit] for unit in units]

    def load(self, units: list[Any]) -> Any:
        """Return the batch of a group's units, after their leases have been acquired."""
        return units[0]

    def on_start(self, units: list[Any], pending: list[Any]) -> None:
        """Called in each process before its first unit, with all units and those that are not on disk."""
        self.progress.start(len(units), len(units) - len(pending), visible=self.trainer.is_global_zero)

    def on_finished_elsewhere(self, unit: Any) -> None:
        """Called when another process has finished a unit."""
        self.progress.finish(1)

    def log(self, trainer: Trainer, indices: Iterable[int], loggers: Sequence[Logger] | None = None) -> None:
        """Count finished units and log the means so far on rank 0, to all loggers or to ``loggers``."""
        if self.running_means is not None and trainer.is_global_zero and trainer.loggers:
            for k in indices:
                self.running_means.log(
                    trainer.loggers if loggers is None else loggers, self.units[k], k, self.units_before
                )

    def all_done(self) -> bool:
        """Return whether all units are on disk."""
        return all(map(self.done, self.units))

    def predict_dataloader(self) -> UnitLoader:
        return UnitLoader(self)

    def transfer_batch_to_device(self, batch: Any, device: Any, _: int) -> Any:
        return batch

    def claim_batches(self) -> Iterator[Any]:
        """Yield the batches whose leases this process acquires, until all units are on disk."""
        self.release()
        self._batches = self._iterate()
        return self._batches

    def release(self) -> None:
        """Release all leases, also after an error in the middle of a loop."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _iterate(self) -> Generator[Any, None, None]:
        pending = [k for k, unit in enumerate(self.units) if not self.done(unit)]
        on_disk = sorted({*range(len(self.units))}.difference(pending))
        self.log(self.trainer, on_disk, loggers_without_history(self.trainer.loggers))
        self.on_start(self.units, [self.units[k] for k in pending])
        leases = LeaseManager(self.leases or Path(self.trainer.default_root_dir) / "leases")
        queue = UnitQueue(self, leases, set(pending))
        try:
            with raise_on_sigterm(self.trainer):
                yield from queue
        finally:
            leases.close()


class UnitQueue:
    """Iterates over the batches that this process computes.

    Args:
        data: the units.
        leases: acquires them.
        missing: indices of the units that are not on disk.
    """

    def __init__(self, data: UnitDataModule, leases: LeaseManager, missing: set[int]) -> None:
        self.data = data
        self.leases = leases
        self.missing = missing

    def __iter__(self) -> Iterator[Any]:
        data = self.data
        indices = {id(unit): k for k, unit in enumerate(data.units)}
        # Groups are formed from all units, so that a batch does not depend on what other processes have finished.
        groups = [[indices[id(unit)] for unit in group] for group in data.groups(data.units)]
        while self.missing:
            for group in groups:
                acquired = self._acquire(group)
                if acquired:
                    yield data.load([data.units[k] for k in acquired])
                    data.log(data.trainer, acquired)
                    self.missing -= set(acquired)
            groups = [group for group in groups if self.missing.intersection(group)]
            if self.missing:
                data.progress.set_stage("waiting for other processes")
                time.sleep(POLL_INTERVAL_S)

    def _acquire(self, group: list[int]) -> list[int]:
        """Acquire the missing units of a group; return their indices."""
        data = self.data
        acquired: list[int] = []
        for k in group:
            if k not in self.missing:
                continue
            unit = data.units[k]
            leased = not data.done(unit) and self.leases.acquire(data.lease_name(unit))
            if data.done(unit):  # check again: its owner may have finished it before the lease was acquired
                self.missing.discard(k)
                data.on_finished_elsewhere(unit)
                data.log(data.trainer, [k])
            elif leased:
                acquired.append(k)
            elif not acquired:
                break  # another process has the first unit and is acquiring the rest of the group
        return acquired


class CachedUnitDataModule(UnitDataModule):
    """Units in several stores; subclasses define the ``address`` of a unit.

    Args:
        stores: by name.
    """

    def __init__(
        self,
        units: Sequence[Any],
        stores: Mapping[str, UnitStore],
        progress: Progress,
        leases: str | Path,
        running_means: RunningMeans | None = None,
    ) -> None:
        super().__init__(units, progress, leases, running_means)
        self.stores = stores

    def address(self, unit: Any) -> tuple[str, str]:
        """Return the name of a unit's store, and the unit's name in it."""
        raise NotImplementedError

    def done(self, unit: Any) -> bool:
        store, name = self.address(unit)
        return self.stores[store].done(name)

    def lease_name(self, unit: Any) -> str:
        store, name = self.address(unit)
        return self.stores[store].lease_name(name)


class UnitLoader:
    """A loader whose length is never reached, so that Lightning does not prefetch.

    A batch is acquired only when it is about to be computed.
    """

    def __init__(self, data: UnitDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.units) + 1

    def __iter__(self) -> Iterator[Any]:
        return self.data.claim_batches()


@contextmanager
def raise_on_sigterm(trainer: Trainer) -> Iterator[None]:
    """Raise :class:`Terminated` on SIGTERM. Lightning would only set a flag, which prediction loops do not check."""

    def stop(number: int, _: FrameType | None) -> None:
        if (launcher := trainer.strategy.launcher) is not None:
            launcher.kill(number)
        raise Terminated("stopped by SIGTERM: run the same command again; finished units are kept.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) == stop:  # otherwise Lightning has already restored its own
            signal.signal(signal.SIGTERM, previous)


def run_stages(trainer: Trainer, *stages: Stage) -> None:
    """Compute all units that are not on disk, stage by stage; return in every process when all are finished.

    If nothing is left to compute, no process is started. Processes of an external launcher cannot agree on that before
    their first loop, so they always run every stage.

    Raises:
        PeerDied: another process has died that this one has to wait for.
    """
    for (_, earlier), (_, data) in pairwise(stages):
        data.units_before = earlier.units_before + len(earlier.units)
    computed = _compute(trainer, stages)
    for _, data in stages:  # units that no loop of this process has counted: there was none, or a child process ran it
        loggers = [
            logger
            for logger in loggers_without_history(trainer.loggers)
            if isinstance(logger, CSVLogger) or not computed
        ]
        data.log(trainer, range(len(data.units)), loggers)


def _compute(trainer: Trainer, stages: Sequence[Stage]) -> bool:
    """Run the stages that are not finished; return whether there were any."""
    several = trainer.world_size > 1
    launched = several and trainer.strategy.cluster_environment.creates_processes_externally
    if not launched and all(data.all_done() for _, data in stages):
        return False
    for module, data in stages:
        if several or not data.all_done():
            try:
                with reraise_child_error():
                    trainer.predict(module, datamodule=data, return_predictions=False)
            except RuntimeError as error:
                if several and _is_connection_error(error):
                    raise PeerDied(PEER_DIED_MESSAGE) from error
                raise
            finally:
                data.release()
            data.progress.close()
    return True


def _is_connection_error(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistStoreError):
        return True
    message = str(error).lower()
    return any(words in message for words in CONNECTION_ERRORS)


@contextmanager
def reraise_child_error() -> Iterator[None]:
    """Raise the error of a child process as its own type instead of as the text of a traceback (``ddp_spawn``)."""
    try:
        yield
    except ProcessRaisedException as error:
        for kind in (NonFiniteError, CannotWrite):
            messages = re.findall(rf"^{kind.__module__}\.{kind.__name__}: (.+)$", str(error), flags=re.MULTILINE)
            if messages:
                raise kind(messages[-1]) from error
        raise
