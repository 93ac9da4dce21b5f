"""Create the table and the figure of a sweep: ``python -m experiments.reporting.sweep_report RUNS --keys lam``.

``RUNS`` is the folder of a sweep by Hydra's multirun or W&B. The folder contains one subfolder per run, with the files
``results.json`` and ``config.yaml``.

The option ``--keys`` lists the config keys that differ between the runs, for example
``--keys select.optimizer.lr select.semantic_weight``. The first key is the x axis of the figure. Each value of the
other keys is plotted as a separate curve.

The option ``--where`` filters the rows of the results, for example
``--where "bucket == 'tail' and method != 'plain'"``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import YAMLError

from experiments.cache.atomic import atomic_write
from experiments.reporting import figures as plots
from experiments.reporting.tables import Column, Table
from rnri.validation import first_line

IDENTITY = ("method", "bucket", "steps", "guidance", "nfe", "prompt", "generated")
"""Columns of the results that identify a row of a run."""
BOUND = "is_bound"
"""Column that is true for rows that do not depend on the settings of a run, such as the reconstruction of the VAE."""


def read_sweep(folder: Path, keys: Sequence[str]) -> pd.DataFrame:
    """Return the result rows of all finished runs in ``folder``, sorted by the values of the config keys ``keys``.

    The values of ``keys`` in the config of each run are additional columns. If the files of a run cannot be read, the
    run is omitted, and the error is printed to standard error.

    Raises:
        ValueError: ``folder`` contains no finished run, or one of ``keys`` is missing or has subkeys in a config.
    """
    rows: list[dict[str, Any]] = []
    paths = sorted(folder.rglob("results.json"))
    for path in paths:
        try:
            config, run_rows = _read_run(path)
        except _UnreadableRunError as error:
            print(f"run omitted: {error}", file=sys.stderr)
            continue
        values = {key: _config_value(path.parent / "config.yaml", config, key) for key in keys}
        rows += [values | row for row in run_rows]
    if not paths:
        raise ValueError(f"{folder} contains no results.json: use the folder of a sweep with finished runs.")
    if not rows:
        raise ValueError(f"none of the {len(paths)} files results.json in {folder} can be read: run the sweep again.")
    return pd.DataFrame(sorted(rows, key=lambda row: [_sort_key(row[key]) for key in keys]))


def _sort_key(value: object) -> tuple[bool, float, str]:
    """Return the sort key of a config value. The sort keys of numbers precede the sort keys of strings."""
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number else 0, "" if is_number else str(value)


class _UnreadableRunError(Exception):
    """Error that is raised if a result file of a run cannot be read."""


def _read_run(path: Path) -> tuple[DictConfig, list[dict[str, Any]]]:
    """Return the config of a run and the rows of its ``results.json``.

    Args:
        path: path of the ``results.json`` of the run.

    Raises:
        _UnreadableRunError: ``results.json`` or ``config.yaml`` cannot be read, or has no content.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _UnreadableRunError(f"{path} cannot be read as JSON ({first_line(error)}): repeat this run.") from None
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise _UnreadableRunError(f"{path} contains no rows of results: repeat this run.")
    bounds = content.get("bounds", [])
    rows = [row | {BOUND: row.get("method") in bounds} for row in rows]
    config_path = path.parent / "config.yaml"
    try:
        config = OmegaConf.load(config_path)
    except (OSError, ValueError, YAMLError) as error:
        raise _UnreadableRunError(f"{config_path} cannot be read ({first_line(error)}): repeat this run.") from None
    if not isinstance(config, DictConfig) or not config:
        raise _UnreadableRunError(f"{config_path} contains no keys: repeat this run.")
    return config, rows


def _config_value(path: Path, config: DictConfig, key: str) -> object:
    """Return the value of ``key`` in the config of a run.

    Args:
        path: path of the config file, for error messages.
        config: the config of the run.
        key: config key with dots, such as ``select.optimizer.lr``.
    """
    value = OmegaConf.select(config, key)
    if value is None:
        raise ValueError(f"{path} has no key {key!r}: use a key that the sweep changed.")
    if isinstance(value, DictConfig):
        raise ValueError(
            f"--keys: {key!r} has several subkeys in {path}; append one of {', '.join(map(str, value))} to the key."
        )
    return str(value) if isinstance(value, ListConfig) else value


