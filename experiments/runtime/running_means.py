"""Running means of the table's metrics, logged after every finished unit; sweeps use them to stop bad runs early."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from experiments.reporting.results import metric_name


def loggers_without_history(loggers: Sequence[Logger]) -> list[Logger]:
    """Return the loggers that do not know the units on disk.

    The CSV file is written again in every run. A W&B run that is resumed has the values of the earlier run.
    """
    return [
        logger
        for logger in loggers
        if isinstance(logger, CSVLogger) or (isinstance(logger, WandbLogger) and not logger.experiment.resumed)
    ]


class RunningMeans:
    """Means over the finished units, under the names of the final table's metrics.

    The logged step is the number of finished units, including those on disk, so it continues when a run is resumed.

    Args:
        rows: returns the rows of a finished unit, one per image.
        identity: columns that identify a row of the final table.
        averaged: columns whose means are logged. None and missing values are skipped, as in the table.
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
        """Log the means that a finished unit changes, unless it has been counted.

        Args:
            index: index of the unit.
            units_before: number of units in earlier stages.
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
