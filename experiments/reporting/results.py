"""Writing of the result files of a run (``results.json``, tables, figures, ``report.html``), and upload to loggers."""

from __future__ import annotations

import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure
from PIL import Image

from experiments.cache.atomic import atomic_write
from experiments.naming import metric_name
from experiments.reporting.figures import save_figures
from experiments.reporting.html_report import Thumbnails, html_report
from experiments.reporting.tables import MAX_COLUMNS, Column, Rows, Table

TIMES = ("seconds", "seconds_networks", "overhead", "speedup", "t_init", "t_opt", "t_train")
"""Columns with measured times and ratios of times, which differ each time a computation is repeated."""
PACKAGES = ("torch", "diffusers", "transformers", "lightning", "timm", "torchmetrics", "datasets")


@dataclass(kw_only=True)
class Report:
    """The results of a finished run: tables, measured values of the images, and figures.

    Attributes:
        rows: rows of the main results table with all columns; each row maps column names to values.
        settings: settings of the run, which are written to ``results.json``.
        samples: measured values of each image, one row per image.
        tables: tables with at most seven columns, which are printed and written to ``table.md`` and ``table.tex``.
        figures: dict from the path of each figure, relative to the run's folder and without file extension, to the
            function that draws the figure.
        notes: sentences below the tables. :func:`equal_rows` adds a sentence if different methods have equal metrics.
        identity: columns whose values identify a row of ``rows``, and are part of the keys of logged metrics.
        values: columns of ``rows`` that :mod:`experiments.reporting.compare` compares between runs.
        bounds: names in the column ``method`` that are not methods, but upper bounds or real images.
        extra_sections: additional top-level entries of ``results.json``.
        extra_tables: dict from name to rows of additional tables, which are written to ``NAME.csv`` and uploaded to
            loggers.
        details: tables at the end of ``report.html``.
        thumbnails: function that returns the groups of images in ``report.html``.

    Raises:
        ValueError: one of ``tables`` has more than seven columns.
    """

    rows: Rows
    settings: Mapping[str, Any]
    samples: Rows
    tables: Sequence[Table]
    figures: Mapping[str, Callable[[], Figure]]
    notes: Sequence[str] = ()
    identity: Sequence[str] = ("method", "bucket")
    values: Sequence[Column] = ()
    bounds: Sequence[str] = ()
    extra_sections: Mapping[str, Any] = field(default_factory=dict)
    extra_tables: Mapping[str, Rows] = field(default_factory=dict)
    details: Sequence[Table] = ()
    thumbnails: Callable[[], Sequence[Thumbnails]] = list

    def __post_init__(self) -> None:
        for table in self.tables:
            if len(table.columns) > MAX_COLUMNS:
                raise ValueError(
                    f"tables: a table has at most {MAX_COLUMNS} columns, got {', '.join(table.heads)}; remove "
                    "some columns. All columns of the rows are in table.csv."
                )

    def write(self, run_dir: str | Path, loggers: Sequence[Logger], step: int = 0) -> None:
        """Write all result files into ``run_dir``, print the tables, and log metrics, tables and figures.

        Args:
            run_dir: folder of the run.
            loggers: loggers of the run.
            step: logger step of the metrics. The step must not be smaller than the last step that was logged.
        """
        run_dir = Path(run_dir)
        notes = list(filter(None, [*self.notes, equal_rows(self.rows, self.identity)]))
        text = "\n".join([*(table.markdown() for table in self.tables), *(f"{note}\n" for note in notes)])
        sections = {
            **self.extra_sections,
            "identity": self.identity,
            "values": [asdict(column) for column in self.values],
            "bounds": self.bounds,
        }
        write_results(run_dir, self.rows, self.settings, **sections)
        write_samples(run_dir, self.samples)
        _write_text(run_dir / "table.md", text)
        _write_text(run_dir / "table.tex", "\n".join(table.latex() for table in self.tables))
        for name, rows in {"table": self.rows, **self.extra_tables}.items():
            atomic_write(run_dir / f"{name}.csv", partial(pd.DataFrame(rows).to_csv, index=False))
        print(f"\n{text}\nThe results are in {run_dir}; report.html shows them with figures and images.", flush=True)
        files = save_figures(run_dir, self.figures)
        log_metrics(loggers, self.rows, self.identity, step)
        log_media(loggers, {"results": self.rows, **self.extra_tables}, files)
        report = html_report(
            run_dir.resolve().name,
            command(),
            versions(),
            tables=self.tables,
            notes=notes,
            details=self.details,
            thumbnails=self.thumbnails(),
            figures=files,
        )
        _write_text(run_dir / "report.html", report)


