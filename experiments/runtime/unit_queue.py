"""Distribution of units of work to several processes.

A unit of work is the smallest part of a run that a resumed run can skip, because its result is on disk. An example is
generating the images of one concept.
"""

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

from experiments.cache.atomic import CannotWrite, remove_stale_temporaries
from experiments.cache.store import UnitStore
from experiments.finite import NonFiniteError
from experiments.runtime.leases import LeaseManager
from experiments.runtime.progress import RunProgress
from experiments.runtime.running_means import RunningMeans, loggers_without_history

Stage = tuple[LightningModule, "UnitDataModule"]
"""A pair of a Lightning module, whose ``predict_step`` computes units of work and writes results, and a data module."""

POLL_INTERVAL_S = 0.5  # seconds between two checks whether other processes have finished their units of work
PEER_DIED_MESSAGE = "another process of this run has died: run the same command again; finished results are kept."
CONNECTION_ERRORS = (
    "connection closed by peer",
    "connection reset",
    "broken pipe",
    "socket closed",
    "connection refused",
)
"""Texts that occur in PyTorch's error message if another process of the process group has died."""


class PeerDied(RuntimeError):
    """Error that is raised if another process of the run has died."""


class Terminated(RuntimeError):
    """Error that is raised if the run receives SIGTERM."""


class ResumableRun:
    """Base class of experiments that can be resumed, and that several processes and runs can compute together."""

    run_dir: str

    @property
    def leases(self) -> Path:
        """Folder of the leases (exclusive rights of processes to compute a unit of work) of all runs in ``run_dir``."""
        return Path(self.run_dir) / "leases"

    def writes_report(self, trainer: Trainer) -> bool:
        """Return whether this process writes the report.

        If several runs compute results in the same folder, rank 0 of one of these runs writes the report.
        """
        is_reporter: Callable[[], bool] | None = vars(self).get("is_reporter")
        return trainer.is_global_zero and (is_reporter is None or is_reporter())


