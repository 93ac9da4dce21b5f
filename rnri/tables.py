"""Reads text tables of images and captions: ``.csv`` with commas and quoting, ``.tsv`` with tabs, and ``.jsonl``.

Every cell remains a string: the texts ``NA`` and ``007`` are neither missing values nor numbers.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TABS = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
"""Options of Python's module ``csv`` for tab-separated files, in which a quotation mark is an ordinary character."""


def read_rows(path: Path) -> list[list[str]]:
    """Return the cells of each non-empty row of a UTF-8 file, with or without a byte order mark.

    In a ``.csv`` file, cells are separated by commas and may be quoted. In other files, cells are separated by tabs,
    and a quotation mark is an ordinary character.

    Raises:
        ValueError: the file is not UTF-8, or in a ``.csv`` file a quotation mark is not closed or is followed by text.
    """
    options = {"strict": True} if path.suffix.lower() == ".csv" else TABS
    limit = csv.field_size_limit(sys.maxsize)
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
    finally:
        csv.field_size_limit(limit)


def read_columns(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, list[Any]]]:
    """Yield, for each row of a table, the row's position in the file (such as "row 3") and the cells of ``columns``.

    Args:
        path: ``.csv`` or ``.tsv`` table with a header, or ``.jsonl`` table with one object per line.
        columns: maps the setting with which the user chooses a column (such as ``--prompt-column``) to the name of the
            column. Error messages show the settings.

    Raises:
        ValueError: the format is unknown, the file cannot be read, or a column does not exist.
    """
    readers = {".csv": _read_cells, ".tsv": _read_cells, ".jsonl": _read_json_lines}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path} ends in {path.suffix!r}: save the table of captions as .csv, .tsv or .jsonl.")
    return readers[path.suffix.lower()](path, columns)


def _read_cells(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    header, *rows = read_rows(path) or [[]]
    positions = [_position(path, header, column, columns) for column in columns.values()]
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(
                f"{path} has {len(row)} cells in row {number} and {len(header)} in its header: quote cells that "
                "contain the separator (.csv), or save the table as .jsonl."
            )
        yield f"row {number}", [row[k] for k in positions]


def _position(path: Path, header: Sequence[str], column: str, columns: Mapping[str, str]) -> int:
    if header.count(column) != 1:
        reason = "two columns" if column in header else "no column"
        raise ValueError(
            f"{path} has {reason} {column!r} (its columns: {', '.join(header)}): set {' and '.join(columns)} to names "
            "of columns."
        )
    return header.index(column)


def _read_json_lines(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, list[Any]]]:
    """Yield, for each line of a ``.jsonl`` table, its position and the fields ``columns``; a missing field is None."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        rows = [(number, json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read as a table ({error}): write one JSON object per line, in UTF-8."
        ) from None
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path} has {row!r:.60} in line {number}: write one JSON object per line.")
    names = dict.fromkeys(name for _, row in rows for name in row)
    for column in columns.values():
        _position(path, list(names), column, columns)
    for number, row in rows:
        yield f"line {number}", [row.get(column) for column in columns.values()]


def first_caption(captions: Any, place: str) -> str:
    """Return the first caption that is not blank, without leading and trailing whitespace; "" if there is none.

    Args:
        captions: a caption, a list of captions, or None.
        place: file and row of the captions, with which the error message begins.

    Raises:
        ValueError: a caption is neither a string nor None.
    """
    for caption in captions if isinstance(captions, list) else [captions]:
        if not isinstance(caption, str | None):
            raise ValueError(f"{place} has the caption {caption!r:.60}, which is not a string: write a string.")
        if caption and caption.strip():
            return caption.strip()
    return ""
