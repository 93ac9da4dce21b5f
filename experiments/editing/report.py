"""Table, samples and pictures of a study of editing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from experiments.editing.benchmark import KINDS
from experiments.editing.jobs import IMAGE, NONE, TRUE, Job
from experiments.evaluation import bootstrap_interval
from experiments.reporting import tables

Found = tuple[Job, Mapping[str, Tensor], Mapping[str, Any]]
"""A finished unit: its job, its tensors and its record."""
Rows = Sequence[Mapping[str, Any]]

IDENTITY = ("method", "edit", "model")
"""What tells the rows of the table apart."""
SCORES = ("clip_score", "lpips", "background_psnr", "success")
"""What has an interval, and is compared in pairs."""
AVERAGED = (
    "clip_score_region", "structure", "background_mse", "background_ssim", "background_lpips", "original_psnr",
    "original_mse", "original_ssim", "made", "kept", "latent_mse", "seconds", "seconds_networks",
)  # fmt: skip
COLUMNS = {
    "model": "model", "method": "method", "edit": "edit", "clip_score": "CLIP", "clip_score_low": "from",
    "clip_score_high": "to", "clip_score_region": "CLIP, region", "lpips": "LPIPS", "structure": "structure",
    "background_psnr": "background PSNR", "background_ssim": "SSIM", "background_lpips": "background LPIPS",
    "original_psnr": "PIE PSNR", "original_ssim": "PIE SSIM", "made": "made", "kept": "kept", "success": "success",
    "success_low": "from", "success_high": "to", "latent_mse": "latent MSE of the inversion", "seconds": "s an edit",
    "overhead": "times its networks", "faster": "faster", "n": "n",
}  # fmt: skip
PAIRED = {
    "model": "model", "edit": "edit", "method": "method", "baseline": "baseline", "score": "score",
    "difference": "difference", "low": "from", "high": "to", "n": "n",
}  # fmt: skip


def write_report(
    run_dir: Path,
    found: Sequence[Found],
    *,
    baseline: str,
    networks: Mapping[str, Mapping[str, str]],
    left_out: Rows,
    settings: Mapping[str, Any],
    loggers: Sequence[Logger],
    seed: int,
) -> list[dict[str, Any]]:
    """Writes the whole results contract into ``run_dir`` and the loggers; returns the rows."""
    samples = [row for job, _, record in found for row in sample_rows(job, record["rows"])]
    rows = with_speeds([summary(group, seed) for group in groups(samples).values()])
    pairs = paired(samples, baseline, seed)
    scored = ", ".join(f"{name}: {networks[name]['name']}" for name in ("lpips", "structure"))
    table = "\n".join(
        [tables.markdown_table(rows, COLUMNS), f"Networks: {scored}.\n", tables.markdown_table(pairs, PAIRED)]
    )
    tables.write_report(
        run_dir, rows, settings, samples=samples, table=table, loggers=loggers, identity=IDENTITY, step=len(found),
        pictures={"figures/fig6": partial(clip_against_lpips, rows), **grids(found)},
        pairs=pairs, networks=networks, left_out=left_out,
    )  # fmt: skip
    return rows


def sample_rows(job: Job, records: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """One row an edit and way: what it was, and what was measured."""
    return [
        {
            "method": job.name, "edit": way, "model": NONE if job.model is None else job.model.name,
            "steps": None if job.model is None else job.model.steps, "sample": edit.key, "kind": KINDS[edit.kind],
            "source": edit.source, "target": edit.target, **record,
        }
        for way, rows in records.items()
        for edit, record in zip(job.edits, rows, strict=True)
    ]  # fmt: skip


def groups(samples: Rows) -> dict[tuple, list[Mapping[str, Any]]]:
    """Samples of one row of the table, by what tells rows apart."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for sample in samples:
        found.setdefault(tuple(sample[name] for name in IDENTITY), []).append(sample)
    return found


def known(values: Sequence[float]) -> list[float]:
    """Without NaN: what an edit has no value for, as PIE-Bench leaves empty backgrounds out."""
    return [value for value in values if not math.isnan(value)]


def summary(samples: Rows, seed: int) -> dict[str, Any]:
    """A row of the table: means over the edits that have a value, with 95 % intervals of ``SCORES``."""
    first = samples[0]
    row = {name: first[name] for name in (*IDENTITY, "steps")}
    for name in (*SCORES, *AVERAGED):
        values = known([sample[name] for sample in samples if name in sample])
        row[name] = float(np.mean(values)) if values else math.nan
        if name in SCORES:
            row[f"{name}_low"], row[f"{name}_high"] = _interval(values, seed)
    row["overhead"] = row["seconds"] / row["seconds_networks"]
    row["not_finite"] = int(sum(sample["not_finite"] for sample in samples))
    return row | {"n": len(samples), "n_success": len(known([sample["success"] for sample in samples]))}


