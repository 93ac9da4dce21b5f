"""Files of names to search captions for, with their synonyms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from experiments.counting.imagenet_counts import imagenet_classes
from experiments.counting.rows import read_rows
from experiments.naming import normalize_name, unique_names

IMAGENET = "imagenet1k"


def read_names(source: str) -> dict[str, tuple[str, ...]]:
    """What each concept is called: its name and its synonyms, in the order of the file.

    Args:
        source: ``imagenet1k`` for the classes of ImageNet-1k with their WordNet synonyms, or a file: ``.txt`` or
            ``.tsv`` (a concept a line: its name, then synonyms, parted by tabs; quotation marks are signs like
            others), ``.csv`` (parted by commas) or ``.json`` (a list of names, or an object of lists of synonyms by
            name).

    Raises:
        ValueError: file missing, of unknown ending or form, without names, or with a name twice
            (names are compared, and given back, in canonical form).
    """
    if source == IMAGENET:
        return {c.name: c.synonyms for c in imagenet_classes()}
    path = Path(source)
    if path.suffix.lower() not in (".txt", ".tsv", ".csv", ".json"):
        raise ValueError(f"{path} is no file of names: give a .txt, .tsv, .csv or .json file, or {IMAGENET}.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a file of names, or {IMAGENET}.")
    try:
        rows = _read_json(path) if path.suffix.lower() == ".json" else _read_lines(path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as names ({error}).") from None
    return _checked(path, rows)


def _read_lines(path: Path) -> list[list[str]]:
    cells = ([cell.strip() for cell in row if cell.strip()] for row in read_rows(path))
    return [row for row in cells if row]


def _read_json(path: Path) -> list[list[str]]:
    content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
    if not isinstance(content, list):
        raise ValueError(f"{path} must hold a list of names, or an object of lists of synonyms by name.")
    return [[entry] if isinstance(entry, str) else _row(path, entry) for entry in content]


def _row(path: Path, entry: object) -> list[str]:
    match entry:
        case (str(name), [*synonyms]) if all(isinstance(synonym, str) for synonym in synonyms):
            return [name, *synonyms]
        case _:
            raise ValueError(f"{path} holds {entry!r:.60}: give each name a list of synonyms, [] for none.")


def _checked(path: Path, rows: Sequence[list[str]]) -> dict[str, tuple[str, ...]]:
    names = unique_names((row[0] for row in rows), str(path), "put all its synonyms on one line")
    if not names:
        raise ValueError(f"{path} holds no names.")
    return {name: tuple(dict.fromkeys(map(normalize_name, row))) for name, row in zip(names, rows, strict=True)}
