"""Counts the captions of the emoji corpus that mention each concept, and writes the numbers to ``concepts.csv``.

``python -m experiments.data.count_emoji [FOLDER]`` writes ``concepts.csv`` in the folder of a corpus (default:
``assets/emoji``). ``experiments.data.build_emoji`` also writes the counts when it builds a corpus. Experiments read the
counts from ``concepts.csv`` and do not search captions themselves.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from experiments.cache.atomic import CannotWrite, atomic_write
from experiments.counting.matcher import count_mentions
from experiments.data.emoji import CONCEPTS, read_table

COLUMNS = ("emoji", "unicode_name", "name", "phrase", "captions")


def count_captions(folder: Path) -> list[dict[str, str | int]]:
    """Return the rows of ``concepts.csv`` for the emoji corpus in ``folder``, one row per concept."""
    images = read_table(folder / "drawings-reference.parquet").remove_columns("image")
    concepts = {row["concept_id"]: row for row in images}
    captions = read_table(folder / "captions.parquet").data.column("caption").combine_chunks()
    counts = count_mentions({row["concept"]: [row["concept"]] for row in concepts.values()}, captions)
    rows = []
    for _, row in sorted(concepts.items()):
        values = (row["emoji"], row["unicode_name"], row["concept"], row["phrase"], counts[row["concept"]])
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def write_concepts(folder: Path) -> None:
    """Counts the captions of the corpus in ``folder`` and writes ``folder/concepts.csv``."""
    rows = count_captions(folder)

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    atomic_write(folder / CONCEPTS, write)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.data.count_emoji", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("assets/emoji"))
    options = parser.parse_args(arguments)
    try:
        write_concepts(options.folder)
    except (ValueError, CannotWrite) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