def _interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    usable = bool(values) and all(map(math.isfinite, values))
    return bootstrap_interval(values, seed=seed) if usable else (math.nan, math.nan)


def with_speeds(rows: Rows) -> list[dict[str, Any]]:
    """``rows`` with how many times faster each is than its method on the model of the most steps, edited alike.

    Ways by attention are one way, whatever the network.
    """

    def key(row: Mapping[str, Any]) -> tuple:
        return row["method"], "attention" if row["edit"] in ("p2p", "injection") else row["edit"]

    most = max((row["steps"] for row in rows if row["steps"]), default=None)
    slow = {key(row): row["seconds"] for row in rows if row["steps"] == most}
    return [{**row, "faster": slow.get(key(row), math.nan) / row["seconds"]} for row in rows]


def paired(samples: Rows, baseline: str, seed: int) -> list[dict[str, Any]]:
    """Mean differences of each method's edits to those of ``baseline``, edit by edit, with 95 % intervals.

    Within a model and a way; a method's own way is compared with prompts swapped.
    """
    by_row = groups(samples)
    found = []
    for (method, edit, model), own in by_row.items():
        base = by_row.get((baseline, "prompt_swap" if edit == "own" else edit, model))
        if base is None or method == baseline:
            continue
        for score in SCORES:
            ours = {sample["sample"]: sample[score] for sample in own}
            differences = known([ours[sample["sample"]] - sample[score] for sample in base])
            low, high = _interval(differences, seed)
            mean = float(np.mean(differences)) if differences else math.nan
            found.append({
                "model": model, "edit": edit, "method": method, "baseline": baseline, "score": score,
                "difference": mean, "low": low, "high": high, "n": len(differences),
            })  # fmt: skip
    return found


def clip_against_lpips(rows: Rows) -> Figure:
    """CLIP score of the edited prompt against LPIPS to the image (Fig. 6), a panel a model."""
    models = [model for model in dict.fromkeys(row["model"] for row in rows) if model != NONE]
    methods = list(dict.fromkeys(row["method"] for row in rows if row["model"] != NONE))
    colors = {method: plt.get_cmap("tab20").colors[k % 20] for k, method in enumerate(methods)}
    markers = {"prompt_swap": "o", "p2p": "s", "injection": "s", "own": "^"}
    figure, axes = plt.subplots(1, len(models), figsize=(4.4 * len(models) + 2, 3.6), squeeze=False)
    for model, axis in zip(models, axes[0], strict=True):
        for row in rows:
            if row["model"] == NONE:
                marker = {IMAGE: "*", TRUE: "P"}[row["method"]]
                axis.plot(row["lpips"], row["clip_score"], marker, color="black", markersize=9, label=row["method"])
            elif row["model"] == model and math.isfinite(row["clip_score"]):
                spread = np.array([tables.whiskers(row, "clip_score")]).T
                axis.errorbar(row["lpips"], row["clip_score"], spread, linewidth=0.7, linestyle="none", markersize=5,
                              color=colors[row["method"]], marker=markers[row["edit"]],
                              label=f"{row['method']}, {row['edit'].replace('_', ' ')}")  # fmt: skip
        axis.set(title=model, xlabel="LPIPS to the image", ylabel="CLIP score of the edited prompt")
    handles = {label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=6, loc="center left", bbox_to_anchor=(0.99, 0.5),
                  frameon=False)  # fmt: skip
    figure.tight_layout()
    return figure


def grids(found: Sequence[Found]) -> dict[str, Callable[[], Figure]]:
    """For each model and way what draws its first edits (Fig. 7), by the name of their file."""
    beside = {job.name: (job, _shown(tensors, NONE)) for job, tensors, _ in reversed(found) if job.model is None}
    image, pictures = beside[IMAGE]
    names = [" > ".join(edit.words) or edit.instruction for edit in image.edits[: len(pictures)]]
    groups: dict[str, dict[str, Any]] = {}
    for job, tensors, _ in found:
        for way in job.ways if job.model is not None else ():
            group = groups.setdefault(f"{job.model.name}_{way}", {IMAGE: pictures, TRUE: beside[TRUE][1]})
            group.setdefault(job.name, _shown(tensors, way))
    return {
        f"images/fig7_{name}": partial(tables.image_table, list(group.items()), names, name.replace("_", " "))
        for name, group in groups.items()
    }


def _shown(tensors: Mapping[str, Tensor], way: str) -> list[Tensor | None]:
    """The images of a way, None for those that are not finite."""
    kept = iter(tensors[way])
    return [next(kept) if finite else None for finite in tensors[f"{way}_finite"]]
