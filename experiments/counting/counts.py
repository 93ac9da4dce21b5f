"""Reads count tables: files with the number of captions that mention each concept.

``python -m experiments.counting.counts FILE`` prints the SHA-256 hash of the file and the numbers of concepts in the
buckets head (frequent), medium and tail (rare).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.counting.buckets import bucket_by_rank, bucket_by_threshold
from experiments.naming import unique_names
from rnri.tables import read_rows

HEAD, TAIL = 1_000_000, 10_000  # thresholds of Table 3 of the RNRI paper for the number of captions in LAION-2B
RANKS = (235, 509, 256)  # numbers of head, medium and tail classes of ImageNet-1k in Table 3 of the RNRI paper
COUNT_HEADERS = ("count", "counts", "frequency", "freq", "mentions")


@dataclass(frozen=True)
class CountTable:
    """The caption counts in a file, together with the path and the hash of the file.

    Attributes:
        counts: number of captions per concept, in the order of the file. The keys are normalized names, class indices
            or WordNet ids of concepts.
        path: path of the file, as the user wrote it.
        sha256: SHA-256 of the bytes of the file.
    """

    counts: dict[str, int]
    path: str
    sha256: str


def read_count_table(path: str | Path) -> CountTable:
    """Reads the names and the counts in a file.

    A ``.csv`` or ``.tsv`` file has two columns, name and count, with or without a header ``name,count``. A ``.json``
    file is an object that maps names to counts.

    Raises:
        ValueError: the file is missing, has an unsupported suffix or layout, contains a count that is not an integer >=
            0, or contains a name twice.
    """
    path = Path(path)
    readers = {".tsv": _read_table, ".csv": _read_table, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path} ends in {path.suffix!r}: choose a .json, .csv or .tsv file of names and counts.")
    if not path.is_file():
        raise ValueError(f"{path} does not exist: choose a .json, .csv or .tsv file of names and counts.")
    rows = readers[path.suffix.lower()](path)
    if not rows:
        raise ValueError(f"{path} contains no counts: write a name and a count in each row.")
    names = unique_names((name for name, _ in rows), str(path), "keep one count per name, or use class indices")
    counts = {name: _count(path, name, value) for name, (_, value) in zip(names, rows, strict=True)}
    return CountTable(counts, str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def _read_table(path: Path) -> list[list[str]]:
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise ValueError(f"{path} is not a table of names and counts: row {number} has {len(row)} cells, not 2.")
    has_header = bool(rows) and rows[0][1].strip().lower() in COUNT_HEADERS
    return rows[has_header:]


def _read_json(path: Path) -> list[tuple[str, Any]]:
    try:
        # JSON objects are parsed as lists of pairs, because a dict would not show that a name is repeated.
        rows = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a table of names and counts ({error}): write JSON in UTF-8 that maps names to counts."
        ) from None
    if not isinstance(rows, list) or not all(isinstance(row, tuple) for row in rows):
        raise ValueError(f"{path} is not a table of names and counts: it must be an object that maps names to counts.")
    return rows


def _count(path: Path, name: str, value: Any) -> int:
    if isinstance(value, str):
        # A regular expression is used, because int() also accepts strings such as "1_000".
        is_integer = re.fullmatch(r"\s*[+-]?[0-9]+\s*", value) is not None
    else:
        is_integer = type(value) is int or (isinstance(value, float) and value.is_integer())
    if not is_integer:
        raise ValueError(
            f"{path} is not a table of names and counts: {name!r} has the count {value!r:.60}, not an integer."
        )
    count = int(value)
    if count < 0:
        raise ValueError(f"{path} has the count {count} for {name!r}: replace it by an integer >= 0.")
    return count


def bucket_sizes(buckets: Mapping[str, str]) -> dict[str, int]:
    """Return the number of concepts in each of the buckets head, medium and tail.

    ``buckets`` maps each concept to its bucket.
    """
    sizes = Counter(buckets.values())
    return {bucket: sizes[bucket] for bucket in ("head", "medium", "tail")}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.counting.counts", description=__doc__)
    parser.add_argument("file", help="count table: .csv, .tsv or .json")
    parser.add_argument(
        "--head", type=int, default=HEAD, help="concepts with larger counts are head (default: %(default)s)"
    )
    parser.add_argument(
        "--tail", type=int, default=TAIL, help="concepts with smaller counts are tail (default: %(default)s)"
    )
    parser.add_argument("--ranks", type=int, nargs=3, help="numbers of head, medium and tail concepts")
    options = parser.parse_args(arguments)
    try:
        table = read_count_table(options.file)
        if options.ranks:
            buckets = bucket_by_rank(table.counts, options.ranks)
        else:
            buckets = bucket_by_threshold(table.counts, options.head, options.tail)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{table.path} (sha256 {table.sha256})")
    print(", ".join(f"{bucket} {n:,}" for bucket, n in bucket_sizes(buckets).items()), f"of {len(buckets):,}")


if __name__ == "__main__":
    main()