class UnitDataModule(LightningDataModule):
    """A Lightning data module that distributes units of work to processes, as batches for ``predict_step``.

    A unit of work is the smallest part of a run that a resumed run can skip, such as generating the images of one
    concept. Only units of work whose results are not on disk yet are computed. A process acquires a lease (a temporary
    exclusive right) on each unit of work in a group, computes the group, and continues with the next group. When no
    group is left, the process waits for other processes. If another process dies, the waiting process takes over the
    work of the dead process.

    Subclasses define the methods ``done`` and ``lease_name``. If several units of work are computed in one batch,
    subclasses also define the methods ``groups`` and ``load``.

    Args:
        units: all units of work of the stage, including finished units.
        progress: displayed progress of the run; ``add_to_progress`` adds the units of work to the display.
        leases: folder of the leases. A lease is the temporary exclusive right of a process to compute a unit of work.
            All processes that divide the work must use the same folder. Default: the folder ``leases`` in the trainer's
            default root directory.
        running_means: object that logs the means of metrics on rank 0 whenever a unit of work is finished. If None, no
            metrics are logged before the report.
    """

    unit_noun = "unit"
    """Singular noun for a unit of work in the display of the progress, such as ``concept``."""

    def __init__(
        self,
        units: Sequence[Any],
        progress: RunProgress,
        leases: str | Path | None = None,
        running_means: RunningMeans | None = None,
    ) -> None:
        super().__init__()
        self.units = list(units)
        self.progress = progress
        self.leases = leases
        self.running_means = running_means
        self.units_before = 0  # number of units of work in earlier stages of the run
        self._batches: Generator[Any, None, None] | None = None
        self._counted: set[int] = set()

    def done(self, unit: Any) -> bool:
        """Return whether the result of the unit of work ``unit``, such as the images of one concept, is on disk."""
        raise NotImplementedError

    def lease_name(self, unit: Any) -> str:
        """Return the name of the lease (exclusive right) on ``unit``, which must be unique in the run's folder."""
        raise NotImplementedError

    def groups(self, units: list[Any]) -> list[list[Any]]:
        """Split the units of work ``units`` into groups, each computed as one batch. Default: one unit per group."""
        return [[unit] for unit in units]

    def load(self, units: list[Any]) -> Any:
        """Return the batch with which ``predict_step`` computes the units of work ``units``. Default: ``units[0]``."""
        return units[0]

    def part(self, unit: Any) -> str:
        """Return the part of the run to which the unit of work ``unit`` belongs, such as the name of a method."""
        return "units"

    def cost(self, unit: Any) -> float:
        """Return the planned number of network evaluations of ``unit``, its weight in the display of the progress."""
        return 1.0

    def add_to_progress(self) -> None:
        """Add all units of work, finished or not, to the displayed progress, before the first unit is computed."""
        self._counted = {k for k, unit in enumerate(self.units) if self.done(unit)}
        for k, unit in enumerate(self.units):
            self.progress.add(self.part(unit), self.unit_noun, self.cost(unit), done=k in self._counted)

    def count(self, indices: Iterable[int]) -> None:
        """Count the units of work with these indices as finished in the displayed progress, each unit only once."""
        by_part: dict[str, list[float]] = {}
        for k in indices:
            if k not in self._counted:
                self._counted.add(k)
                by_part.setdefault(self.part(self.units[k]), []).append(self.cost(self.units[k]))
        for part, costs in by_part.items():
            self.progress.finish(part, costs)

    def log(self, trainer: Trainer, indices: Iterable[int], loggers: Sequence[Logger] | None = None) -> None:
        """Add the metrics of finished units of work to the running means, and log the means on rank 0.

        Args:
            trainer: the trainer of the run.
            indices: indices of the finished units of work.
            loggers: loggers that receive the means; default: all loggers of the trainer.
        """
        if self.running_means is not None and trainer.is_global_zero and trainer.loggers:
            for k in indices:
                self.running_means.log(
                    trainer.loggers if loggers is None else loggers, self.units[k], k, self.units_before
                )

    def all_done(self) -> bool:
        """Return whether the results of all units of work, such as the images of each concept, are on disk."""
        return all(map(self.done, self.units))

    def predict_dataloader(self) -> UnitLoader:
        return UnitLoader(self)

    def transfer_batch_to_device(self, batch: Any, device: Any, _: int) -> Any:
        return batch

    def claim_batches(self) -> Iterator[Any]:
        """Yield the batches that this process has to compute, until the results of all units of work are on disk."""
        self.release()
        self._batches = self._iterate()
        return self._batches

    def release(self) -> None:
        """Release all leases (exclusive rights) of this process, for example after an error in the prediction loop."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _iterate(self) -> Generator[Any, None, None]:
        pending = [k for k, unit in enumerate(self.units) if not self.done(unit)]
        on_disk = sorted({*range(len(self.units))}.difference(pending))
        self.log(self.trainer, on_disk, loggers_without_history(self.trainer.loggers))
        self.progress.start(visible=self.trainer.is_global_zero)
        self.count(on_disk)
        leases = LeaseManager(self.leases or Path(self.trainer.default_root_dir) / "leases")
        queue = UnitQueue(self, leases, set(pending))
        try:
            with raise_on_signals(self.trainer):
                yield from queue
        finally:
            leases.close()


class UnitQueue:
    """Iterates over the batches that this process computes.

    A batch consists of one or more units of work; a unit of work is, for example, generating the images of one concept.

    Args:
        data: data module with the units of work.
        leases: manager with which this process acquires leases (exclusive rights) on units of work.
        missing: indices of the unfinished units of work. The queue removes an index from this set when the unit of work
            is finished.
    """

    def __init__(self, data: UnitDataModule, leases: LeaseManager, missing: set[int]) -> None:
        self.data = data
        self.leases = leases
        self.missing = missing

    def __iter__(self) -> Iterator[Any]:
        data = self.data
        indices = {id(unit): k for k, unit in enumerate(data.units)}
        # The groups contain finished units of work, too, so that a resumed run forms the same batches.
        groups = [[indices[id(unit)] for unit in group] for group in data.groups(data.units)]
        # Each process starts at another group, so that the processes seldom try to acquire the same units of work.
        first = len(groups) * data.trainer.global_rank // data.trainer.world_size
        groups = groups[first:] + groups[:first]
        while self.missing:
            for group in groups:
                acquired = self._acquire(group)
                if acquired:
                    data.progress.begin(data.part(data.units[acquired[0]]))
                    yield data.load([data.units[k] for k in acquired])
                    data.count(acquired)
                    data.log(data.trainer, acquired)
                    self.missing -= set(acquired)
            groups = [group for group in groups if self.missing.intersection(group)]
            if self.missing:
                data.progress.set_stage("waiting for other processes")
                time.sleep(POLL_INTERVAL_S)

    def _acquire(self, group: list[int]) -> list[int]:
        """Acquire leases (exclusive rights) on the unfinished units of work with the indices ``group``.

        Returns:
            The indices of the units of work whose lease this process now holds.
        """
        data = self.data
        acquired: list[int] = []
        for k in group:
            if k not in self.missing:
                continue
            unit = data.units[k]
            if data.done(unit):
                self._finished_elsewhere(k)
            elif self.leases.acquire(data.lease_name(unit)):
                if data.done(unit):  # another process finished the unit just before the lease was acquired
                    self._finished_elsewhere(k)
                else:
                    acquired.append(k)
            elif not acquired:
                break  # another process has the first lease and is acquiring the remaining leases of the group
        return acquired

    def _finished_elsewhere(self, k: int) -> None:
        """Count the unit of work with the index ``k``, whose result another process has written."""
        self.missing.discard(k)
        self.data.count([k])
        self.data.log(self.data.trainer, [k])


class CachedUnitDataModule(UnitDataModule):
    """A data module of units of work whose results are files in several folders.

    Subclasses define the method ``address``. A unit of work is the smallest part of a run that a resumed run can skip,
    such as generating the images of one concept.

    Args:
        units: all units of work of the stage, including finished units.
        stores: the folders of the results, by name.
        progress: progress of the run, to which the units of work are added.
        leases: folder of the leases (exclusive rights), by which the processes divide the units of work.
        running_means: object that logs the means of metrics whenever a unit of work is finished; if None, no metrics
            are logged before the report.
    """

    def __init__(
        self,
        units: Sequence[Any],
        stores: Mapping[str, UnitStore],
        progress: RunProgress,
        leases: str | Path,
        *,
        running_means: RunningMeans | None = None,
    ) -> None:
        super().__init__(units, progress, leases, running_means)
        self.stores = stores

    def address(self, unit: Any) -> tuple[str, str]:
        """Return the name of the store (folder) for the result of ``unit``, and the name of the result in the store."""
        raise NotImplementedError

    def done(self, unit: Any) -> bool:
        store, name = self.address(unit)
        return self.stores[store].done(name)

    def lease_name(self, unit: Any) -> str:
        store, name = self.address(unit)
        return self.stores[store].lease_name(name)


class UnitLoader:
    """A data loader whose batches Lightning does not prefetch.

    A process that fetches a batch reserves the units of work in the batch. With prefetching, a busy process would
    reserve its next batch, although an idle process could compute this batch now. Lightning prefetches batches only if
    the length of the loader is unknown. Therefore ``len`` returns a number, which is larger than the number of batches.
    """

    def __init__(self, data: UnitDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.units) + 1

    def __iter__(self) -> Iterator[Any]:
        return self.data.claim_batches()


@contextmanager
def raise_on_signals(trainer: Trainer) -> Iterator[None]:
    """Context manager in which SIGTERM and, in a run of one process, SIGINT (Ctrl-C) raise :class:`Terminated`.

    The handler of Lightning for SIGTERM only sets a flag, which the prediction loop of Lightning does not check. In a
    run of several processes, Lightning handles SIGINT.
    """

    def stop(number: int, _: FrameType | None) -> None:
        if (launcher := trainer.strategy.launcher) is not None:
            launcher.kill(number)
        name = signal.Signals(number).name
        raise Terminated(f"stopped by {name}: run the same command again; finished results are kept.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM, signal.SIGINT] if trainer.world_size == 1 else [signal.SIGTERM]
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) == stop:  # do not replace a handler that Lightning has set since then
                signal.signal(number, handler)


def run_stages(trainer: Trainer, *stages: Stage) -> None:
    """Compute all units of work that are not on disk, and return when all processes have finished.

    A unit of work is the smallest part of a run that a resumed run can skip, such as generating the images of one
    concept. The stages are computed one after the other. Before the first stage, the temporary files of killed
    processes are deleted. If the results of all units of work are on disk, Lightning starts no processes.

    Processes that an external launcher has started run every stage, even if all results seem to be on disk, because a
    shared file system may show different files to each process.

    Raises:
        PeerDied: this process had to wait for another process that has died.
    """
    if trainer.is_global_zero:
        for folder in {Path(data.leases).parent for _, data in stages if data.leases is not None}:
            remove_stale_temporaries(folder)
    for (_, earlier), (_, data) in pairwise(stages):
        data.units_before = earlier.units_before + len(earlier.units)
    for _, data in stages:
        data.add_to_progress()
    computed = _compute(trainer, stages)
    for _, data in stages:
        data.progress.close()
    # Log metrics that this process has not logged, because no prediction loop ran, or because a child process ran it.
    for _, data in stages:
        loggers = [
            logger
            for logger in loggers_without_history(trainer.loggers)
            if isinstance(logger, CSVLogger) or not computed
        ]
        data.log(trainer, range(len(data.units)), loggers)


def _compute(trainer: Trainer, stages: Sequence[Stage]) -> bool:
    """Run the prediction loop of every stage with missing results, and return whether a prediction loop was run."""
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
    return True


def _is_connection_error(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistStoreError):
        return True
    message = str(error).lower()
    return any(words in message for words in CONNECTION_ERRORS)


@contextmanager
def reraise_child_error() -> Iterator[None]:
    """Context manager that re-raises an error of a child process with its original type and message.

    With ``ddp_spawn``, PyTorch raises an error that contains only the traceback of the child process as text.
    """
    try:
        yield
    except ProcessRaisedException as error:
        for kind in (NonFiniteError, CannotWrite):
            messages = re.findall(rf"^{kind.__module__}\.{kind.__name__}: (.+)$", str(error), flags=re.MULTILINE)
            if messages:
                raise kind(messages[-1]) from error
        raise
