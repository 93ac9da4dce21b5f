"""Writes text tables: ``.csv`` files with commas and quotation marks, ``.tsv`` files with tabs and without quotes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from rnri.tables import TABS


def check_tsv_cells(cells: Iterable[str]) -> None:
    """Raise ValueError if a cell contains a tab or a line break, which a ``.tsv`` file cannot represent."""
    for cell in cells:
        if set(cell) & set("\t\n\r"):
            raise ValueError(
                f"{cell!r} contains a tab or line break, which a .tsv file cannot contain: choose a .csv or .json file."
            )


def write_rows(path: Path, suffix: str, rows: Iterable[Sequence[object]]) -> None:
    """Writes ``rows`` to a ``.csv`` or ``.tsv`` file, which :func:`rnri.tables.read_rows` can read.

    ``suffix`` determines the format. Before a ``.tsv`` file is written, :func:`check_tsv_cells` must be called.
    """
    options = {"quoting": csv.QUOTE_NONNUMERIC} if suffix.lower() == ".csv" else TABS
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n", **options).writerows(rows)
