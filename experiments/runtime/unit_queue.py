"""Work in units, shared among processes: each is on disk before the next begins, and none is computed twice."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from experiments.reporting.finite import NonFiniteError
from experiments.runtime.leases import LeaseManager
from experiments.runtime.progress import Progress
from experiments.runtime.running_means import Running, beginning

Stage = tuple[LightningModule, "Work"]
"""A module whose ``predict_step`` writes units, and the units."""

POLL = 0.5  # seconds between two looks at what other processes have finished
DIED = "another process of this run has ended: run the same command again, finished units are kept."
LOST = ("connection closed by peer", "connection reset", "broken pipe", "socket closed", "connection refused")
"""What the messages of PyTorch's processes hold when one of them has ended."""


class ResumableRun:
    """What every task of units has: a folder that other processes and runs may share."""

    run_dir: str

    @property
    def claims(self) -> Path:
        """Where the processes of all runs of this folder claim their units."""
        return Path(self.run_dir) / "claims"

    def writes_report(self, trainer: Trainer) -> bool:
        """Whether this process judges and reports: the first of its run, unless another run of the folder does."""
        lead: Callable[[], bool] | None = vars(self).get("lead")
        return trainer.is_global_zero and (lead is None or lead())


class PeerDied(RuntimeError):
    """Another process of the run has ended; its text is one sentence for the user."""


class Stopped(RuntimeError):
    """A signal has ended the run; its text is one sentence for the user."""


class Work(LightningDataModule):
    """The units that are not on disk yet, claimed by whatever process is free; any may get none.

    A process claims a group of units, computes it, and claims the next. When it finds no more it waits until the others
    have finished theirs, and takes over what a process has left that died. A subclass says which units are on disk, by
    what name each is claimed, and, where several are computed together, makes groups of them and loads one.

    Args:
        claims: folder of the claims, which all processes of a run see; the same for every run of a folder. None is
            ``claims`` in the trainer's folder.
        running: logs values so far as units finish, in the first process; None logs nothing before the report.
    """

    def __init__(
        self,
        units: Sequence[Any],
        progress: Progress,
        claims: str | Path | None = None,
        running: Running | None = None,
    ) -> None:
        super().__init__()
        self.units, self.progress, self.claims, self.running = list(units), progress, claims, running
        self.before = 0  # units of earlier stages
        self._held: LeaseManager | None = None
        self.previous_handler: Any = signal.SIG_DFL

    def done(self, unit: Any) -> bool:
        """Whether the unit is on disk."""
        raise NotImplementedError

    def claim(self, unit: Any) -> str:
        """The name by which it is claimed: no other unit's, whatever the settings of other runs of the folder."""
        raise NotImplementedError

    def groups(self, units: list[Any]) -> list[list[Any]]:
        """``units`` in groups that one step computes; each by itself unless a subclass knows better."""
        return [[unit] for unit in units]

    def load(self, units: list[Any]) -> Any:
        """What ``predict_step`` is given for units of a group; called when they have been claimed."""
        return units[0]

    def begin(self, units: list[Any], pending: list[Any]) -> None:
        """Called in each process before its first unit, with all and what is missing of them."""
        self.progress.start(len(units), len(units) - len(pending), visible=self.trainer.is_global_zero)

    def passed(self, unit: Any) -> None:
        """Called when another process has finished a unit."""
        self.progress.finish(1)

    def log(self, trainer: Trainer, numbers: Iterable[int], told: Sequence[Logger] | None = None) -> None:
        """Counts units and logs the values so far, in the first process, to all loggers or those to be ``told``."""
        if self.running is not None and trainer.is_global_zero and trainer.loggers:
            for k in numbers:
                self.running.log(trainer.loggers if told is None else told, self.units[k], k, self.before)

    def finished(self) -> bool:
        """Whether all units of all processes are on disk."""
        return all(map(self.done, self.units))

    def predict_dataloader(self) -> Shared:
        return Shared(self)

    def transfer_batch_to_device(self, batch: Any, device: Any, _: int) -> Any:
        return batch

    def share(self) -> Iterator[Any]:
        """Batches of the units that this process claims, until all are on disk."""
        pending = [k for k, unit in enumerate(self.units) if not self.done(unit)]
        on_disk = sorted({*range(len(self.units))}.difference(pending))
        self.log(self.trainer, on_disk, beginning(self.trainer.loggers))
        self.begin(self.units, [self.units[k] for k in pending])
        numbers = {id(unit): k for k, unit in enumerate(self.units)}
        # Groups are made of all units, so that what is computed together depends on no other process.
        left = [[numbers[id(unit)] for unit in group] for group in self.groups(self.units)]
        missing, claims = set(pending), LeaseManager(self.claims or Path(self.trainer.default_root_dir) / "claims")
        self._held = claims
        self.install_sigterm_handler()
        try:
            while missing:
                for group in left:
                    own = self._claimed(group, missing, claims)
                    if own:
                        yield self.load([self.units[k] for k in own])
                        self.log(self.trainer, own)
                        missing -= set(own)
                left = [group for group in left if missing.intersection(group)]
                if missing:
                    self.progress.stage("waiting for other processes")
                    time.sleep(POLL)
        finally:
            self.release()

    def install_sigterm_handler(self) -> None:
        """Lets SIGTERM end the loop at once: Lightning notes it, and looks at that note in other loops than this."""
        if threading.current_thread() is threading.main_thread():
            self.previous_handler = signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, number: int, _: FrameType | None) -> None:
        if (launcher := self.trainer.strategy.launcher) is not None:
            launcher.kill(number)
        raise Stopped("stopped by SIGTERM: run the same command again, finished units are kept.")

    def release(self) -> None:
        """Gives up what is claimed, also where a loop ended in the middle."""
        if self._held is not None:
            self._held.close()
            self._held = None
        if signal.getsignal(signal.SIGTERM) == self._stop:  # or Lightning has put back what was there before it
            signal.signal(signal.SIGTERM, self.previous_handler)

    def _claimed(self, group: list[int], missing: set[int], claims: LeaseManager) -> list[int]:
        """Those of a group that this process is to compute: it has claimed them, and they are still missing."""
        own = []
        for k in group:
            if k not in missing:
                continue
            mine = not self.done(self.units[k]) and claims.take(self.claim(self.units[k]))
            if self.done(self.units[k]):  # looked at again: its owner may have finished before it was claimed
                missing.discard(k)
                self.passed(self.units[k])
                self.log(self.trainer, [k])
            elif mine:
                own.append(k)
            elif not own:
                break  # the group is another's, who is claiming the rest of it
        return own


