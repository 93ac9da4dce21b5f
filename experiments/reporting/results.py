"""Result files of a run (``results.json``, ``table.md``, ``samples.parquet``, figures), and the same in its loggers."""

from __future__ import annotations

import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger, WandbLogger
from matplotlib.figure import Figure

from experiments.cache.atomic import atomic_write
from experiments.reporting.figures import save_figures

Rows = Sequence[Mapping[str, Any]]

PACKAGES = ("torch", "diffusers", "transformers", "lightning", "timm", "torchmetrics", "datasets")


@dataclass(kw_only=True)
class Report:
    """Everything that a finished run reports.

    Attributes:
        rows: rows of the main table, by column.
        settings: settings of the run, for ``results.json``.
        samples: one row per image.
        table: Markdown text of ``table.md``, also printed.
        figures: functions that draw figures, by path below the run's folder, without extension.
        identity: columns that tell rows apart; they form the logger keys.
        extra_sections: further top-level entries of ``results.json``.
        extra_tables: further tables for W&B, by name.
    """

    rows: Rows
    settings: Mapping[str, Any]
    samples: Rows
    table: str
    figures: Mapping[str, Callable[[], Figure]]
    identity: Sequence[str] = ("method", "bucket")
    extra_sections: Mapping[str, Any] = field(default_factory=dict)
    extra_tables: Mapping[str, Rows] = field(default_factory=dict)

    def write(self, run_dir: str | Path, loggers: Sequence[Logger], step: int = 0) -> None:
        """Write all files into ``run_dir``, print the table, and log metrics, tables and figures.

        Args:
            step: logger step of the metrics: the number of units if running means were logged before.
        """
        run_dir = Path(run_dir)
        write_results(run_dir, self.rows, self.settings, **self.extra_sections)
        write_samples(run_dir, self.samples)
        atomic_write(run_dir / "table.md", lambda path: path.write_text(self.table))
        print(f"\n{self.table}\nResults, figures and samples are in {run_dir}", flush=True)
        files = save_figures(run_dir, self.figures)
        log_metrics(loggers, self.rows, self.identity, step)
        log_media(loggers, {"results": self.rows, **self.extra_tables}, files)


def write_results(run_dir: str | Path, rows: Rows, settings: Mapping[str, Any], **extra_sections: Any) -> None:
    """Write ``results.json``: the rows, ``extra_sections``, the settings, the command line and package versions."""
    content = {
        "rows": rows,
        **extra_sections,
        "settings": settings,
        "command": shlex.join(sys.argv),
        "versions": versions(),
    }
    text = json.dumps(_to_builtin(content), indent=1, allow_nan=False) + "\n"
    atomic_write(Path(run_dir) / "results.json", lambda path: path.write_text(text))


def write_samples(run_dir: str | Path, samples: Rows) -> None:
    """Write ``samples.parquet``: one row per image."""
    atomic_write(Path(run_dir) / "samples.parquet", pd.DataFrame(samples).to_parquet)


def versions() -> dict[str, str]:
    """Versions of Python and of ``PACKAGES``, and this project's Git commit; ``unknown`` if not available."""
    packages = {name: _package_version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, "commit": _commit()}


def _package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # Git is not installed
        return "unknown"
    return git.stdout.strip() or "unknown"


def _to_builtin(value: Any) -> Any:
    """``value`` in JSON's types: NumPy and PyTorch scalars become Python's, NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {name: _to_builtin(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_builtin(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def metric_name(row: Mapping[str, Any], identity: Sequence[str], name: str) -> str:
    """Logger key of a row's metric, such as ``rnri/steps_50/guidance_7_5/right/psnr``.

    Strings stand as they are, numbers after their column's name; true is the column's name, false and None are
    omitted. Dots become underscores, because W&B treats them as nesting.
    """
    parts = (_key_part(column, row[column]) for column in identity)
    return "/".join([*filter(None, parts), name]).replace(".", "_")


def _key_part(column: str, value: Any) -> str:
    if isinstance(value, bool):
        return column if value else ""
    if isinstance(value, int | float):
        return f"{column}_{value:g}"
    return value or ""


def log_metrics(loggers: Sequence[Logger], rows: Rows, identity: Sequence[str], step: int = 0) -> None:
    """Log all numbers of ``rows`` to all loggers; :func:`metric_name` forms the keys from ``identity``."""
    metrics = {
        metric_name(row, identity, name): value
        for row in rows
        for name, value in row.items()
        if isinstance(value, int | float) and name not in identity
    }
    for logger in loggers:
        logger.log_metrics(metrics, step=step)
        logger.save()


def log_media(loggers: Sequence[Logger], tables: Mapping[str, Rows], figures: Mapping[str, Path]) -> None:
    """Log tables and figure files, by name, to W&B."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for name, rows in tables.items():
                columns = list(dict.fromkeys(column for row in rows for column in row))
                logger.log_table(name, columns=columns, data=[[row.get(column) for column in columns] for row in rows])
            for name, path in figures.items():
                logger.log_image(name, [str(path)])
            logger.save()
