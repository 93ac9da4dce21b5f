"""Equal budgets: is a network evaluation better spent on an optimization or on more seeds to choose from?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch.loggers import Logger
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from experiments.rare_concepts.report import sample_rows, percent_cells, side_by_side
from experiments.rare_concepts.scoring import accuracy_rows, aggregate_metrics, lost_samples, mean
from experiments.rare_concepts.task import RareConceptsExperiment
from experiments.reporting import tables
from rnri.validation import dataclass

COLUMNS = {
    "method": "method", "nfe": "nfe", "accuracy_%": "accuracy, %", "ceiling": "ceiling, %",
    "kid": "KID", "copies": "copies, %", "pairwise": "variety", "vendi": "Vendi", "n": "n",
}  # fmt: skip
PANELS = {
    "accuracy": ("accuracy, %", 100.0),
    "kid": ("KID", 1.0),
    "copies": ("copies, %", 100.0),
    "pairwise": ("mean distance within a concept", 1.0),
}
NOTE = (
    "Evaluations of the network an image, its share of the references' inversion among them; guidance takes two, a "
    "derivative counts as two more.\n"
)


@dataclass(kw_only=True)
class BudgetExperiment(RareConceptsExperiment):
    """The task behind ``experiment=budget``: rows of methods at budgets.

    An arm is called ``METHOD_BUDGET``, as ``nao_50``; what it really cost is measured. Its other arguments are those of
    :class:`~experiments.rare_concepts.task.RareConcepts`.
    """

    identity = ("method", "budget")

    def __post_init__(self) -> None:
        for name in self.arms:
            method, _, budget = name.rpartition("_")
            if not method or not budget.isdigit():
                raise ValueError(f"task.arms names {name!r}: call an arm METHOD_BUDGET, as nao_50.")

    def row_of(self, arm: str, bucket: str) -> dict[str, Any] | None:
        method, _, budget = arm.rpartition("_")
        return {"method": method, "budget": int(budget)} if bucket == "total" else None

    def report(self, loggers: Sequence[Logger]) -> float:
        """Judges every image and writes the results; returns the last arm's accuracy."""
        judged = {name: self._judge(name, arm) for name, arm in self.arms.items()}
        real, rows, ceiling = self._judge_real(), [], self.ceilings()
        for name, images in judged.items():
            row = accuracy_rows(name, images, self.seed, ceiling)[-1]
            aggregate_metrics(row, images, real)
            nfe = mean(record.get("nfe") for record in images.records)
            rows.append(row | self.row_of(name, "total") | {"nfe": nfe})
        lines = [{**row, **percent_cells(row), "accuracy_%": tables.percent(row, "accuracy")} for row in rows]
        table = f"{tables.markdown_table(lines, COLUMNS)}\n{NOTE}"
        if lost := lost_samples(judged):
            table += f"\n{lost}"
        pictures = {"figures/budget": partial(budget_figure, rows)}
        for bucket in dict.fromkeys(concept.bucket for concept in self.chosen):
            pictures[f"images/{bucket}"] = partial(side_by_side, judged, bucket)
        tables.write_report(
            self.run_dir, rows, self.dependencies(), table=table, pictures=pictures, loggers=loggers,
            identity=self.identity, step=self.all_units,
            samples=[row for name, images in judged.items() for row in sample_rows(name, images)],
        )  # fmt: skip
        return rows[-1]["accuracy"]


def budget_figure(rows: Sequence[Mapping]) -> Figure:
    """Accuracy, KID, copies and variety against the evaluations that an image took, a line a method."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for axis, (name, (label, scale)) in zip(axes.flat, PANELS.items(), strict=True):
        for k, method in enumerate(methods):
            own = sorted((r for r in rows if r["method"] == method), key=lambda row: row["nfe"])
            own = [row for row in own if row.get(name) is not None]
            if not own:
                continue
            where, values = [row["nfe"] for row in own], [scale * row[name] for row in own]
            style = {"marker": "o" if "seedselect" in method else "s", "color": f"C{k}", "label": method}
            axis.plot(where, values, linestyle="--" if "seedselect" in method else "-", **style)
            if name == "accuracy":
                ends = [[scale * row[f"{name}_{end}"] for row in own] for end in ("low", "high")]
                axis.fill_between(where, *ends, color=f"C{k}", alpha=0.07, linewidth=0)
        axis.set(xscale="log", xlabel="network evaluations an image", ylabel=label)
        axis.xaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=ScalarFormatter(), minor_locator=NullLocator()
        )
    lines, names = axes[0, 0].get_legend_handles_labels()  # no other panel has every method
    axes[0, 1].legend(lines, names, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure
