"""Rows of text files: ``.csv`` with quotation marks, ``.txt`` and ``.tsv`` as they stand."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_MARK = "#escaped"  # first cell of the first row of a .tsv of ours whose cells hold escapes


def read_rows(path: Path) -> list[list[str]]:
    """The cells of each row that is not empty, in UTF-8 with or without its mark of order.

    In ``.csv`` commas part cells and quotation marks enclose them. In other files tabs do, and a quotation mark is a
    sign like others; escapes (``\\t``, ``\\n``) are read only where ``write_rows`` says that it wrote them.

    Raises:
        ValueError: a quotation mark of ``.csv`` is not closed, text follows a closed one, or the file is not UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".csv":
                return [row for row in csv.reader(file, strict=True) if row]
            rows = [line.split("\t") for line in re.split("\r\n|\r|\n", file.read()) if line]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}): save it so.") from None
    except csv.Error as error:
        raise ValueError(
            f"{path} has a quotation mark that is not closed or stands inside a cell ({error}): "
            "close it, double it inside a quoted cell, or save the file as .tsv."
        ) from None
    if rows and rows[0] == [_MARK]:
        return [[_unescaped(cell) for cell in row] for row in rows[1:]]
    return rows


def write_rows(path: Path, ending: str, rows: Iterable[Sequence[object]]) -> None:
    """Writes what ``read_rows`` reads back from a file with that ending, whatever signs the cells hold."""
    cells = [[str(cell) for cell in row] for row in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        if ending.lower() == ".csv":
            # Python before 3.13 leaves a cell with a carriage return bare.
            quoting = csv.QUOTE_ALL if any("\r" in cell for row in cells for cell in row) else csv.QUOTE_MINIMAL
            csv.writer(file, lineterminator="\n", quoting=quoting).writerows(cells)
            return
        if any(sign in cell for row in cells for cell in row for sign in "\t\n\r") or cells[:1] == [[_MARK]]:
            cells = [
                [_MARK],
                *([re.sub(r"[\\\t\n\r]", lambda m: _ESCAPES[m[0]], cell) for cell in row] for row in cells),
            ]
        file.writelines("\t".join(row) + "\n" for row in cells)


def _unescaped(cell: str) -> str:
    signs = {escape: sign for sign, escape in _ESCAPES.items()}
    return re.sub(r"\\[\\tnr]", lambda m: signs[m[0]], cell)
