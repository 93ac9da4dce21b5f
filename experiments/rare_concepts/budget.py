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
from experiments.rare_concepts.report import (
    ACCURACY,
    CONCEPT_COLUMNS,
    METHOD,
    concept_rows,
    counts_note,
    image_figures,
    sample_rows,
    thumbnails,
)
from experiments.rare_concepts.scoring import accuracy_rows, aggregate_metrics, lost_samples
from experiments.reporting import figures as plots
from experiments.reporting.results import Report
from experiments.reporting.tables import Column, Table
from rnri.validation import dataclass

PANELS = {  # column: (label, scale)
    "accuracy": ("accuracy, %", 100.0),
    "kid": ("KID", 1.0),
    "copies": ("copies, %", 100.0),
    "pairwise": ("mean distance within a concept", 1.0),
}
NOTE = (
    "Bold: best value among rows with the same budget. NFE: network evaluations per image, including the image's share "
    "of the inversion of the references. Guidance doubles the number of evaluations; a backward pass counts as two "
    "evaluations."
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
        values = [ACCURACY, *RARE_CONCEPTS.columns(BUDGET)]
        report = Report(
            rows=rows,
            settings=self.context.settings(),
            samples=[row for name, images in arms.items() for row in sample_rows(name, images)],
            tables=[Table(rows, [METHOD, Column("budget", "budget"), *values], within=["budget"])],
            figures={"figures/budget": partial(budget_figure, rows), **image_figures(arms)},
            notes=[NOTE, counts_note(rows), lost_samples(arms)],
            identity=IDENTITY,
            values=values,
            extra_tables={"concepts": concept_rows(arms)},
            details=[Table(concept_rows(arms), CONCEPT_COLUMNS, "Concepts", within=["concept"])],
            thumbnails=partial(thumbnails, arms),
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
    for method, style in plots.method_styles([row["method"] for row in rows]).items():
        method_rows = [row for row in rows if row["method"] == method]
        line_style = style | {"linestyle": "--" if "seedselect" in method else "-"}
        plots.line(axis, method_rows, "nfe", column, scale=scale, label=method, **line_style)
        if column == "accuracy":
            plots.interval_band(axis, method_rows, "nfe", column, scale=scale, color=style["color"])
    axis.set_xscale("log")
    plots.value_ticks(axis, [row["nfe"] for row in rows])
    axis.set(xlabel="network evaluations per image", ylabel=label)
