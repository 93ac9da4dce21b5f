"""Running means of metrics, which are logged during a run under the names of the metrics of the results table.

A hyperparameter sweep can use the running means to stop bad runs early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from experiments.naming import metric_name


def loggers_without_history(loggers: Sequence[Logger]) -> list[Logger]:
    """Return the loggers to which a resumed run has to log the values of the interrupted run again.

    The file of the CSV logger is overwritten when a run is resumed, and a new W&B run is empty. A resumed W&B run
    already contains the values of the interrupted run.
    """
    return [
        logger
        for logger in loggers
        if isinstance(logger, CSVLogger) or (isinstance(logger, WandbLogger) and not logger.experiment.resumed)
    ]


class RunningMeans:
    """Computes and logs the means of metrics over the finished units of work of a run.

    A unit of work is the smallest part of a run that a resumed run can skip, such as generating the images of one
    concept. The logger step is the number of finished units of work. When a run is resumed, the logger step continues
    to count, because the results that are already on disk are included.

    Args:
        rows: function that returns the metrics of a finished unit of work, one row per image.
        identity: columns that identify a row of the results table, such as the method and the number of steps.
        averaged: columns whose means are logged. Values that are None or missing are skipped.
    """

    def __init__(
        self, rows: Callable[[Any], Iterable[Mapping[str, Any]]], identity: Sequence[str], averaged: Sequence[str]
    ) -> None:
        self.rows = rows
        self.identity = identity
        self.averaged = averaged
        self.counted: set[int] = set()
        self._sums: dict[str, list[float]] = {}

    def log(self, loggers: Sequence[Logger], unit: Any, index: int, units_before: int = 0) -> None:
        """Add the metrics of a finished unit of work to the means, and log the means that changed.

        Args:
            loggers: the loggers that receive the means.
            unit: the finished unit of work.
            index: index of the unit of work. If the same index has already been added, nothing is done.
            units_before: number of units of work in earlier stages of the run, which is added to the logger step.
        """
        if index in self.counted:
            return
        self.counted.add(index)
        means = self._update(unit)
        for logger in loggers:
            if means:
                logger.log_metrics(means, step=units_before + len(self.counted))
                logger.save()

    def _update(self, unit: Any) -> dict[str, float]:
        means = {}
        for row in self.rows(unit):
            for name in self.averaged:
                if row.get(name) is not None:
                    key = metric_name(row, self.identity, name)
                    total = self._sums.setdefault(key, [0.0, 0.0])
                    total[0] += row[name]
                    total[1] += 1
                    means[key] = total[0] / total[1]
        return {key: mean for key, mean in means.items() if not math.isnan(mean)}
