"""What raters prefer, from their files alone: ``python -m experiments.reporting.human_ratings FILE [FILE ...]``.

A file, or a folder of files, has a row a rating, as the tab Compare of the page exports them: ``rater``, ``item``,
``shown`` (the methods on the page, from left to right) and ``choice`` (one of them, or ``tie``).
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
HEADINGS = {"method": "method", "win_rate_text": "preferred, %", "ties": "ties", "n": "ratings", "raters": "raters"}


def read_ratings(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The ratings of files and folders of files together.

    Raises:
        ValueError: one sentence for a place that holds none, or a file that is no table of ratings.
    """
    files = [sorted(path.glob("*.parquet")) if path.is_dir() else [path] for path in map(Path, paths)]
    tables = [_read(file) for each in files for file in each]
    if not any(map(len, tables)):
        raise ValueError(f"{', '.join(map(str, paths))} holds no ratings: give files that the page exported.")
    return pd.concat(tables, ignore_index=True)


def _read(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(file)
    except Exception as error:  # pandas raises what its engine does
        raise ValueError(f"{file} cannot be read as Parquet: give a file that the page exported.") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ValueError(f"{file} lacks the column {missing[0]}: a table of ratings has {', '.join(COLUMNS)}.")
    table = table.assign(shown=[tuple(shown) for shown in table["shown"]])
    for row in table.itertuples():
        if row.choice != TIE and row.choice not in row.shown:
            raise ValueError(f"{file}: row {row.Index} chooses {row.choice!r}, which was not shown: leave it out.")
    return table


def win_rates(ratings: pd.DataFrame, *, seed: int = 0) -> list[dict[str, Any]]:
    """A row a method: the share of its ratings in which it was preferred, the best first.

    A tie counts for all that were shown, in equal parts. Intervals are 95 % bootstrap intervals over items, for an
    item's ratings are alike.
    """
    rows = []
    for method in sorted({method for shown in ratings["shown"] for method in shown}):
        own = ratings[[method in shown for shown in ratings["shown"]]]
        tied = own["choice"] == TIE
        won = np.where(tied, 1 / own["shown"].map(len), own["choice"] == method).astype(float)
        low, high = bootstrap_interval(won, list(own["item"]), seed=seed)
        row = {"method": method, "share": float(won.mean()), "share_low": low, "share_high": high}
        rows.append(row | {"ties": int(tied.sum()), "n": len(own), "raters": own["rater"].nunique()})
    return sorted(rows, key=lambda row: -row["share"])


def agreement(ratings: pd.DataFrame) -> float | None:
    """Krippendorff's alpha of the choices, nominal: 1 is full agreement, 0 what chance gives.

    None where it is not defined: no item has two raters, or all ever chose the same. Krippendorff 2011, "Computing
    Krippendorff's alpha-reliability".
    """
    totals, disagreement = Counter(), 0.0
    for _, choices in ratings.groupby("item")["choice"]:
        counts, raters = Counter(choices), len(choices)
        if raters < 2:
            continue
        totals += counts
        disagreement += (raters**2 - sum(count**2 for count in counts.values())) / (raters - 1)
    n = sum(totals.values())
    expected = n**2 - sum(count**2 for count in totals.values())
    return 1 - (n - 1) * disagreement / expected if expected else None


def preference_table(ratings: pd.DataFrame) -> str:
    """Markdown: the shares, and a sentence on the agreement."""
    rows = [row | {"win_rate_text": percent(row, "share")} for row in win_rates(ratings)]
    alpha = agreement(ratings)
    said = "not defined, without items that two have rated, or choices that differ" if alpha is None else f"{alpha:.2f}"
    return f"{markdown_table(rows, HEADINGS)}\nAgreement between raters (Krippendorff's alpha): {said}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="Parquet files of ratings, or folders of them")
    try:
        print(preference_table(read_ratings(parser.parse_args().files)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
