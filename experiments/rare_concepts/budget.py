"""Comparison of SeedSelect with choosing the best of many seeds, at equal numbers of network evaluations (budgets)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch.loggers import Logger
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.evaluation.registry import BUDGET, RARE_CONCEPTS
from experiments.rare_concepts.arms_experiment import ArmsExperiment, ExperimentStage
from experiments.rare_concepts.image_stage import ImageStage
from experiments.rare_concepts.report import image_figures, percent_cells, sample_rows
from experiments.rare_concepts.scoring import accuracy_rows, aggregate_metrics, lost_samples
from experiments.reporting import figures as plots
from experiments.reporting import tables
from experiments.reporting.results import Report
from rnri.validation import dataclass

COLUMNS = {"method": "method", "nfe": "NFE", "accuracy_%": "accuracy, %", "ceiling": "classifier ceiling, %"}
PANELS = {  # column: (label, scale)
    "accuracy": ("accuracy, %", 100.0),
    "kid": ("KID", 1.0),
    "copies": ("copies, %", 100.0),
    "pairwise": ("mean distance within a concept", 1.0),
}
NOTE = (
    "NFE: network evaluations per image, including the image's share of the inversion of the references. Guidance "
    "doubles the number of evaluations; a backward pass counts as two evaluations.\n"
)
IDENTITY = ("method", "budget")


def method_and_budget(arm: str) -> dict[str, Any]:
    """Split the name of an arm, ``METHOD_BUDGET``, into the columns ``method`` and ``budget`` of the results table."""
    method, _, budget = arm.rpartition("_")
    return {"method": method, "budget": int(budget)}


def total_row_key(arm: str, bucket: str) -> dict[str, Any] | None:
    """Return the columns that identify the row of an arm if ``bucket`` is ``total``, else None."""
    return method_and_budget(arm) if bucket == "total" else None


@dataclass(kw_only=True)
class BudgetExperiment(ArmsExperiment):
    """The task of ``experiment=budget``, whose table has one row per method and budget (network evaluations per image).

    The name of an arm is ``METHOD_BUDGET``, for example ``nao_50``. The table also contains the measured number of
    network evaluations of the arm.
    """

    def __post_init__(self) -> None:
        for name in self.arms:
            method, _, budget = name.rpartition("_")
            if not method or not budget.isdigit():
                raise ValueError(f"task.arms: names must be METHOD_BUDGET, for example nao_50, got {name!r}.")

    def stages(self) -> list[ExperimentStage]:
        return [ImageStage(self.context, total_row_key, IDENTITY)]

    def report(self, loggers: Sequence[Logger]) -> float:
        """Write the results; return the accuracy of the last arm."""
        arms = self.evaluator.arms()
        real = self.evaluator.real_features()
        ceiling = self.evaluator.classifier_ceiling()
        rows = []
        for name, images in arms.items():
            total = accuracy_rows(name, images, self.seed, ceiling)[-1]
            rows.append(total | aggregate_metrics(images, real) | method_and_budget(name))
        lines = [{**row, **percent_cells(row), "accuracy_%": tables.percent(row, "accuracy")} for row in rows]
        columns = COLUMNS | RARE_CONCEPTS.columns(BUDGET) | {"n": "n"}
        table = f"{tables.markdown_table(lines, columns)}\n{NOTE}"
        if lost := lost_samples(arms):
            table += f"\n{lost}"
        report = Report(
            rows=rows,
            settings=self.context.settings(),
            samples=[row for name, images in arms.items() for row in sample_rows(name, images)],
            table=table,
            figures={"figures/budget": partial(budget_figure, rows), **image_figures(arms)},
            identity=IDENTITY,
        )
        report.write(self.run_dir, loggers, step=self.num_units)
        return rows[-1]["accuracy"]


def budget_figure(rows: Sequence[Mapping]) -> Figure:
    """Plot accuracy, KID, copies and diversity against network evaluations per image, one line per method."""
    figure, axes = plots.panels(2, rows=2)
    all_axes = [axis for line in axes for axis in line]
    for axis, column in zip(all_axes, PANELS, strict=True):
        _panel(axis, rows, column)
    plots.shared_legend(figure, all_axes)
    return figure


def _panel(axis: Axes, rows: Sequence[Mapping], column: str) -> None:
    label, scale = PANELS[column]
    for k, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        method_rows = [row for row in rows if row["method"] == method]
        optimized = "seedselect" in method
        style = {"color": f"C{k}", "marker": "o" if optimized else "s", "linestyle": "--" if optimized else "-"}
        plots.line(axis, method_rows, "nfe", column, scale=scale, label=method, **style)
        if column == "accuracy":
            plots.interval_band(axis, method_rows, "nfe", column, scale=scale, color=f"C{k}")
    plots.log_axis_with_plain_numbers(axis)
    axis.set(xlabel="network evaluations per image", ylabel=label)
