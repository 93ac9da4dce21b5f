"""Experiments that compare methods for optimizing or selecting seeds at several values of one quantity.

The quantity is the number of network evaluations per image (budget), the weight of the noise that is added to the
seeds, or the number of updates of each seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from lightning.pytorch.loggers import Logger
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.evaluation.registry import RARE_CONCEPTS
from experiments.rare_concepts.arms_experiment import REAL, ArmsExperiment, ExperimentStage
from experiments.rare_concepts.image_stage import ImageStage
from experiments.rare_concepts.report import (
    ACCURACY,
    HEADLINE_NOTE,
    METHOD,
    RIGHT_NEW,
    RealScores,
    concept_rows,
    concept_table,
    counts_note,
    image_figures,
    real_note,
    sample_rows,
    second_columns,
    thumbnails,
)
from experiments.rare_concepts.scoring import lost_samples
from experiments.reporting import figures as plots
from experiments.reporting.results import Report
from experiments.reporting.tables import Column, Table
from rnri.validation import dataclass

PANELS = {  # quantity on the x axis -> columns on the y axes, with the axis label and the factor of each column
    "budget": {
        "accuracy": ("accuracy, %", 100.0),
        "kid": ("KID", 1.0),
        "copies": ("copies, %", 100.0),
        "pairwise": ("mean distance within a concept", 1.0),
    },
    "noise": {
        "accuracy": ("accuracy, %", 100.0),
        "right_new": ("right and new, %", 100.0),
        "copies": ("copies, %", 100.0),
        "kid": ("KID", 1.0),
    },
    "updates": {
        "accuracy": ("accuracy, %", 100.0),
        "right_new": ("right and new, %", 100.0),
        "semantic_loss": ("semantic loss", 1.0),
        "appearance_loss": ("appearance loss", 1.0),
    },
}
X_LABELS = {"budget": "network evaluations per image", "noise": "weight of fresh noise, %", "updates": "updates"}
NOTE = (
    "NFE: network evaluations per image. The evaluations for the inversion of the reference images are divided among "
    "the images of a concept. Guidance doubles the number of evaluations; a backward pass counts as two evaluations."
)
NOTES = {"budget": f"Bold: best value among rows with the same budget. {NOTE}", "noise": NOTE, "updates": NOTE}


def method_and_number(quantity: str, arm: str) -> dict[str, Any]:
    """Split the name ``METHOD_NUMBER`` of an arm (pipeline) into two columns of the table.

    The column ``method`` contains METHOD. The column whose name is the value of ``quantity`` contains NUMBER.
    """
    method, _, number = arm.rpartition("_")
    return {"method": method, quantity: int(number)}


def total_row_key(quantity: str, arm: str, bucket: str) -> dict[str, Any] | None:
    """Return the columns that identify the table row of an arm (pipeline) if ``bucket`` is ``total``, else None.

    ``total`` stands for the concepts of all buckets, which are groups of concepts of similar frequency.
    """
    return method_and_number(quantity, arm) if bucket == "total" else None


@dataclass(kw_only=True)
class BudgetExperiment(ArmsExperiment):
    """The task of experiments with one table row per method and value of ``quantity``, such as ``experiment=budget``.

    The name of an arm (pipeline) is ``METHOD_NUMBER``, for example ``nao_50``. The table also contains the measured
    number of network evaluations of each arm.

    Args:
        quantity: what the number in the name of an arm means. ``budget``: number of network evaluations per image.
            ``noise``: weight of the noise that is added to the seeds, in percent. ``updates``: number of updates of
            each seed.
    """

    quantity: Literal["budget", "noise", "updates"] = "budget"

    def __post_init__(self) -> None:
        for name in self.arms:
            method, _, number = name.rpartition("_")
            if not method or not number.isdigit():
                raise ValueError(
                    f"task.arms: names must be METHOD_{self.quantity.upper()}, for example nao_50, got {name!r}."
                )

    @property
    def identity(self) -> tuple[str, str]:
        """Names of the columns that identify a row of the table."""
        return "method", self.quantity

    def stages(self) -> list[ExperimentStage]:
        return [ImageStage(self.context, partial(total_row_key, self.quantity), self.identity)]

    def report(self, loggers: Sequence[Logger]) -> float:
        """Write the results; return the accuracy of the last arm (pipeline)."""
        evaluator = self.evaluator
        arms = evaluator.arms()
        real = RealScores(evaluator.real_row, evaluator.real_features())
        rows = [
            real.rows(name, images, self.seed)[-1] | method_and_number(self.quantity, name)
            for name, images in arms.items()
        ]
        real_row = real.total(self.seed) | {self.quantity: None}
        values = [RIGHT_NEW, ACCURACY, *second_columns(rows), *RARE_CONCEPTS.columns(self.quantity)]
        table = Table(
            rows,
            [METHOD, Column(self.quantity, self.quantity), *values],
            within=[self.quantity],
            references=[real_row],
        )
        report = Report(
            rows=[*rows, real_row],
            settings=self.context.settings(),
            samples=[row for name, images in arms.items() for row in sample_rows(name, images)],
            tables=[table],
            figures={
                f"figures/{self.quantity}": partial(budget_figure, rows, self.quantity),
                "figures/copies": partial(copies_figure, rows, self.quantity, real_row),
                **image_figures(arms),
            },
            notes=[NOTES[self.quantity], HEADLINE_NOTE, real_note([real_row]), counts_note(rows), lost_samples(arms)],
            identity=self.identity,
            values=values,
            bounds=[REAL],
            extra_tables={"concepts": concept_rows(arms)},
            details=[concept_table(concept_rows(arms))],
            thumbnails=partial(thumbnails, arms),
        )
        report.write(self.run_dir, loggers, step=self.num_units)
        return rows[-1]["accuracy"]


def budget_figure(rows: Sequence[Mapping], quantity: str) -> Figure:
    """Plot the metrics in ``PANELS[quantity]``, with one panel per metric and one line per method.

    The x axis shows the weight of the noise in percent (``noise``), the number of updates (``updates``) or the measured
    number of network evaluations per image (``budget``).
    """
    figure, axes = plots.panels(2, rows=2)
    all_axes = [axis for line in axes for axis in line]
    for axis, (column, (label, scale)) in zip(all_axes, PANELS[quantity].items(), strict=True):
        _panel(axis, rows, quantity, column, scale=scale)
        axis.set_ylabel(label)
    plots.shared_legend(figure, all_axes)
    return figure


def copies_figure(rows: Sequence[Mapping], quantity: str, real: Mapping) -> Figure:
    """Plot the accuracy against the share of copies, with one curve per method.

    A curve connects the points of a method in increasing order of ``quantity``.

    Args:
        rows: one row per method and value of ``quantity``.
        quantity: name of the column whose values are written next to the points.
        real: row of the real images, which is drawn as a star.
    """
    figure, ((axis,),) = plots.panels(1)
    for method, style in plots.method_styles([row["method"] for row in rows]).items():
        curve = [row for row in rows if row["method"] == method and row.get("copies") is not None]
        points = sorted((row[quantity], 100 * row["copies"], 100 * row["accuracy"]) for row in curve)
        axis.plot([x for _, x, _ in points], [y for *_, y in points], label=method, **style)
        for number, x, y in points:
            axis.annotate(str(number), (x, y), (4, 4), textcoords="offset points", fontsize=7)
    if real.get("copies") is not None:
        axis.plot(100 * real["copies"], 100 * real["accuracy"], "k*", markersize=12, label="real images")
    axis.set(xlabel="copies, %", ylabel="accuracy, %", title=f"numbers: {X_LABELS[quantity]}")
    plots.shared_legend(figure, [axis])
    return figure


def _panel(axis: Axes, rows: Sequence[Mapping], quantity: str, column: str, *, scale: float) -> None:
    x = "nfe" if quantity == "budget" else quantity
    for method, style in plots.method_styles([row["method"] for row in rows]).items():
        method_rows = [row for row in rows if row["method"] == method and row.get(column) is not None]
        line_style = style | {"linestyle": "--" if "seedselect" in method else "-"}
        plots.line(axis, method_rows, x, column, scale=scale, label=method, **line_style)
        if f"{column}_low" in rows[0]:
            plots.interval_band(axis, method_rows, x, column, scale=scale, color=style["color"])
    if quantity == "budget":
        axis.set_xscale("log")
    plots.value_ticks(axis, [row[x] for row in rows])
    axis.set_xlabel(X_LABELS[quantity])
