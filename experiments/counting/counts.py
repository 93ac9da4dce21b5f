"""Files that say how often a corpus mentions each concept, and the buckets that follow.

``python -m experiments.counting.counts FILE`` prints where the counts come from and each bucket's size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.counting.frequency import bucket_by_rank, bucket_by_threshold
from experiments.counting.rows import read_rows
from experiments.naming import unique_names

HEAD, TAIL = 1_000_000, 10_000  # mentions in LAION-2B (RNRI, Table 3)
RANKS = (235, 509, 256)  # sizes of head, medium and tail of ImageNet-1k (RNRI, Table 3)

_NAME_LABELS = ("name", "class", "class_name", "concept", "label", "wnid", "index")
_COUNT_LABELS = ("count", "counts", "frequency", "freq", "mentions")


@dataclass(frozen=True)
class CountTable:
    """Counts and where they come from.

    Attributes:
        counts: mentions by name (or class index, or WordNet id) in canonical form, in the file's order.
        path: the file as it was named.
        sha256: of the file's bytes.
        columns: names of the two columns read; positions (``1``, ``2``) where the file has no header.
    """

    counts: dict[str, int]
    path: str
    sha256: str
    columns: tuple[str, str]


def read_count_table(path: str | Path, name: str | None = None, count: str | None = None) -> CountTable:
    """Reads names and counts from ``.tsv``, ``.csv`` or ``.json``.

    Tables have two columns, or a header that holds the columns ``name`` and ``count``; a header of usual labels
    (name, class, concept, ...; count, frequency, ...) is found without them. JSON is an object of counts, an object
    of objects that hold ``count``, or a list of objects that hold both.

    Args:
        path: the file; its ending says its format.
        name: label of the column of names or indices.
        count: label of the column of counts.

    Raises:
        ValueError: file or column missing, unknown ending, a count that is no whole number or negative, a name twice.
    """
    path = Path(path)
    readers = {".tsv": _read_table, ".csv": _read_table, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path} ends in {path.suffix!r}: counts are read from .json, .csv or .tsv files.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a .json, .csv or .tsv file of names and counts.")
    try:
        rows, columns = readers[path.suffix.lower()](path, name, count)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a table of names and counts ({error}).") from None
    return CountTable(_checked(path, rows), str(path), hashlib.sha256(path.read_bytes()).hexdigest(), columns)


def _read_table(path: Path, name: str | None, count: str | None) -> tuple[list[tuple[str, Any]], tuple[str, str]]:
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path} is empty: it must hold a name and a count in each row.")
    header = [cell.strip() for cell in rows[0]]
    if name is count is None and len(header) == 2 and header[1].isdecimal():
        header = []  # a concept may be called by a usual label: index, label
    name = name or _usual(header, _NAME_LABELS)
    count = count or _usual(header, _COUNT_LABELS)
    if name is None and count is None:
        width = max(map(len, rows))
        if width != 2 or min(map(len, rows)) != 2:
            raise ValueError(f"{path} is not a table of names and counts (two columns): set name= and count=.")
        return [(row[0], row[1]) for row in rows], ("1", "2")
    at = [_position(path, header, label, field) for label, field in ((name, "name"), (count, "count"))]
    if short := next((k for k, row in enumerate(rows, 1) if len(row) <= max(at)), None):
        raise ValueError(f"{path} is not a table of names and counts (row {short} has {len(rows[short - 1])} cells).")
    return [(row[at[0]], row[at[1]]) for row in rows[1:]], (header[at[0]], header[at[1]])


def _usual(header: Sequence[str], labels: Iterable[str]) -> str | None:
    return next((cell for label in labels for cell in header if cell.lower() == label), None)


def _position(path: Path, header: Sequence[str], label: str | None, field: str) -> int:
    if label not in header:
        wanted = f"no column {label!r}" if label else f"no column of {field}s by a usual label"
        raise ValueError(f"{path} has {wanted} (its columns: {', '.join(header)}): set {field}= to one of them.")
    return header.index(label)


def _read_json(path: Path, name: str | None, count: str | None) -> tuple[list[tuple[str, Any]], tuple[str, str]]:
    # Objects become lists of pairs: a dict would hide a name that occurs twice.
    content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Pairs)
    if isinstance(content, _Pairs):
        nested = any(isinstance(value, _Pairs) for _, value in content)
        label = (count or "count") if nested else "value"
        rows = [(key, _field(path, value, label) if nested else value) for key, value in content]
        return rows, ("key", label)
    if isinstance(content, list):
        labels = (name or "name", count or "count")
        return [(str(_field(path, row, labels[0])), _field(path, row, labels[1])) for row in content], labels
    raise ValueError(f"{path} is not a table of names and counts: it must hold an object or a list of objects.")


class _Pairs(list):
    """A JSON object as its pairs, in order, repeated keys included."""


def _field(path: Path, record: Any, label: str) -> Any:
    fields = dict(record) if isinstance(record, _Pairs) else {}
    if label not in fields:
        raise ValueError(f"{path} has no field {label!r} in {record!r:.60}: set name= and count= to its labels.")
    return fields[label]


def _checked(path: Path, rows: Sequence[tuple[str, Any]]) -> dict[str, int]:
    if not rows:
        raise ValueError(f"{path} holds no counts: it must hold a name and a count in each row.")
    names = unique_names((name for name, _ in rows), str(path), "keep one count a name, or use class indices as names")
    return {name: _whole(path, name, value) for name, (_, value) in zip(names, rows, strict=True)}


def _whole(path: Path, name: str, value: Any) -> int:
    try:
        number = int(value)
        whole = not isinstance(value, bool) and float(value) == number
    except (ValueError, TypeError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is not a table of names and counts: {name!r} has the count {value!r}.")
    if number < 0:
        raise ValueError(f"{path} has the count {number} for {name!r}: a count is zero or more.")
    return number


def bucket_sizes(buckets: Mapping[str, str]) -> dict[str, int]:
    """How many concepts each bucket holds, zeros included."""
    sizes = Counter(buckets.values())
    return {bucket: sizes[bucket] for bucket in ("head", "medium", "tail")}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.counting.counts", description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--name", help="label of the column of names")
    parser.add_argument("--count", help="label of the column of counts")
    parser.add_argument("--head", type=int, default=HEAD, help="head: more mentions than this (default: %(default)s)")
    parser.add_argument("--tail", type=int, default=TAIL, help="tail: fewer mentions than this (default: %(default)s)")
    parser.add_argument("--ranks", type=int, nargs=3, help="sizes by rank instead, such as 235 509 256")
    options = parser.parse_args(arguments)
    try:
        table = read_count_table(options.file, options.name, options.count)
        buckets = (
            bucket_by_rank(table.counts, tuple(options.ranks))
            if options.ranks
            else bucket_by_threshold(table.counts, options.head, options.tail)
        )
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{table.path} (sha256 {table.sha256}), columns {table.columns[0]} and {table.columns[1]}")
    print(", ".join(f"{bucket} {n:,}" for bucket, n in bucket_sizes(buckets).items()), f"of {len(buckets):,}")


if __name__ == "__main__":
    main()
