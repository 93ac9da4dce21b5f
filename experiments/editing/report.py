"""Tables, samples and figures of the editing experiment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.editing.benchmark import KINDS
from experiments.editing.jobs import GROUND_TRUTH, NATIVE, NONE, PROMPT_SWAP, SOURCE_IMAGE, EditJob
from experiments.evaluation.metrics import bootstrap_interval
from experiments.evaluation.registry import EDITING
from experiments.reporting import figures as plots
from experiments.reporting.results import Report
from experiments.reporting.tables import markdown_table

FinishedUnit = tuple[EditJob, Mapping[str, Tensor], Mapping[str, Any]]
"""A job, the tensors and the record of its unit."""
Rows = Sequence[Mapping[str, Any]]

IDENTITY = ("method", "edit", "model")
"""Columns that tell the rows of the table apart."""
PAIR_COLUMNS = {
    "model": "model", "edit": "edit", "method": "method", "baseline": "baseline", "score": "score",
    "difference": "difference", "low": "from", "high": "to", "n": "n",
}  # fmt: skip
EDIT_MARKERS = {PROMPT_SWAP: "o", "p2p": "s", "injection": "s", NATIVE: "^"}
REFERENCE_MARKERS = {SOURCE_IMAGE: "*", GROUND_TRUTH: "P"}


def columns() -> dict[str, str]:
    """Columns of the table and their heads."""
    first = {"model": "model", "method": "method", "edit": "edit"}
    last = {"overhead": "time / network time", "speedup": "speedup", "n": "n"}
    return {**first, **EDITING.columns(), **last}


def write_report(
    run_dir: Path,
    units: Sequence[FinishedUnit],
    *,
    baseline: str,
    networks: Mapping[str, Mapping[str, str]],
    left_out: Rows,
    settings: Mapping[str, Any],
    loggers: Sequence[Logger],
    seed: int,
) -> list[dict[str, Any]]:
    """Write all results into ``run_dir`` and the loggers; returns the rows of the table.

    Args:
        baseline: method with which the others are compared.
        networks: name and SHA-256 of each network.
        left_out: combinations of model and method without a row, with reasons.
        seed: of the bootstrap.
    """
    samples = [row for job, _, record in units for row in sample_rows(job, record["rows"])]
    rows = with_speedups([summary(group, seed) for group in group_samples(samples).values()])
    pairs = paired_differences(samples, baseline, seed)
    distances = ", ".join(f"{name}: {networks[name]['name']}" for name in ("lpips", "structure"))
    texts = [markdown_table(rows, columns()), f"Networks: {distances}.\n", markdown_table(pairs, PAIR_COLUMNS)]
    report = Report(
        rows=rows,
        settings=settings,
        samples=samples,
        table="\n".join(texts),
        figures={"figures/fig6": partial(clip_against_lpips, rows), **image_figures(units)},
        identity=IDENTITY,
        extra_sections={"pairs": pairs, "networks": networks, "left_out": left_out},
    )
    report.write(run_dir, loggers, step=len(units))
    return rows


def sample_rows(job: EditJob, records: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """One row per edit and edit method: its conditions and its metrics."""
    return [
        {
            "method": job.name,
            "edit": edit_method,
            "model": NONE if job.model is None else job.model.name,
            "steps": None if job.model is None else job.model.steps,
            "sample": edit.key,
            "kind": KINDS[edit.kind],
            "source": edit.source,
            "target": edit.target,
            **record,
        }
        for edit_method, rows in records.items()
        for edit, record in zip(job.edits, rows, strict=True)
    ]


def group_samples(samples: Rows) -> dict[tuple, list[Mapping[str, Any]]]:
    """Samples by table row, that is by their values of ``IDENTITY``."""
    rows: dict[tuple, list[Mapping[str, Any]]] = {}
    for sample in samples:
        rows.setdefault(tuple(sample[name] for name in IDENTITY), []).append(sample)
    return rows


def summary(samples: Rows, seed: int) -> dict[str, Any]:
    """A row of the table: metrics aggregated over edits. As in PIE-Bench, edits without a value are left out."""
    first = samples[0]
    row = {name: first[name] for name in (*IDENTITY, "steps")}
    row |= EDITING.summarize(samples, seed, skip_nan=True)
    if "seconds" in row:
        row["overhead"] = row["seconds"] / row["seconds_networks"]
    num_evaluated = sum(not math.isnan(sample["success"]) for sample in samples)
    return row | {"n": len(samples), "n_success": num_evaluated}


def with_speedups(rows: Rows) -> list[dict[str, Any]]:
    """``rows`` with ``speedup``: time of the same method and edit on the model with the most steps, over a row's time.

    Prompt-to-prompt and injection count as the same edit.
    """

    def key(row: Mapping[str, Any]) -> tuple:
        return row["method"], "attention" if row["edit"] in ("p2p", "injection") else row["edit"]

    max_steps = max((row["steps"] for row in rows if row["steps"]), default=None)
    slowest = {key(row): row["seconds"] for row in rows if row["steps"] == max_steps and "seconds" in row}
    return [
        {**row, "speedup": slowest.get(key(row), math.nan) / row["seconds"]} if "seconds" in row else dict(row)
        for row in rows
    ]


def paired_differences(samples: Rows, baseline: str, seed: int) -> list[dict[str, Any]]:
    """Mean difference of each method to ``baseline`` on the same edits, with 95 % intervals, per metric.

    Methods are compared within a model and an edit method. A native edit is compared with the baseline's prompt swap.
    """
    by_row = group_samples(samples)
    pairs = []
    for (method, edit, model), group in by_row.items():
        base = by_row.get((baseline, PROMPT_SWAP if edit == NATIVE else edit, model))
        if base is None or method == baseline:
            continue
        by_edit = {sample["sample"]: sample for sample in group}
        for score in EDITING.with_interval:
            differences = [by_edit[sample["sample"]][score] - sample[score] for sample in base]
            statistics = _mean_and_interval([value for value in differences if not math.isnan(value)], seed)
            conditions = {"model": model, "edit": edit, "method": method, "baseline": baseline, "score": score}
            pairs.append(conditions | statistics)
    return pairs


def _mean_and_interval(values: Sequence[float], seed: int) -> dict[str, float]:
    usable = bool(values) and all(map(math.isfinite, values))
    low, high = bootstrap_interval(values, seed=seed) if usable else (math.nan, math.nan)
    mean = float(np.mean(values)) if values else math.nan
    return {"difference": mean, "low": low, "high": high, "n": len(values)}


def clip_against_lpips(rows: Rows) -> Figure:
    """CLIP score of the target prompt against LPIPS to the source image (Fig. 6), one panel per model."""
    references = [row for row in rows if row["model"] == NONE]
    edits = [row for row in rows if row["model"] != NONE]
    models = list(dict.fromkeys(row["model"] for row in edits))
    colors = {name: style["color"] for name, style in plots.method_styles([row["method"] for row in edits]).items()}
    figure, (axes,) = plots.panels(len(models))
    for model, axis in zip(models, axes, strict=True):
        for row in references:
            marker = REFERENCE_MARKERS[row["method"]]
            axis.plot(row["lpips"], row["clip_score"], marker, color="black", markersize=9, label=row["method"])
        for row in edits:
            if row["model"] == model:
                _draw_edit(axis, row, colors[row["method"]])
        axis.set(title=model, xlabel="LPIPS to the source image", ylabel="CLIP score of the target prompt")
    plots.shared_legend(figure, axes)
    return figure


def _draw_edit(axis: Axes, row: Mapping[str, Any], color: Any) -> None:
    label = f"{row['method']}, {row['edit'].replace('_', ' ')}"
    plots.point(axis, row, "lpips", "clip_score", color=color, marker=EDIT_MARKERS[row["edit"]], label=label)


def image_figures(units: Sequence[FinishedUnit]) -> dict[str, Callable[[], Figure]]:
    """Grids of the first edits (Fig. 7) by file name, one per model and edit method."""
    references = {job.name: (job, _load_images(tensors, NONE)) for job, tensors, _ in reversed(units) if not job.model}
    job, source_images = references[SOURCE_IMAGE]
    ground_truth = references[GROUND_TRUTH][1]
    heads = [" > ".join(edit.words) or edit.instruction for edit in job.edits[: len(source_images)]]
    grids: dict[str, dict[str, Any]] = {}
    for job, tensors, _ in units:
        for edit_method in job.edit_methods if job.model is not None else ():
            name = f"{job.model.name}_{edit_method}"
            grid = grids.setdefault(name, {SOURCE_IMAGE: source_images, GROUND_TRUTH: ground_truth})
            grid.setdefault(job.name, _load_images(tensors, edit_method))
    return {
        f"images/fig7_{name}": partial(plots.image_grid, list(grid.items()), heads, name.replace("_", " "))
        for name, grid in grids.items()
    }


def _load_images(tensors: Mapping[str, Tensor], edit_method: str) -> list[Tensor | None]:
    """Stored images of an edit method; None for those that are not finite."""
    images = iter(tensors[edit_method])
    return [next(images) if finite else None for finite in tensors[f"{edit_method}_finite"]]
