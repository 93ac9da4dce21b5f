"""Report of the editing experiment: tables, figures and one row of metrics per edited image."""

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
from experiments.reporting.html_report import Candidate, Thumbnails, highest_and_lowest
from experiments.reporting.results import Report
from experiments.reporting.tables import MAX_COLUMNS, Column, Rows, Table, varying

FinishedUnit = tuple[EditJob, Mapping[str, Tensor], Mapping[str, Any]]
"""A finished job, its stored tensors, and its stored dict of measured values."""

IDENTITY = ("method", "edit", "model")
"""Names of the columns whose values together identify a row of the results table."""
MODEL = Column("model", "model")
METHOD = Column("method", "method")
EDIT = Column("edit", "edit")
COUNT = Column("n", "n")
EDIT_MARKERS = {PROMPT_SWAP: "o", "p2p": "s", "injection": "s", NATIVE: "^"}
REFERENCE_MARKERS = {SOURCE_IMAGE: "*", GROUND_TRUTH: "P"}


def write_report(
    run_dir: Path,
    units: Sequence[FinishedUnit],
    *,
    baseline: str,
    networks: Mapping[str, Mapping[str, str]],
    skipped: Rows,
    settings: Mapping[str, Any],
    loggers: Sequence[Logger],
    seed: int,
) -> list[dict[str, Any]]:
    """Write all results to ``run_dir`` and to the loggers; return the rows of the results table.

    Args:
        baseline: name of the method with which every other method is compared on the same edits.
        networks: name and SHA-256 hash of each network that generates images or computes metrics.
        skipped: the combinations of model and method that were not run, each with the reason.
        settings: all settings on which the results depend, which are stored with the results.
        seed: random seed of the bootstrap confidence intervals.
    """
    samples = [row for job, _, record in units for row in sample_rows(job, record["rows"])]
    rows = with_speedups([summary(group, seed) for group in group_samples(samples).values()])
    pairs = paired_differences(samples, baseline, seed)
    distances = ", ".join(f"{name}: {networks[name]['name']}" for name in ("lpips", "structure"))
    report = Report(
        rows=rows,
        settings=settings,
        samples=samples,
        tables=[edit_table(rows), *pair_tables(pairs)],
        figures={"figures/fig6": partial(clip_against_lpips, rows), **image_figures(units)},
        notes=[f"Networks: {distances}.", success_note(rows)],
        identity=IDENTITY,
        values=EDITING.columns(),
        bounds=sorted({row["method"] for row in rows if row["model"] == NONE}),
        extra_tables={"pairs": pairs},
        thumbnails=partial(thumbnails, units),
        extra_sections={"pairs": pairs, "networks": networks, "skipped": skipped},
    )
    report.write(run_dir, loggers, step=len(units))
    return rows


def edit_table(rows: Rows) -> Table:
    """Return the table with the metrics of all methods. If there are several models, the table has a column ``model``.

    The last rows of the table belong to the reference methods, which return the source image or the ground truth.
    """
    edits = [row for row in rows if row["model"] != NONE]
    model = [MODEL] if varying(edits, ["model"]) else []
    columns = [*model, METHOD, EDIT, *EDITING.columns(), COUNT][:MAX_COLUMNS]
    return Table(edits, columns, references=[row for row in rows if row["model"] == NONE], within=["model"])


def pair_tables(pairs: Rows) -> list[Table]:
    """Return the table of the differences (method minus baseline method) as a list with one element.

    The list is empty if ``pairs``, the rows of the table, is empty.
    """
    if not pairs:
        return []
    model = [MODEL] if varying(pairs, ["model"]) else []
    score = Column("score", "metric")
    columns = [*model, METHOD, EDIT, score, Column("difference", "difference", signed=True), COUNT]
    return [
        Table(pairs, columns, f"Differences (method minus {pairs[0]['baseline']}) on the same edits (95 % interval):")
    ]


def thumbnails(units: Sequence[FinishedUnit]) -> list[Thumbnails]:
    """Return the edits with the highest and the lowest CLIP score, each next to its source image.

    The edits are selected from the saved images of all models, methods and edit methods.
    """
    sources = {job.key: _load_images(tensors, NONE) for job, tensors, _ in units if job.name == SOURCE_IMAGE}
    candidates = []
    for job, tensors, record in units:
        for edit_method in job.edit_methods if job.model is not None else ():
            pairs = zip(sources[job.key], _load_images(tensors, edit_method), strict=True)
            for pair, edit, values in zip(pairs, job.edits, record["rows"][edit_method], strict=False):
                if all(image is not None for image in pair) and math.isfinite(values["clip_score"]):
                    caption = f"{edit.target}: {values['clip_score']:.3g}, {job.name}, {edit_method.replace('_', ' ')}"
                    candidates.append(Candidate(values["clip_score"], edit.key, pair, caption))
    return highest_and_lowest(candidates, "CLIP score", "source image and edit")


