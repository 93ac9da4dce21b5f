"""Work in units, shared among processes: each is on disk before the next begins, and none is computed twice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from experiments.results.progress import Progress
from experiments.results.store import units_for_rank

Stage = tuple[LightningModule, "Work"]
"""A module whose ``predict_step`` writes units, and the units."""


class Work(LightningDataModule):
    """The units that are not on disk yet, shared among the processes; any share may be empty.

    A subclass says by ``done`` which units are on disk and, where several are computed together, makes ``batches`` of
    them and loads one by ``load``.
    """

    def __init__(self, units: Sequence[Any], progress: Progress) -> None:
        super().__init__()
        self.units, self.progress = list(units), progress
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def done(self, unit: Any) -> bool:
        """Whether the unit is on disk."""
        raise NotImplementedError

    def batches(self, units: list[Any]) -> list[Any]:
        """``units`` in groups that one step computes; each by itself unless a subclass knows better."""
        return units

    def load(self, batch: Any) -> Any:
        """What ``predict_step`` is given for a batch; called when its turn has come."""
        return batch

    def begin(self, mine: list[Any], pending: list[Any]) -> None:
        """Called in each process before its first unit, with its share and what is missing of it."""
        self.progress.start(len(mine), len(mine) - len(pending), visible=self.trainer.is_global_zero)

    def finished(self) -> bool:
        """Whether all units of all processes are on disk."""
        return all(map(self.done, self.units))

    def predict_dataloader(self) -> DataLoader:
        # Only here does a process know its rank: Lightning starts the others with the first loop.
        warnings.filterwarnings("ignore", "Total length of `DataLoader` across ranks is zero")
        mine = units_for_rank(self.units, self.trainer.global_rank, self.trainer.world_size)
        pending = [unit for unit in mine if not self.done(unit)]
        self.begin(mine, pending)
        return DataLoader(dataset=self.batches(pending), batch_size=None, collate_fn=self.load)

    def transfer_batch_to_device(self, batch: Any, device: Any, _: int) -> Any:
        return batch


def carry_out(trainer: Trainer, *stages: Stage) -> None:
    """Computes what is not on disk yet, stage by stage; returns in every process when all of it is.

    Where nothing is left to do no loop begins, and no process is started. Processes have to agree on that: those of a
    launcher cannot ask each other before the first loop, and therefore take part in all of them.
    """
    several = trainer.world_size > 1
    launched = several and trainer.strategy.cluster_environment.creates_processes_externally
    if not launched and all(work.finished() for _, work in stages):
        return
    for module, work in stages:
        if several or not work.finished():
            trainer.predict(module, datamodule=work, return_predictions=False)
            work.progress.close()
            trainer.strategy.barrier("all units of the stage are on disk")
