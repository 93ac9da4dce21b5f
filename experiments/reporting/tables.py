"""What a run leaves behind: results.json, table.md, samples.parquet, pictures; and the same in the loggers."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use(os.environ.get("MPLBACKEND", "Agg"))  # notebooks name theirs

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import Logger, WandbLogger
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogFormatterMathtext, NullFormatter

from experiments.cache.atomic import CannotWrite, atomic_write

matplotlib.rcParams["text.parse_math"] = False  # names are text, also where they hold dollar signs

DASH = "–"
PACKAGES = ("torch", "diffusers", "transformers", "lightning", "timm", "torchmetrics", "datasets")


def versions() -> dict[str, str]:
    """Of Python, the packages that decide results, and this project's commit; ``unknown`` where it cannot be told."""
    found = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    return found | {"commit": _commit()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return "unknown"
    return git.stdout.strip() or "unknown"


def _plain(value: Any) -> Any:
    """What JSON can hold: it knows neither NaN nor infinity, which become null, nor NumPy's and PyTorch's scalars."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(
    run_dir: str | Path,
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    *,
    samples: Sequence[Mapping[str, Any]],
    table: str,
    pictures: Mapping[str, Callable[[], Figure]],
    loggers: Sequence[Logger],
    identity: Sequence[str] = ("method", "bucket"),
    logged: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    step: int = 0,
    **further: Any,
) -> None:
    """The whole results contract: ``results.json`` first, then samples, table, pictures, and the same for the loggers.

    Args:
        samples: one row an image.
        table: Markdown, which is printed too.
        pictures: what draws each, by its path below ``run_dir`` without the ending.
        identity: the columns that tell rows apart.
        logged: tables that W&B gets besides, by name, where they can be filtered and sorted.
        step: under which the loggers get the figures: how many units there are, where values so far were logged.
        further: what ``results.json`` holds besides.
    """
    run_dir = Path(run_dir)
    write_results(run_dir, rows, settings, **further)
    write_samples(run_dir, samples)
    atomic_write(run_dir / "table.md", lambda path: path.write_text(table))
    print(f"\n{table}\nResults, pictures and samples are in {run_dir}", flush=True)
    log_to(loggers, rows, draw(run_dir, pictures), identity, logged or {}, step)


def write_results(
    run_dir: str | Path, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], **further: Any
) -> None:
    """``results.json``: the rows of the table and what is ``further``, the run's settings, the command and versions."""
    content = {"rows": rows, **further, "settings": settings, "command": shlex.join(sys.argv), "versions": versions()}
    text = json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"
    atomic_write(Path(run_dir) / "results.json", lambda path: path.write_text(text))


def write_samples(run_dir: str | Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """``samples.parquet``: one row an image."""
    atomic_write(Path(run_dir) / "samples.parquet", pd.DataFrame(samples).to_parquet)


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as a Markdown table; ``columns`` maps keys to headings. Missing values are a dash."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if _unknown(value):
        return DASH
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def percent(row: Mapping[str, Any], name: str) -> str:
    """A share of the row in percent, with its interval; a dash where it cannot be had."""
    if _unknown(row.get(name)):
        return DASH
    return f"{100 * row[name]:.1f} ({100 * row[f'{name}_low']:.0f}–{100 * row[f'{name}_high']:.0f})"


def points(row: Mapping[str, Any], name: str, digits: int = 0) -> str:
    """A difference of shares in points, with its interval to so many ``digits``; a dash where it cannot be had."""
    if _unknown(row.get(name)):
        return DASH
    low, high = (f"{100 * row[f'{name}_{end}']:+.{digits}f}" for end in ("low", "high"))
    return f"{100 * row[name]:+.1f} ({low} to {high})"


def whiskers(row: Mapping[str, Any], name: str, scale: float = 1.0) -> tuple[float, float]:
    """How far an interval reaches below and above its value; never below 0, where rounding would take it."""
    value, low, high = (scale * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return max(0.0, value - low), max(0.0, high - value)


def draw(run_dir: Path, pictures: Mapping[str, Callable[[], Figure]]) -> dict[str, Path]:
    """Saves each picture to its path below ``run_dir``; returns the files by their names in the loggers.

    One that cannot be drawn is said in a warning and left out: it costs neither the others nor the results. CannotWrite
    where a file cannot be written.
    """
    files = {}
    for name, make in pictures.items():
        try:
            files[name.removeprefix("figures/")] = save_figure(make(), run_dir / f"{name}.png")
        except CannotWrite:
            plt.close("all")
            raise
        except Exception as error:  # whatever a drawing library may raise
            plt.close("all")
            warnings.warn(f"the picture {name} could not be drawn ({type(error).__name__}: {error}).", stacklevel=2)
    return files


def save_figure(figure: Figure, path: Path) -> Path:
    for axis in (each for axes in figure.axes for each in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatterMathtext):  # its dollar signs would be shown
            axis.set(major_formatter=LogFormatter(), minor_formatter=NullFormatter())
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight"))
    plt.close(figure)
    return path


def image_table(
    rows: Sequence[tuple[str, Sequence[Any]]],
    columns: Sequence[str],
    title: str,
    captions: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Pictures (``uint8 [3, H, W]``, arrays or tensors) in labeled rows under headed columns; None has no picture.

    ``captions`` are shown below them, a row a row.
    """
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(1.25 * len(columns) + 1.2, 1.25 * len(rows) + 0.5), squeeze=False
    )
    for line, (label, pictures) in zip(axes, rows, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            if picture is None:
                axis.text(0.5, 0.5, "not finite", ha="center", va="center", fontsize=7, transform=axis.transAxes)
            else:
                axis.imshow(np.moveaxis(np.asarray(picture), 0, -1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for axis, heading in zip(axes[0], columns, strict=True):
        axis.set_title(heading, fontsize=8)
    for line, texts in zip(axes, captions or [], strict=bool(captions)):
        for axis, text in zip(line, texts, strict=True):
            axis.set_xlabel(text, fontsize=6, labelpad=1)
    figure.suptitle(title, fontsize=10, y=1.0, va="bottom")
    figure.subplots_adjust(wspace=0.04, hspace=0.16 if captions else 0.04, top=1 - 0.25 / (1.25 * len(rows) + 0.5))
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
        spread = np.array([whiskers(own[bucket], "accuracy", 100) for bucket in buckets]).T
        axis.bar(places, heights, width * 0.92, yerr=spread, capsize=3, label=method)
    axis.set(xticks=range(len(buckets)), xticklabels=buckets, ylabel="accuracy, %", ylim=(0, 105))
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(methods), frameon=False)
    return figure


def metric_name(row: Mapping[str, Any], identity: Sequence[str], name: str) -> str:
    """What a row's figure is called in the loggers, by the row alone: ``rnri/steps_50/guidance_7_5/right/psnr``.

    Texts stand as they are, numbers behind their column's name, a truth as that name; what is None or false is left
    out. No dots: W&B takes them for levels.
    """
    told = (_told(part, row[part]) for part in identity)
    return "/".join([*filter(None, told), name]).replace(".", "_")


def _told(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else ""
    if isinstance(value, int | float):
        return f"{name}_{value:g}"
    return value or ""


def log_to(
    loggers: Sequence[Logger],
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Path],
    identity: Sequence[str] = ("method", "bucket"),
    logged: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    step: int = 0,
) -> None:
    """The table's figures to every logger; to W&B the table itself, those of ``logged`` and the pictures too.

    ``identity`` names the columns that tell rows apart; they make the metrics' names.
    """
    numbers = {
        metric_name(row, identity, name): value
        for row in rows
        for name, value in row.items()
        if isinstance(value, int | float) and name not in identity
    }
    for logger in loggers:
        logger.log_metrics(numbers, step=step)
        if isinstance(logger, WandbLogger):
            for name, own in {"results": rows, **(logged or {})}.items():
                columns = list(dict.fromkeys(column for row in own for column in row))
                logger.log_table(name, columns=columns, data=[[row.get(column) for column in columns] for row in own])
            for name, path in figures.items():
                logger.log_image(name, [str(path)])
        logger.save()