class CachedUnitDataModule(Work):
    """Units in several stores; a subclass says by ``address`` where each lies.

    Args:
        stores: by name.
    """

    def __init__(
        self,
        units: Sequence[Any],
        stores: Mapping[str, UnitStore],
        progress: Progress,
        claims: str | Path,
        running: Running | None = None,
    ) -> None:
        super().__init__(units, progress, claims, running)
        self.stores = stores

    def address(self, unit: Any) -> tuple[str, str]:
        """The name of a unit's store, and its own in it."""
        raise NotImplementedError

    def done(self, unit: Any) -> bool:
        store, name = self.address(unit)
        return self.stores[store].done(name)

    def claim(self, unit: Any) -> str:
        store, name = self.address(unit)
        return self.stores[store].claim(name)


class Shared:
    """An endless-looking loader of what :meth:`Work.share` gives.

    Its length is never reached, and there so that Lightning takes a batch when it is to be computed and none before.
    """

    def __init__(self, work: Work) -> None:
        self.work = work

    def __len__(self) -> int:
        return len(self.work.units) + 1

    def __iter__(self) -> Iterator[Any]:
        return self.work.share()


def carry_out(trainer: Trainer, *stages: Stage) -> None:
    """Computes what is not on disk yet, stage by stage; returns in every process when all of it is.

    Where nothing is left to do no loop begins, and no process is started. Processes have to agree on that: those of a
    launcher cannot ask each other before the first loop, and therefore take part in all of them.

    Raises:
        ProcessLost: a process has ended that this one has to wait for.
    """
    for (_, earlier), (_, work) in pairwise(stages):
        work.before = earlier.before + len(earlier.units)
    computed = _compute(trainer, stages)
    for _, work in stages:  # what no loop of this very process has counted: there was none, or a started process ran it
        told = [own for own in beginning(trainer.loggers) if isinstance(own, CSVLogger) or not computed]
        work.log(trainer, range(len(work.units)), told)


def _compute(trainer: Trainer, stages: Sequence[Stage]) -> bool:
    """Whether there was a loop."""
    several = trainer.world_size > 1
    launched = several and trainer.strategy.cluster_environment.creates_processes_externally
    if not launched and all(work.finished() for _, work in stages):
        return False
    for module, work in stages:
        if several or not work.finished():
            try:
                with reraise_child_error():
                    trainer.predict(module, datamodule=work, return_predictions=False)
            except RuntimeError as error:
                if several and _is_lost(error):
                    raise PeerDied(DIED) from error
                raise
            finally:
                work.release()
            work.progress.close()
    return True


def _is_lost(error: RuntimeError) -> bool:
    if isinstance(error, torch.distributed.DistNetworkError | torch.distributed.DistStoreError):
        return True
    said = str(error).lower()
    return any(words in said for words in LOST)


@contextmanager
def reraise_child_error() -> Iterator[None]:
    """What a started process says in one sentence is raised as if this one had found it.

    Under ``ddp_spawn`` it arrives as the text of a traceback, whose last line names the error.
    """
    try:
        yield
    except ProcessRaisedException as error:
        for kind in (NonFiniteError, CannotWrite):
            said = re.findall(rf"^{kind.__module__}\.{kind.__name__}: (.+)$", str(error), flags=re.MULTILINE)
            if said:
                raise kind(said[-1]) from error
        raise
