"""Reads and writes text tables: ``.csv`` with commas and quoting, ``.txt`` and ``.tsv`` with tabs without quoting."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

_TABS = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}


def read_rows(path: Path) -> list[list[str]]:
    """Return the cells of each non-empty row of a UTF-8 file, with or without a byte order mark.

    In a ``.csv`` file, cells are separated by commas and may be quoted. In other files, cells are separated by tabs,
    and a quotation mark is an ordinary character.

    Raises:
        ValueError: the file is not UTF-8, or in a ``.csv`` file a quotation mark is not closed or is followed by text.
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
    """Raise a ValueError if a cell contains a tab or line break, which a ``.tsv`` file cannot represent."""
    for cell in cells:
        if set(cell) & set("\t\n\r"):
            raise ValueError(f"{cell!r} contains a tab or line break, which .tsv cannot hold: write .csv or .json.")


def write_rows(path: Path, suffix: str, rows: Iterable[Sequence[object]]) -> None:
    """Writes ``rows`` to ``path`` in the format of ``suffix`` (``.csv`` or ``.tsv``), as :func:`read_rows` reads it.

    For ``.tsv``, call :func:`check_tsv_cells` before.
    """
    options = {"quoting": csv.QUOTE_NONNUMERIC} if suffix.lower() == ".csv" else _TABS
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n", **options).writerows(rows)