def filter_runs(table: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """Return the rows of ``table`` that satisfy the condition ``where``, in the syntax of pandas queries.

    If ``where`` is None, all rows are returned.

    Raises:
        ValueError: the condition is invalid, or no row satisfies the condition.
    """
    if where is None:
        return table
    columns = f"the columns are {', '.join(table.columns)}."
    try:
        mask = table.eval(where)
    except Exception as error:  # pandas raises exceptions of many types
        raise ValueError(f"--where {where!r}: {first_line(error)}; {columns}") from error
    if not isinstance(mask, pd.Series) or not pd.api.types.is_bool_dtype(mask):
        raise ValueError(f"--where {where!r}: must be a condition on the columns, such as psnr > 20; {columns}")
    if not mask.any():
        raise ValueError(
            f"--where {where!r}: none of the {len(table)} rows satisfies the condition; change the condition."
        )
    return table[mask]


def check_values(table: pd.DataFrame, values: Sequence[str]) -> None:
    """Raise ValueError if one of the columns ``values`` is missing in ``table`` or contains strings."""
    missing = [value for value in values if value not in table]
    if missing:
        raise ValueError(f"the results have no column {missing[0]!r}: choose from {', '.join(table.columns)}.")
    for value in values:
        texts = [entry for entry in table[value] if entry is not None and not isinstance(entry, int | float)]
        if texts:
            raise ValueError(
                f"--values: the column {value!r} must contain numbers, got {texts[0]!r:.60}; choose another column."
            )


def plot_sweep(table: pd.DataFrame, keys: Sequence[str], values: Sequence[str]) -> Figure:
    """Plot the columns ``values`` over the first of ``keys``, with one subplot per column.

    A subplot has one curve for each combination of the values of the other keys and of the columns in ``IDENTITY``.
    Confidence intervals are plotted as error bars. Values that do not depend on the settings of a run, such as the
    reconstruction of the VAE, are dashed horizontal lines.
    """
    key, *others = keys
    figure, (axes,) = plots.panels(len(values))
    is_bound = table[BOUND].astype(bool)
    groups = _groups(table[~is_bound], others)
    bounds = _groups(unique_bounds(table[is_bound], keys, values), [])
    styles = plots.method_styles(groups)
    numeric = pd.api.types.is_numeric_dtype(table[key])
    for value, axis in zip(values, axes, strict=True):
        if numeric:
            _use_log_scale_if_wide(axis, table[key])
        for label, style in styles.items():
            finite = groups[label].dropna(subset=[value])
            if len(finite):
                x = finite[key] if numeric else finite[key].astype(str)
                axis.plot(x, finite[value], label=label or value, **style)
                if (bars := _error_bars(finite, value)) is not None:
                    axis.errorbar(x, finite[value], bars, fmt="none", ecolor=style["color"], elinewidth=1)
        for label, rows in bounds.items():
            for height in rows[value].dropna():
                axis.axhline(height, color="black", linestyle="--", linewidth=1, label=label or rows["method"].iloc[0])
        axis.set(xlabel=key, ylabel=value)
        if numeric:
            plots.value_ticks(axis, table[key])
    plots.shared_legend(figure, axes)
    return figure


def _error_bars(rows: pd.DataFrame, value: str) -> np.ndarray | None:
    """Return the lengths of the error bars of the column ``value``, or None if a row has no confidence interval."""
    ends = [f"{value}_low", f"{value}_high"]
    if not set(ends) <= set(rows) or rows[ends].isna().any(axis=None):
        return None
    return plots.error_bars(rows.to_dict("records"), value)


def unique_bounds(bounds: pd.DataFrame, keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Return the rows of ``bounds`` without repetitions.

    Rows that differ only in the values of ``keys`` are replaced by one row, in which the values of ``keys`` are None.

    Args:
        bounds: rows that do not depend on the settings of a run, such as the reconstruction of the VAE.
        keys: the config keys that differ between the runs.
        values: columns of the results.
    """
    identity = [name for name in (*IDENTITY, *values) if name in bounds]
    counts = bounds.groupby(identity, dropna=False)[keys[0]].transform("size") if len(bounds) else None
    unique = bounds.drop_duplicates(identity).astype(dict.fromkeys(keys, object))
    for key in keys if counts is not None else ():
        unique.loc[counts[unique.index] > 1, key] = None
    return unique


def sweep_table(table: pd.DataFrame, keys: Sequence[str], values: Sequence[str]) -> Table:
    """Return the table of a sweep, with the columns ``keys``, the varying columns of ``IDENTITY``, and ``values``."""
    is_bound = table[BOUND].astype(bool)
    rows = table[~is_bound]
    identity = [name for name in IDENTITY if name in table and rows[name].nunique(dropna=False) > 1]
    if is_bound.any() and "method" not in identity:  # the column `method` contains the names of the bounds
        identity.insert(0, "method")
    columns = [Column(name, name) for name in dict.fromkeys([*keys, *identity, *values])]
    bounds = unique_bounds(table[is_bound], keys, values)
    return Table(_records(rows), columns, references=_records(bounds))


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries, in which missing values are None."""
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def _groups(table: pd.DataFrame, others: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return a dict from the legend label of each curve in the figure to the rows of the curve."""
    identity = [name for name in (*IDENTITY, *others) if name in table and table[name].nunique() > 1]
    if not identity:
        return {"": table}
    return {
        ", ".join(_label(name, value, others) for name, value in zip(identity, group, strict=True)): rows
        for group, rows in table.groupby(identity, sort=False, dropna=False)
    }


def _label(name: str, value: object, keys: Sequence[str]) -> str:
    """Return the text for ``value`` in the legend. If ``name`` is a config key, its last part precedes the value."""
    return f"{name.rpartition('.')[2]} {value}" if name in keys else str(value)


def _use_log_scale_if_wide(axis: Axes, values: pd.Series) -> None:
    """Make the x axis logarithmic if the largest value is more than 20 times the smallest positive value.

    The axis remains linear if a value is negative. The value 0 is shown to the left of the smallest positive value.
    """
    positive = values[values > 0]
    if (values < 0).any() or positive.empty:
        return
    if positive.max() > 20 * positive.min():
        axis.set_xscale("symlog", linthresh=positive.min(), linscale=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the sweep, which contains one folder per run")
    parser.add_argument("--keys", nargs="+", required=True, help="config keys that differ between the runs")
    parser.add_argument("--values", nargs="+", default=["psnr", "residual"], help="columns of the results to plot")
    parser.add_argument("--where", help="condition on the columns of the results, in pandas' query syntax")
    options = parser.parse_args()
    files = {suffix: options.runs / f"sweep.{suffix}" for suffix in ("md", "png")}
    try:
        table = filter_runs(read_sweep(options.runs, options.keys), options.where)
        check_values(table, options.values)
        text = sweep_table(table, options.keys, options.values).markdown()
        print(text, flush=True)
        atomic_write(files["md"], lambda path: path.write_text(text, encoding="utf-8"))
        plots.save_figure(plot_sweep(table, options.keys, options.values), files["png"])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"The table is in {files['md']}, the figure in {files['png']}.")


if __name__ == "__main__":
    main()
