"""A sweep from files alone: ``python -m experiments.sweep_report RUNS --key lam [--values psnr residual]``.

``RUNS`` holds one folder a run with ``results.json`` and ``config.yaml``, as Hydra's multirun and W&B sweeps leave
them. ``--key`` is any key of the config that differs between the runs (``lam``, ``select.learning_rate``, ...).
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
from omegaconf import OmegaConf

from experiments import report

IDENTITY = ("method", "bucket", "steps", "guidance", "evaluations", "prompts", "generated")


def read_sweep(folder: Path, key: str) -> pd.DataFrame:
    """The rows of every finished run below ``folder``, each with the run's value of ``key``.

    Raises:
        ValueError: no finished run, or one whose config has no such key.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.rglob("results.json")):
        config = OmegaConf.load(path.parent / "config.yaml")
        value = OmegaConf.select(config, key)
        if value is None:
            raise ValueError(f"{path.parent / 'config.yaml'} has no key {key!r}: name one that the sweep changed.")
        rows += [{key: value, **row} for row in json.loads(path.read_text())["rows"]]
    if not rows:
        raise ValueError(f"{folder} holds no results.json: give the folder of a sweep that has finished a run.")
    return pd.DataFrame(rows).sort_values(key, kind="stable")


def curves(table: pd.DataFrame, key: str, values: Sequence[str]) -> Figure:
    """``values`` against ``key``, a panel each and a line for each kind of row."""
    figure, axes = plt.subplots(1, len(values), figsize=(4.6 * len(values), 3.4), squeeze=False)
    identity = [name for name in IDENTITY if name in table and table[name].nunique() > 1]
    numeric = pd.api.types.is_numeric_dtype(table[key])
    for value, axis in zip(values, axes[0], strict=True):
        kinds = table.groupby(identity, sort=False, dropna=False) if identity else [((value,), table)]
        for k, (label, own) in enumerate(kinds):
            known = own.dropna(subset=[value])
            if len(known):
                name = ", ".join(str(part) for part in (label if isinstance(label, tuple) else (label,)))
                places = known[key] if numeric else known[key].astype(str)
                axis.plot(places, known[value], marker="o", label=name, color=f"C{k % 10}")
        axis.set(xlabel=key, ylabel=value)
        if numeric and (table[key] >= 0).all() and table[key].max() > 20 * max(table[key].median(), 1e-12):
            smallest = table[key][table[key] > 0].min()
            axis.set_xscale("symlog", linthresh=smallest)
    axes[0][0].legend(fontsize=7.5, frameon=False)
    figure.tight_layout()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--key", required=True)
    parser.add_argument("--values", nargs="+", default=["psnr", "residual"])
    options = parser.parse_args()
    try:
        table = read_sweep(options.runs, options.key)
        missing = [value for value in options.values if value not in table]
        if missing:
            raise ValueError(f"the results have no column {missing[0]!r}: choose from {', '.join(table.columns)}.")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    columns = [name for name in (options.key, *IDENTITY, *options.values) if name in table]
    text = report.markdown_table(table[columns].to_dict("records"), dict(zip(columns, columns, strict=True)))
    (options.runs / "sweep.md").write_text(text)
    report.save_figure(curves(table, options.key, options.values), options.runs / "sweep.png")
    print(f"{text}\nThe table is {options.runs / 'sweep.md'}, the figure {options.runs / 'sweep.png'}")


if __name__ == "__main__":
    main()