def _write_text(path: Path, text: str) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def command() -> str:
    """Return the command line of this process."""
    return shlex.join([*(["python"] if sys.argv[0].endswith(".py") else []), *sys.argv])


def write_results(run_dir: str | Path, rows: Rows, settings: Mapping[str, Any], **extra_sections: Any) -> None:
    """Write the file ``results.json``.

    Args:
        run_dir: folder of the run.
        rows: rows of the results.
        settings: settings of the run.
        **extra_sections: additional top-level entries of the file.
    """
    content = {
        "rows": rows,
        **extra_sections,
        "settings": settings,
        "command": command(),
        "versions": versions(),
    }
    text = json.dumps(_to_builtin(content), indent=1, allow_nan=False) + "\n"
    atomic_write(Path(run_dir) / "results.json", lambda path: path.write_text(text, encoding="utf-8"))


def write_samples(run_dir: str | Path, samples: Rows) -> None:
    """Write ``samples.parquet``, which contains the measured values of each image, one row per image."""
    atomic_write(Path(run_dir) / "samples.parquet", pd.DataFrame(samples).to_parquet)


def versions() -> dict[str, str]:
    """Return the versions of Python and of ``PACKAGES``, and the Git commit of this project.

    The value ``unknown`` replaces a version or commit that cannot be determined.
    """
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
    """Convert ``value`` to types that JSON can represent.

    NumPy and PyTorch scalars are converted to Python numbers, and NaN and infinity to None (``null``).
    """
    if isinstance(value, Mapping):
        return {name: _to_builtin(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_builtin(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def equal_rows(rows: Rows, identity: Sequence[str]) -> str:
    """Return a sentence with the names of methods whose metrics are all equal, or an empty string.

    The sentence is a warning: methods whose metrics are all equal probably compute the same, for example because of an
    error in the config. Two rows are compared if they differ only in the method; the columns ``TIMES`` are ignored.
    Rows of a single bucket (group of concepts) are not compared, because few images may have equal metrics by chance.
    """
    groups: dict[str, list[str]] = {}
    for row in rows:
        if row.get("bucket", "total") == "total":
            conditions = [row[name] for name in identity if name not in ("method", "inversion")]
            figures = [(name, float(value)) for name, value in _numbers(row, identity) if name not in TIMES]
            label = ", ".join(str(row[name]) for name in identity if row[name] not in (None, False))
            groups.setdefault(repr((conditions, sorted(figures))), []).append(label)
    equal = [" = ".join(f"({label})" for label in labels) for labels in groups.values() if len(labels) > 1]
    return f"Rows whose metrics are all equal, except for times: {'; '.join(equal)}." if equal else ""


def _numbers(row: Mapping[str, Any], identity: Sequence[str]) -> list[tuple[str, int | float]]:
    """Return the names and values of the columns of a row that contain numbers and are not in ``identity``."""
    return [(name, v) for name, v in row.items() if isinstance(v, int | float) and name not in identity]


def log_metrics(loggers: Sequence[Logger], rows: Rows, identity: Sequence[str], step: int = 0) -> None:
    """Log all numbers in ``rows`` to all loggers, with the keys of :func:`experiments.naming.metric_name`."""
    metrics = {metric_name(row, identity, name): value for row in rows for name, value in _numbers(row, identity)}
    for logger in loggers:
        logger.log_metrics(metrics, step=step)
        logger.save()


def log_media(loggers: Sequence[Logger], tables: Mapping[str, Rows], figures: Mapping[str, Path]) -> None:
    """Upload tables and figures to the loggers W&B, TensorBoard and MLflow.

    Args:
        loggers: loggers of the run; loggers other than W&B, TensorBoard and MLflow are ignored.
        tables: dict from the name of each table to its rows.
        figures: dict from the name of each figure to its PNG file.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            for name, rows in tables.items():
                columns = list(dict.fromkeys(column for row in rows for column in row))
                logger.log_table(name, columns=columns, data=[[row.get(column) for column in columns] for row in rows])
            for name, path in figures.items():
                logger.log_image(name, [str(path)])
            logger.save()
        elif isinstance(logger, TensorBoardLogger):
            for name, rows in tables.items():
                logger.experiment.add_text(name, pd.DataFrame(rows).to_html())
            for name, path in figures.items():
                with Image.open(path) as image:
                    logger.experiment.add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")
            logger.save()
        elif isinstance(logger, MLFlowLogger):
            for name, rows in tables.items():
                logger.experiment.log_text(logger.run_id, pd.DataFrame(rows).to_csv(index=False), f"{name}.csv")
            for path in figures.values():
                logger.experiment.log_artifact(logger.run_id, str(path), "figures")
