"""The class of a metric (how it is computed, aggregated, labeled and logged), and the registry of metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from experiments.evaluation.metrics import bootstrap_interval
from experiments.reporting.tables import Column

MAIN = "main"
"""Name of the main table of an experiment in ``table.md``."""


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


@dataclass(frozen=True)
class Metric:
    """A metric of an experiment: how the values of the metric are computed, aggregated and shown.

    Attributes:
        name: name of the metric's column in ``samples.parquet`` and ``results.json``, and last part of the metric's
            logger key.
        label: heading of the metric's column in tables, without the unit.
        function: function that computes the values of the metric from a batch of images. If ``function`` is None, the
            experiment itself records the values.
        unit: unit of measurement, such as ``dB``, which is appended to the label in the column heading.
        better: whether higher or lower values are better. The column heading shows the direction as an arrow.
        aggregate: function that aggregates the values of all images of a table row into one value.
        statistics: additional columns of ``table.csv``, as a dict from the suffix of the column name to a function that
            aggregates the values.
        interval: whether a 95 % bootstrap confidence interval of the mean is computed (columns ``NAME_low`` and
            ``NAME_high``).
        live: whether loggers receive the running mean of the metric during the run.
        scale: factor by which values are multiplied in tables, such as 100 for percentages.
        tables: names of the tables in ``table.md`` that have a column for the metric. A table in ``table.md`` has at
            most seven columns, but the file ``table.csv`` has a column for every metric.
        optional: if true, the metric is omitted when ``function`` returns None. If false, None counts as a missing
            value of the metric.
    """

    name: str
    label: str
    function: Callable[[Any], Any] | None = None
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    aggregate: Callable[[Sequence[float]], float] = mean
    statistics: Mapping[str, Callable[[Sequence[float]], float]] = field(default_factory=dict)
    interval: bool = False
    live: bool = False
    scale: float = 1.0
    tables: Sequence[str] = ()
    optional: bool = False

    @property
    def column(self) -> Column:
        """Column of the metric in a table. The heading of the column contains the label and the unit."""
        label = ", ".join(filter(None, (self.label, self.unit)))
        return Column(self.name, label, self.better, self.scale)

    def summarize(self, values: Sequence[float], seed: int) -> dict[str, float]:
        """Aggregate the values of all images of a table row into the columns of this metric.

        If ``values`` is empty, all columns are NaN. If a value is NaN or infinite, the confidence interval is NaN.

        Args:
            seed: random seed of the bootstrap.
        """
        row = {self.name: self.aggregate(values) if values else math.nan}
        row |= {f"{self.name}_{suffix}": function(values) for suffix, function in self.statistics.items()}
        if self.interval:
            usable = bool(values) and all(map(math.isfinite, values))
            low, high = bootstrap_interval(values, seed=seed) if usable else (math.nan, math.nan)
            row |= {f"{self.name}_low": low, f"{self.name}_high": high}
        return row


class MetricRegister:
    """Registry of the metrics of an experiment, in the order of the table columns."""

    def __init__(self, *metrics: Metric) -> None:
        self._metrics = {metric.name: metric for metric in metrics}

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._metrics.values())

    def register(self, metric: Metric, *, after: str | None = None) -> None:
        """Add a metric at the end of the registry, or after the metric with the name ``after``.

        Raises:
            ValueError: a metric with the same name is registered already, or no metric has the name ``after``.
        """
        if metric.name in self._metrics:
            raise ValueError(f"metric {metric.name!r} is registered already: choose another name.")
        if after is not None and after not in self._metrics:
            raise ValueError(
                f"after: must be the name of a registered metric, got {after!r}; choose from "
                f"{', '.join(self._metrics)}."
            )
        metrics = list(self)
        position = len(metrics) if after is None else list(self._metrics).index(after) + 1
        metrics.insert(position, metric)
        self._metrics = {each.name: each for each in metrics}

    def unregister(self, name: str) -> None:
        """Remove the metric with this name from the registry.

        Raises:
            KeyError: no metric has this name.
        """
        del self._metrics[name]

    def compute(self, batch: Any) -> dict[str, Any]:
        """Compute all metrics that have a function from ``batch``; return a dict from metric name to values."""
        values = {metric.name: metric.function(batch) for metric in self if metric.function is not None}
        return {name: v for name, v in values.items() if v is not None or not self._metrics[name].optional}

    def summarize(self, samples: Sequence[Mapping[str, Any]], seed: int, *, skip_nan: bool = False) -> dict[str, float]:
        """Aggregate the values of several images into one table row. A metric without values is omitted.

        Args:
            samples: one dict per image, from metric name to value.
            seed: random seed of the bootstrap.
            skip_nan: if true, NaN values are ignored. If false, the mean of values with a NaN is NaN.
        """
        row: dict[str, float] = {}
        for metric in self:
            values = [sample[metric.name] for sample in samples if metric.name in sample]
            if values:
                row |= metric.summarize([v for v in values if not (skip_nan and math.isnan(v))], seed)
        return row

    def columns(self, table: str = MAIN) -> list[Column]:
        """Return the columns of the metrics in one of the tables of ``table.md``."""
        return [metric.column for metric in self if table in metric.tables]

    @property
    def live(self) -> tuple[str, ...]:
        """Names of the metrics whose running means are logged during the run."""
        return tuple(metric.name for metric in self if metric.live)

    @property
    def with_interval(self) -> tuple[str, ...]:
        """Names of the metrics with a confidence interval."""
        return tuple(metric.name for metric in self if metric.interval)
