"""Win rates of methods from human ratings: ``python -m experiments.reporting.human_ratings FILE [FILE ...]``.

``FILE`` is a Parquet file of ratings that the tab Compare of the web page has exported, or a folder of such files. A
file has one row per rating, with these columns:

- ``rater``: name of the rater.
- ``item``: name of the item, such as a prompt, for which the methods are compared.
- ``shown``: the compared methods, from left to right on the page.
- ``choice``: the preferred method, or ``tie``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.evaluation.metrics import bootstrap_interval
from experiments.reporting.tables import markdown_table, percent

COLUMNS = ("rater", "item", "shown", "choice")
TIE = "tie"
HEADS = {"method": "method", "win_rate_text": "win rate, %", "ties": "ties", "n": "ratings", "raters": "raters"}


def read_ratings(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Return the ratings in all ``paths``, which are Parquet files of ratings or folders of such files.

    Raises:
        ValueError: the files contain no ratings, or a file is not a valid table of ratings.
    """
    files = [_files(path) if path.is_dir() else [path] for path in map(Path, paths)]
    tables = [_read_file(file) for each in files for file in each]
    if not any(map(len, tables)):
        raise ValueError(f"{', '.join(map(str, paths))}: no ratings; use files exported by the web page.")
    return pd.concat(tables, ignore_index=True)


def _read_file(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(file)
    except Exception as error:  # the Parquet library that pandas uses raises exceptions of many types
        raise ValueError(f"{file} cannot be read as Parquet: use a file exported by the web page.") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ValueError(
            f"{file} has no column {missing[0]}: use a file exported by the web page, with {', '.join(COLUMNS)}."
        )
    for row in table.itertuples():
        _check_row(row, f"{file}: row {row.Index}")
    return table.assign(shown=[tuple(shown) for shown in table["shown"]])


def _files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder, except hidden files, which are not completely written."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def _check_row(row: Any, name: str) -> None:
    """Raise ValueError if a row of a table is not a valid rating. The error message starts with ``name``."""
    for column in ("rater", "item", "choice"):
        value = getattr(row, column)
        if not isinstance(value, str):
            raise ValueError(f"{name}: {column} must be a string, got {value!r:.60}; remove the row.")
    is_list = isinstance(row.shown, list | tuple | np.ndarray)
    if not is_list or len(row.shown) < 2 or not all(isinstance(method, str) for method in row.shown):
        raise ValueError(
            f"{name}: shown must be a list of two or more names of methods, got {row.shown!r:.60}; use a file exported "
            "by the web page."
        )
    if row.choice != TIE and row.choice not in row.shown:
        raise ValueError(f"{name}: the choice is {row.choice!r}, which was not shown to the rater; remove the row.")


def win_rates(ratings: pd.DataFrame, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return the win rate of each method, which is the share of comparisons in which raters preferred the method.

    The returned rows, one per method, are sorted from the highest to the lowest win rate. If a rater does not prefer
    one of n methods (a tie), each method gets 1/n of a win. The 95 % confidence intervals are computed by a bootstrap
    over items, because ratings of the same item are correlated.
    """
    rows = []
    for method in sorted({method for shown in ratings["shown"] for method in shown}):
        group = ratings[[method in shown for shown in ratings["shown"]]]
        tied = group["choice"] == TIE
        wins = np.where(tied, 1 / group["shown"].map(len), group["choice"] == method).astype(float)
        low, high = bootstrap_interval(wins, list(group["item"]), seed=seed)
        row = {"method": method, "win_rate": float(wins.mean()), "win_rate_low": low, "win_rate_high": high}
        rows.append(row | {"ties": int(tied.sum()), "n": len(group), "raters": group["rater"].nunique()})
    return sorted(rows, key=lambda row: -row["win_rate"])


def agreement(ratings: pd.DataFrame) -> float | None:
    """Return the agreement between raters, measured by Krippendorff's alpha for nominal data.

    Krippendorff's alpha is 1 for full agreement and 0 for agreement by chance. If no item has two raters, or if all
    choices are equal, alpha is undefined, and None is returned. The definition is in Krippendorff 2011, "Computing
    Krippendorff's alpha-reliability".
    """
    totals = Counter()
    disagreement = 0.0
    for _, choices in ratings.groupby("item")["choice"]:
        counts = Counter(choices)
        raters = len(choices)
        if raters < 2:
            continue
        totals += counts
        disagreement += (raters**2 - sum(count**2 for count in counts.values())) / (raters - 1)
    n = sum(totals.values())
    expected = n**2 - sum(count**2 for count in totals.values())
    return 1 - (n - 1) * disagreement / expected if expected else None


def preference_table(ratings: pd.DataFrame) -> str:
    """Return the win rates of all methods as a Markdown table, followed by the agreement between raters."""
    rows = [row | {"win_rate_text": percent(row, "win_rate")} for row in win_rates(ratings)]
    alpha = agreement(ratings)
    text = "undefined (no item has two raters, or all choices are equal)" if alpha is None else f"{alpha:.2f}"
    return (
        f"{markdown_table(rows, HEADS)}\nAgreement between raters (Krippendorff's alpha, 1 for full agreement and 0 "
        f"for agreement by chance): {text}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="Parquet file of ratings, or a folder of such files")
    try:
        print(preference_table(read_ratings(parser.parse_args().files)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
