"""Compare finished runs: ``python -m experiments.reporting.compare RUN_A RUN_B [RUN_C ...] [--html FILE]``.

The arguments are the folders of finished runs (``run_dir``). The command prints a Markdown table with the metrics of
all runs and the differences between the runs (run minus first run). The table contains the rows that all runs have in
common.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.cache.atomic import atomic_write
from experiments.config.run_settings import describe_differences, run_settings
from experiments.reporting.html_report import html_report
from experiments.reporting.run import Run
from experiments.reporting.tables import Column, Table, is_missing, varying

RunRows = dict[tuple[Any, ...], Mapping[str, Any]]
"""The result rows of a run. The keys are the values of the columns that identify a row."""


def compare(runs: Sequence[Run]) -> Table:
    """Return a table with one row for each metric of each result row that all ``runs`` have.

    The table has one column per run. The column of every run except the first is followed by a column with the
    difference: the value of this run minus the value of the first run.

    Raises:
        ValueError: the runs belong to different experiments, or have no result row in common.
    """
    first = runs[0]
    identity = _section(first, "identity")
    values = [Column(**column) for column in _section(first, "values")]
    for run in runs[1:]:
        if _section(run, "identity") != identity:
            raise ValueError(
                f"the rows of {run.folder} are identified by {', '.join(_section(run, 'identity'))}, but the rows of "
                f"{first.folder} by {', '.join(identity)}; compare runs of one experiment."
            )
    rows_by_run = [_rows_by_identity(run, identity) for run in runs]
    shared = [key for key in rows_by_run[0] if all(key in rows for rows in rows_by_run)]
    if not shared:
        folders = ", ".join(str(run.folder) for run in runs)
        raise ValueError(f"{folders}: the runs have no row in common; compare runs with a common method and setting.")
    compared = [rows_by_run[0][key] for key in shared]
    bounds = first.results.get("bounds", [])
    distinguishing = varying([row for row in compared if row.get("method") not in bounds], identity)
    distinguishing = distinguishing or list(identity[:1])
    lines = [
        {"metric": value.head, "row": _label(rows_by_run[0][key], distinguishing)}
        | _cells([rows[key] for rows in rows_by_run], value)
        for value in values
        for key in shared
        if any(not is_missing(rows[key].get(value.key)) for rows in rows_by_run)
    ]
    columns = [Column("metric", "metric"), Column("row", ", ".join(distinguishing))]
    names = _names(runs)
    for k, name in enumerate(names):
        columns.append(Column(f"run_{k}", name))
        if k:
            columns.append(Column(f"difference_{k}", f"{name} − {names[0]}"))
    return Table(lines, columns)


def _section(run: Run, name: str) -> Any:
    """Return a section of the ``results.json`` of a run.

    Raises:
        ValueError: the section is missing, because an earlier version of the project wrote the ``results.json``.
    """
    if name not in run.results:
        raise ValueError(
            f"{run.folder / 'results.json'} has no section {name!r}: an earlier version of this project wrote the "
            "file; run the same command again, which keeps finished results."
        )
    return run.results[name]


def _rows_by_identity(run: Run, identity: Sequence[str]) -> RunRows:
    return {tuple(row.get(name) for name in identity): row for row in run.results["rows"]}


def _label(row: Mapping[str, Any], identity: Sequence[str]) -> str:
    """Return the values of the columns ``identity`` of ``row``, separated by commas, such as ``ddim, steps 50``."""
    values = [(name, row.get(name)) for name in identity]
    return ", ".join(
        str(value) if isinstance(value, str) else f"{name} {value:g}"
        for name, value in values
        if value is not None and value is not False
    )


def _cells(rows: Sequence[Mapping[str, Any]], value: Column) -> dict[str, str]:
    """Return the table cells of one metric: its value in each run, and the differences (run minus first run) as text.

    Args:
        rows: the corresponding result row of each run.
        value: the column of the metric.
    """
    difference = Column("difference", "difference", scale=value.scale, signed=True)
    numbers = [row.get(value.key) for row in rows]
    cells = {f"run_{k}": value.text(row) for k, row in enumerate(rows)}
    for k, number in enumerate(numbers[1:], start=1):
        has_both = not is_missing(number) and not is_missing(numbers[0])
        cells[f"difference_{k}"] = difference.text({"difference": number - numbers[0] if has_both else None})
    return cells


def _settings(run: Run) -> dict[str, Any]:
    return run_settings(OmegaConf.create(run.config))


def _names(runs: Sequence[Run]) -> list[str]:
    """Return the names of the runs' folders, or their paths if two folders have the same name."""
    names = [run.folder.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the table to this HTML file, too")
    options = parser.parse_args()
    try:
        if len(options.runs) < 2:
            raise ValueError(
                f"RUN: expected two or more folders of finished runs, got only {options.runs[0]}; add another folder."
            )
        runs = [Run(folder) for folder in options.runs]
        table = compare(runs)
        print(table.markdown(), end="", flush=True)
        for run, name in zip(runs[1:], _names(runs)[1:], strict=True):
            if different := describe_differences(_settings(runs[0]), _settings(run)):
                print(f"Settings of {_names(runs)[0]} and {name} that differ: {different}.", flush=True)
        if options.html is not None:
            command = f"python -m experiments.reporting.compare {shlex.join(map(str, options.runs))}"
            title = f"Comparison of {', '.join(_names(runs))}"
            text = html_report(title, command, runs[0].results["versions"], tables=[table])
            atomic_write(options.html, lambda path: path.write_text(text, encoding="utf-8"))
            print(f"\nThe table is in {options.html}.")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
