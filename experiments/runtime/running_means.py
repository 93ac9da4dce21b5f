"""Values so far: what the table will say, logged after every finished unit; a sweep ends its bad runs by them early."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from experiments.reporting.results import metric_name


def beginning(loggers: Sequence[Logger]) -> list[Logger]:
    """Those that begin anew, and are to hear of the units on disk; the others have, from the run that made them.

    The CSV file does in every run; at W&B the run that is found there goes on, and one offline is a file of its own.
    """
    return [
        logger
        for logger in loggers
        if isinstance(logger, CSVLogger) or (isinstance(logger, WandbLogger) and not logger.experiment.resumed)
    ]


class Running:
    """Means over the finished units, under the names that the table's rows will have in the loggers.

    The step is the number of finished units, on disk or made just now, so that it goes on where a run goes on.

    Args:
        rows: of a finished unit, one an image.
        identity: the columns that tell the table's rows apart.
        averaged: the columns whose means are logged. None and missing values are left out, as the table does.
    """

    def __init__(
        self, rows: Callable[[Any], Iterable[Mapping[str, Any]]], identity: Sequence[str], averaged: Sequence[str]
    ) -> None:
        self.rows, self.identity, self.averaged = rows, identity, averaged
        self.counted: set[int] = set()
        self._sums: dict[str, list[float]] = {}

    def log(self, loggers: Sequence[Logger], unit: Any, number: int, before: int = 0) -> None:
        """The means that a finished unit changes; nothing where it has been counted.

        Args:
            number: the unit's own.
            before: units of earlier stages.
        """
        if number in self.counted:
            return
        self.counted.add(number)
        means = self._means(unit)
        for logger in loggers:
            if means:
                logger.log_metrics(means, step=before + len(self.counted))
                logger.save()

    def _means(self, unit: Any) -> dict[str, float]:
        changed = {}
        for row in self.rows(unit):
            for name in self.averaged:
                if row.get(name) is not None:
                    key = metric_name(row, self.identity, name)
                    total = self._sums.setdefault(key, [0.0, 0.0])
                    total[0] += row[name]
                    total[1] += 1
                    changed[key] = total[0] / total[1]
        return {key: mean for key, mean in changed.items() if not math.isnan(mean)}
