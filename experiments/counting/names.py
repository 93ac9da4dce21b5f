"""Reads a file with the names and synonyms of concepts; the mentions of these names in captions are counted."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.counting.imagenet_counts import imagenet_classes
from experiments.naming import normalize_name, unique_names
from rnri.tables import read_rows

IMAGENET = "imagenet1k"


def read_names(source: str) -> dict[str, tuple[str, ...]]:
    """Return a dict that maps the name of each concept to the name and its synonyms, in the order of the file.

    All names are normalized by :func:`experiments.naming.normalize_name`.

    Args:
        source: ``imagenet1k`` for the classes of ImageNet-1k with their WordNet synonyms, or the path of a file. A line
            of a ``.txt``, ``.tsv`` or ``.csv`` file contains the name of one concept, followed by its synonyms. The
            separators are tabs in ``.txt`` and ``.tsv`` files, and commas in ``.csv`` files. A ``.json`` file is an
            object that maps names to lists of synonyms.

    Raises:
        ValueError: the file is missing or empty, has an unsupported suffix or layout, or contains a name twice.
    """
    if source == IMAGENET:
        return {c.name: c.synonyms for c in imagenet_classes()}
    path = Path(source)
    if path.suffix.lower() not in (".txt", ".tsv", ".csv", ".json"):
        raise ValueError(f"{path} is not a file of names: choose a .txt, .tsv, .csv or .json file, or {IMAGENET}.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist: choose a file of names, or {IMAGENET}.")
    rows = _read_json(path) if path.suffix.lower() == ".json" else _read_lines(path)
    names = unique_names((row[0] for row in rows), str(path), "put all its synonyms on one line")
    if not names:
        raise ValueError(f"{path} contains no names: write one concept per line.")
    return {name: tuple(dict.fromkeys(map(normalize_name, row))) for name, row in zip(names, rows, strict=True)}


def _read_lines(path: Path) -> list[list[str]]:
    cells = ([cell.strip() for cell in row if cell.strip()] for row in read_rows(path))
    return [row for row in cells if row]


def _read_json(path: Path) -> list[list[str]]:
    try:
        # JSON objects are parsed as lists of pairs, because a dict would not show that a name is repeated.
        entries = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as names ({error}): save it as JSON in UTF-8.") from None
    rows = []
    for entry in entries if isinstance(entries, list) else [entries]:
        match entry:
            case (str(name), [*synonyms]) if all(isinstance(synonym, str) for synonym in synonyms):
                rows.append([name, *synonyms])
            case _:
                raise ValueError(f"{path} contains {entry!r:.60}: map each name to a list of synonyms, such as [].")
    return rows
