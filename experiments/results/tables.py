"""What a run leaves behind: results.json, table.md, samples.parquet, pictures; and the same in the loggers."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import Logger, WandbLogger
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from experiments.results.files import write_whole

PACKAGES = ("torch", "diffusers", "transformers", "lightning", "timm", "torchmetrics", "datasets")


def versions() -> dict[str, str]:
    """Of Python, the packages that decide results, and this project's commit where it is a git checkout."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    commit = git.stdout.strip() or "unknown"
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "commit": commit,
    }


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(
    run_dir: str | Path, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], **further: Any
) -> None:
    """``results.json``: the rows of the table and what is ``further``, the run's settings, the command and versions."""
    content = {"rows": rows, **further, "settings": settings, "command": " ".join(sys.argv), "versions": versions()}
    text = json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
    write_whole(Path(run_dir) / "results.json", lambda path: path.write_text(text))


def write_samples(run_dir: str | Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """``samples.parquet``: one row an image."""
    write_whole(Path(run_dir) / "samples.parquet", pd.DataFrame(samples).to_parquet)


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as a Markdown table; ``columns`` maps keys to headings. Missing values are a dash."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(row: Mapping[str, Any], name: str) -> str:
    """A share of the row in percent, with its interval."""
    return f"{100 * row[name]:.1f} ({100 * row[f'{name}_low']:.0f}–{100 * row[f'{name}_high']:.0f})"


def points(row: Mapping[str, Any], name: str, digits: int = 0) -> str:
    """A difference of shares in points, with its interval to so many ``digits``."""
    low, high = (f"{100 * row[f'{name}_{end}']:+.{digits}f}" for end in ("low", "high"))
    return f"{100 * row[name]:+.1f} ({low} to {high})"


def save_figure(figure: Figure, path: Path) -> Path:
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight"))
    plt.close(figure)
    return path


def image_table(rows: Sequence[tuple[str, Sequence[Any]]], columns: Sequence[str], title: str) -> Figure:
    """Pictures (``uint8 [3, H, W]``, arrays or tensors) in labelled rows under headed columns."""
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(1.25 * len(columns) + 1.2, 1.25 * len(rows) + 0.5), squeeze=False
    )
    for line, (label, pictures) in zip(axes, rows, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(np.moveaxis(np.asarray(picture), 0, -1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for axis, heading in zip(axes[0], columns, strict=True):
        axis.set_title(heading, fontsize=8)
    figure.suptitle(title, fontsize=10, y=1.0, va="bottom")
    figure.subplots_adjust(wspace=0.04, hspace=0.04, top=1 - 0.25 / (1.25 * len(rows) + 0.5))
    return figure


def accuracy_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy a bucket and method, with its interval."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    buckets = list(dict.fromkeys(row["bucket"] for row in rows))
    figure, axis = plt.subplots(figsize=(1.6 + 1.5 * len(buckets), 3))
    width = 0.8 / len(methods)
    for m, method in enumerate(methods):
        own = {row["bucket"]: row for row in rows if row["method"] == method}
        places = [b + (m - (len(methods) - 1) / 2) * width for b in range(len(buckets))]
        heights = [100 * own[bucket]["accuracy"] for bucket in buckets]
        below = [100 * (own[b]["accuracy"] - own[b]["accuracy_low"]) for b in buckets]
        above = [100 * (own[b]["accuracy_high"] - own[b]["accuracy"]) for b in buckets]
        axis.bar(places, heights, width * 0.92, yerr=[below, above], capsize=3, label=method)
    axis.set(xticks=range(len(buckets)), xticklabels=buckets, ylabel="accuracy, %", ylim=(0, 105))
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(methods), frameon=False)
    return figure


def log_to(
    loggers: Sequence[Logger],
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Path],
    identity: Sequence[str] = ("method", "bucket"),
) -> None:
    """The table's figures to every logger; to W&B the table itself and the pictures too.

    ``identity`` names the columns that tell rows apart; they make the metrics' names.
    """
    numbers = {
        "/".join([*(str(row[part]) for part in identity if row[part] is not None), name]): value
        for row in rows
        for name, value in row.items()
        if isinstance(value, int | float) and name not in identity
    }
    for logger in loggers:
        logger.log_metrics(numbers, step=0)
        if isinstance(logger, WandbLogger):
            columns = list(dict.fromkeys(name for row in rows for name in row))
            logger.log_table("results", columns=columns, data=[[row.get(name) for name in columns] for row in rows])
            for name, path in figures.items():
                logger.log_image(name, [str(path)])
        logger.save()
