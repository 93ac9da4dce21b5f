"""A sweep from files alone: ``python -m experiments.reporting.sweep_report RUNS --keys lam [--values psnr residual]``.

``RUNS`` holds one folder a run with ``results.json`` and ``config.yaml``, as Hydra's multirun and W&B sweeps leave
them. ``--keys`` are those of the config that differ between the runs: the first is drawn along the axis, each value of
the others has its own line (``--keys select.optimizer.lr select.semantic_weight``). ``--where`` chooses rows, as in
``--where "bucket == 'tail' and method != 'plain'"``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from omegaconf import DictConfig, ListConfig, OmegaConf
from yaml import YAMLError

from experiments.reporting import tables

IDENTITY = ("method", "bucket", "steps", "guidance", "nfe", "prompts", "generated")


def read_sweep(folder: Path, keys: Sequence[str]) -> pd.DataFrame:
    """The rows of every finished run below ``folder``, each with the run's values of ``keys``, sorted by them.

    A run whose files cannot be read is left out, and named on the standard error stream.

    Raises:
        ValueError: no finished run, or one whose config lacks one of the keys, or has more than one value for it.
    """
    rows: list[dict[str, Any]] = []
    paths = sorted(folder.rglob("results.json"))
    for path in paths:
        try:
            config, own = _read_run(path)
        except _Unreadable as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        values = {key: _value(path.parent / "config.yaml", config, key) for key in keys}
        rows += [values | row for row in own]
    if not paths:
        raise ValueError(f"{folder} holds no results.json: give the folder of a sweep that has finished a run.")
    if not rows:
        raise ValueError(f"none of the {len(paths)} results.json below {folder} can be read: run the sweep again.")
    return pd.DataFrame(rows).sort_values(list(keys), kind="stable")


class _Unreadable(Exception):
    """What is wrong with a file of a run; one sentence for the user."""


def _read_run(path: Path) -> tuple[DictConfig, list[dict[str, Any]]]:
    """A run's config and the rows of its ``results.json``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _Unreadable(f"{path} cannot be read as JSON ({str(error).splitlines()[0]}): run it again.") from None
    own = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(own, list) or not own or not all(isinstance(row, dict) for row in own):
        raise _Unreadable(f"{path} holds no rows of results: run it again.")
    try:
        config = OmegaConf.load(path.parent / "config.yaml")
    except (OSError, ValueError, YAMLError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise _Unreadable(f"{path.parent / 'config.yaml'} cannot be read ({said}): run it again.") from None
    if not isinstance(config, DictConfig) or not config:
        raise _Unreadable(f"{path.parent / 'config.yaml'} holds no keys: run it again.")
    return config, own


def _value(path: Path, config: DictConfig, key: str) -> object:
    """The one value that a run's config has for ``key``."""
    value = OmegaConf.select(config, key)
    if value is None:
        raise ValueError(f"{path} has no key {key!r}: name one that the sweep changed.")
    if isinstance(value, DictConfig):
        raise ValueError(f"{path} has several keys below {key!r}: name one of {', '.join(map(str, value))}.")
    return str(value) if isinstance(value, ListConfig) else value


def choose(table: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """The rows for which the condition ``where`` holds; all without one.

    Raises:
        ValueError: a condition that cannot be read, or that no row fulfils.
    """
    if where is None:
        return table
    try:
        chosen = table.query(where)
    except Exception as error:  # pandas raises a dozen kinds
        raise ValueError(f"--where {where!r}: {error}; the columns are {', '.join(table.columns)}.") from error
    if chosen.empty:
        raise ValueError(f"--where {where!r} holds for none of the {len(table)} rows.")
    return chosen


def curves(table: pd.DataFrame, keys: Sequence[str], values: Sequence[str]) -> Figure:
    """``values`` against the first of ``keys``, a panel each; a line for each kind of row and value of other keys."""
    key, *others = keys
    figure, axes = plt.subplots(1, len(values), figsize=(4.6 * len(values), 3.4), squeeze=False)
    identity = [name for name in (*IDENTITY, *others) if name in table and table[name].nunique() > 1]
    numeric = pd.api.types.is_numeric_dtype(table[key])
    for value, axis in zip(values, axes[0], strict=True):
        kinds = table.groupby(identity, sort=False, dropna=False) if identity else [((value,), table)]
        for k, (label, own) in enumerate(kinds):
            known = own.dropna(subset=[value])
            if len(known):
                name = ", ".join(_said(*part, others) for part in zip(identity or ("",), label, strict=True))
                places = known[key] if numeric else known[key].astype(str)
                axis.plot(places, known[value], marker="o", label=name, color=f"C{k % 10}")
        axis.set(xlabel=key, ylabel=value)
        if numeric and (table[key] >= 0).all() and table[key].max() > 20 * max(table[key].median(), 1e-12):
            smallest = table[key][table[key] > 0].min()
            axis.set_xscale("symlog", linthresh=smallest)
    axes[0][0].legend(fontsize=7.5, frameon=False)
    figure.tight_layout()
    return figure


def _said(name: str, value: object, keys: Sequence[str]) -> str:
    """A row's property as the legend says it; numbers of the config need their key's name."""
    return f"{name.rpartition('.')[2]} {value}" if name in keys else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--keys", nargs="+", required=True)
    parser.add_argument("--values", nargs="+", default=["psnr", "residual"])
    parser.add_argument("--where", help="a condition on the columns of the results, as pandas' query reads it")
    options = parser.parse_args()
    try:
        table = choose(read_sweep(options.runs, options.keys), options.where)
        missing = [value for value in options.values if value not in table]
        if missing:
            raise ValueError(f"the results have no column {missing[0]!r}: choose from {', '.join(table.columns)}.")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    columns = [name for name in (*options.keys, *IDENTITY, *options.values) if name in table]
    text = tables.markdown_table(table[columns].to_dict("records"), dict(zip(columns, columns, strict=True)))
    (options.runs / "sweep.md").write_text(text)
    tables.save_figure(curves(table, options.keys, options.values), options.runs / "sweep.png")
    print(f"{text}\nThe table is {options.runs / 'sweep.md'}, the figure {options.runs / 'sweep.png'}")


if __name__ == "__main__":
    main()