def sample_rows(job: EditJob, records: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """Return one row per edit and edit method of a job.

    A row contains the method, the model, the prompts and metrics.
    """
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
    """Group the rows of single edits by method, edit method and model.

    The keys of the returned dict are tuples of the values of the ``IDENTITY`` columns. Each group becomes one row of
    the results table.
    """
    rows: dict[tuple, list[Mapping[str, Any]]] = {}
    for sample in samples:
        rows.setdefault(tuple(sample[name] for name in IDENTITY), []).append(sample)
    return rows


def success_note(rows: Rows) -> str:
    """Return a note on edits whose success cannot be measured, or an empty string."""
    edits = max(row["n"] for row in rows)
    measured = max(row["n_success"] for row in rows)
    if measured == edits:
        return ""
    return (
        f"Success is measured for {measured} of {edits} edits: the edits of an object to a concept that the evaluation "
        "classifier knows, and the edits of a background with a ground-truth image."
    )


def summary(samples: Rows, seed: int) -> dict[str, Any]:
    """Aggregate the metrics of several edits into one row of the results table.

    The mean of a metric ignores NaN values, as in PIE-Bench.
    """
    first = samples[0]
    row = {name: first[name] for name in (*IDENTITY, "steps")}
    row |= EDITING.summarize(samples, seed, skip_nan=True)
    if "seconds" in row:
        row["overhead"] = row["seconds"] / row["seconds_networks"]
    num_evaluated = sum(not math.isnan(sample["success"]) for sample in samples)
    return row | {"n": len(samples), "n_success": num_evaluated}


def with_speedups(rows: Rows) -> list[dict[str, Any]]:
    """Add the column ``speedup``: the time of the same method with the slowest model divided by the time of the row.

    The slowest model is the model with the most sampling steps. Times are compared for the same edit method, where
    Prompt-to-Prompt and attention injection count as the same edit method.
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
    """Compute mean differences between each method and ``baseline`` on the same edits, with 95 % confidence intervals.

    A row contains the difference of one metric: the value of the compared method minus the value of the baseline. The
    baseline is evaluated with the same model and the same edit method as the compared method. A method with the edit
    method ``native`` is compared with the prompt swap of the baseline.
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
    return {"difference": mean, "difference_low": low, "difference_high": high, "n": len(values)}


def clip_against_lpips(rows: Rows) -> Figure:
    """Plot the CLIP score with the target prompt against the LPIPS to the source image, with one panel per model.

    The figure has the same axes as Figure 6 of the RNRI paper.
    """
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
    """Return a dict from file name to a function that draws a figure with edited images of all methods.

    There is one figure per model and edit method. The figures correspond to Figure 7 of the RNRI paper.
    """
    references = {job.name: (job, _load_images(tensors, NONE)) for job, tensors, _ in reversed(units) if not job.model}
    job, source_images = references[SOURCE_IMAGE]
    reference_images = {name: references[name][1] for name in REFERENCE_MARKERS if name in references}
    heads = [" > ".join(edit.words) or edit.instruction for edit in job.edits[: len(source_images)]]
    grids: dict[str, dict[str, Any]] = {}
    for job, tensors, _ in units:
        for edit_method in job.edit_methods if job.model is not None else ():
            name = f"{job.model.name}_{edit_method}"
            grid = grids.setdefault(name, dict(reference_images))
            grid.setdefault(job.name, _load_images(tensors, edit_method))
    return {
        f"images/fig7_{name}": partial(plots.image_grid, list(grid.items()), heads, name.replace("_", " "))
        for name, grid in grids.items()
    }


def _load_images(tensors: Mapping[str, Tensor], edit_method: str) -> list[Tensor | None]:
    """Return the saved images of an edit method, with None in place of an image with NaN or infinite pixels."""
    images = iter(tensors[edit_method])
    return [next(images) if finite else None for finite in tensors[f"{edit_method}_finite"]]
