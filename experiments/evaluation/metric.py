"""What a metric is: how it is computed, aggregated, labeled and logged; and registers that hold them in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from experiments.evaluation.metrics import bootstrap_interval

MAIN = "main"
ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


@dataclass(frozen=True)
class Metric:
    """One measured quantity of an experiment.

    Attributes:
        name: column in ``samples.parquet`` and ``results.json``, and the last part of the logger key.
        label: column head in ``table.md``.
        function: computes the metric from a batch; None if the experiment records the value itself.
        unit: follows the label in the column head.
        better: which direction is better, shown as an arrow in the column head.
        aggregate: turns the values of a table row's samples into one value.
        statistics: further columns by suffix: a label and a function as ``aggregate``.
        interval: compute a 95 % bootstrap interval of the mean (columns ``NAME_low`` and ``NAME_high``).
        show_interval: print the interval in the table.
        live: log the running mean after every unit.
        scale: factor in tables, such as 100 for percentages.
        tables: names of the tables that have a column for it.
        optional: omit the metric if ``function`` returns None; otherwise None is reported as a missing value.
    """

    name: str
    label: str
    function: Callable[[Any], Any] | None = None
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    aggregate: Callable[[Sequence[float]], float] = mean
    statistics: Mapping[str, tuple[str, Callable[[Sequence[float]], float]]] = field(default_factory=dict)
    interval: bool = False
    show_interval: bool = False
    live: bool = False
    scale: float = 1.0
    tables: Sequence[str] = (MAIN,)
    optional: bool = False

    @property
    def head(self) -> str:
        """Column head: label, unit, and an arrow towards better values."""
        return ", ".join(filter(None, (self.label, self.unit))) + ARROWS[self.better]

    @property
    def columns(self) -> dict[str, str]:
        """Keys of table rows and their column heads."""
        columns = {self.name: self.head}
        columns |= {f"{self.name}_{suffix}": label for suffix, (label, _) in self.statistics.items()}
        if self.show_interval:
            columns |= {f"{self.name}_low": "from", f"{self.name}_high": "to"}
        return columns

    def summarize(self, values: Sequence[float], seed: int) -> dict[str, float]:
        """Aggregate the values of a row's samples; NaN without values."""
        row = {self.name: self.aggregate(values) if values else math.nan}
        row |= {f"{self.name}_{suffix}": function(values) for suffix, (_, function) in self.statistics.items()}
        if self.interval:
            usable = bool(values) and all(map(math.isfinite, values))
            low, high = bootstrap_interval(values, seed=seed) if usable else (math.nan, math.nan)
            row |= {f"{self.name}_low": low, f"{self.name}_high": high}
        return row


class MetricRegister:
    """Metrics of an experiment. Their order is the order of columns."""

    def __init__(self, *metrics: Metric) -> None:
        self._metrics = {metric.name: metric for metric in metrics}

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())

    def register(self, metric: Metric, *, after: str | None = None) -> None:
        """Add a metric, at the end or ``after`` another one.

        Raises:
            ValueError: the name is taken, or no metric is called ``after``.
        """
        if metric.name in self._metrics:
            raise ValueError(f"metric {metric.name!r} is registered already.")
        if after is not None and after not in self._metrics:
            raise ValueError(
                f"after: must be a registered metric, got {after!r}; there are {', '.join(self._metrics)}."
            )
        metrics = list(self)
        position = len(metrics) if after is None else list(self._metrics).index(after) + 1
        metrics.insert(position, metric)
        self._metrics = {each.name: each for each in metrics}

    def unregister(self, name: str) -> None:
        """Remove a metric; KeyError if there is none of this name."""
        del self._metrics[name]

    def compute(self, batch: Any) -> dict[str, Any]:
        """Values of all metrics that have a function, by name."""
        values = {metric.name: metric.function(batch) for metric in self if metric.function is not None}
        return {name: v for name, v in values.items() if v is not None or not self._metrics[name].optional}

    def summarize(self, samples: Sequence[Mapping[str, Any]], seed: int, *, skip_nan: bool = False) -> dict[str, float]:
        """Aggregate samples into one table row. Metrics that no sample has are omitted.

        Args:
            seed: of the bootstrap.
            skip_nan: leave samples whose value is NaN out; otherwise their mean is NaN.
        """
        row: dict[str, float] = {}
        for metric in self:
            values = [sample[metric.name] for sample in samples if metric.name in sample]
            if values:
                row |= metric.summarize([v for v in values if not (skip_nan and math.isnan(v))], seed)
        return row

    def columns(self, table: str = MAIN) -> dict[str, str]:
        """Column heads of a table, by key of its rows."""
        return {key: head for metric in self if table in metric.tables for key, head in metric.columns.items()}

    def scaled(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Values of ``row`` whose metric has a scale, scaled for display."""
        scales = {metric.name: metric.scale for metric in self if metric.scale != 1 and metric.name in row}
        return {name: None if row[name] is None else scale * row[name] for name, scale in scales.items()}

    @property
    def live(self) -> tuple[str, ...]:
        """Names of the metrics whose running means are logged after every unit."""
        return tuple(metric.name for metric in self if metric.live)

    @property
    def with_interval(self) -> tuple[str, ...]:
        """Names of the metrics with a confidence interval."""
        return tuple(metric.name for metric in self if metric.interval)
