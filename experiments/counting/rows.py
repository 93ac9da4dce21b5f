"""Rows of text files: ``.csv`` with quotation marks, ``.txt`` and ``.tsv`` with tabs and no quoting."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

_TABS = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}


def read_rows(path: Path) -> list[list[str]]:
    """Cells of each non-empty row of a UTF-8 file, with or without a byte order mark.

    ``.csv`` separates cells by commas and may quote them. Other files separate them by tabs; there a quotation mark is
    a character like any other.

    Raises:
        ValueError: a quotation mark of ``.csv`` is not closed or text follows a closed one, or the file is not UTF-8.
    """
    options = {"strict": True} if path.suffix.lower() == ".csv" else _TABS
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.reader(file, **options) if row]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8.") from None
    except csv.Error as error:
        raise ValueError(
            f"{path} has a quotation mark that is not closed or is inside a cell ({error}): "
            "close it, double it inside a quoted cell, or save the file as .tsv."
        ) from None


def check_tsv_cells(cells: Iterable[str]) -> None:
    """ValueError if a cell contains a tab or line break, which ``.tsv`` cannot hold."""
    for cell in cells:
        if set(cell) & set("\t\n\r"):
            raise ValueError(f"{cell!r} contains a tab or line break, which .tsv cannot hold: write .csv or .json.")


def write_rows(path: Path, suffix: str, rows: Iterable[Sequence[object]]) -> None:
    """Writes rows that ``read_rows`` reads back from a file with that suffix; see :func:`check_tsv_cells`."""
    options = {"quoting": csv.QUOTE_NONNUMERIC} if suffix.lower() == ".csv" else _TABS
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n", **options).writerows(rows)
