"""Measure how many captions per second are searched for the names of concepts on one CPU core.

The counter of this project is compared with an Aho-Corasick automaton in Python, with Polars and with DuckDB. All
counters count the names and synonyms of the ImageNet-1k classes in the same captions.

``python -m benchmarks.count_captions`` uses synthetic captions. ``--file FILE --column NAME`` reads the captions from a
column of a Parquet file. Polars and DuckDB are skipped if they are not installed.
"""

from __future__ import annotations

import os

os.environ["POLARS_MAX_THREADS"] = "1"  # Polars reads this variable when it is imported

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import ahocorasick
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import arguments
from experiments.counting.frequency import mentions
from experiments.counting.imagenet_counts import imagenet_classes
from experiments.counting.matcher import BatchCounter, patterns
from experiments.counting.shards import count_shard, list_shards
from experiments.counting.text import normalize

LAION_2B = 2_300_000_000  # number of captions of the data set LAION-2B
MENTIONS_PER_CAPTION = 0.24  # mean number of ImageNet classes per caption of LAION-2B, from public counts
ACCENTED = ("café", "Été", "naïve", "Zoë", "№ 5", "München", "Malmö", "piñata")
"""Words with accents and special characters, which some synthetic captions contain."""

Counting = Callable[[], dict[str, int]]
"""Function that returns the number of captions that contain each name."""


def synthetic_captions(n: int, names: Mapping[str, tuple[str, ...]], seed: int) -> list[str]:
    """Return ``n`` synthetic captions that resemble captions of images on the web.

    The words are drawn from the definitions in WordNet, with the same frequencies. Some captions also contain a name in
    ``names``, words with accents, capital letters or punctuation.
    """
    from timm.data import ImageNetInfo

    rng = np.random.default_rng(seed)
    info = ImageNetInfo("imagenet-22k")
    glosses = " ".join(info.index_to_description(k, detailed=True) for k in range(info.num_classes()))
    forms = mentions(names)
    words, counts = np.unique([w for w in glosses.split() if normalize(w) not in forms], return_counts=True)
    words = np.append(words, ACCENTED)
    share = np.append(counts * 0.993 / counts.sum(), np.full(len(ACCENTED), 0.007 / len(ACCENTED)))
    lengths = np.clip(rng.lognormal(2.1, 0.6, n).astype(int), 1, 60)
    drawn = iter(rng.choice(words, int(lengths.sum()), p=share).tolist())
    synonyms = [name for group in names.values() for name in group]
    named = np.where(rng.random(n) < MENTIONS_PER_CAPTION, rng.integers(len(synonyms), size=n), -1)
    styles = rng.integers(12, size=n)
    joins = np.array([" ", " ", " ", ", ", " - ", " | "])[rng.integers(6, size=n)]
    captions = []
    for length, name, style, join in zip(lengths, named, styles, joins, strict=True):
        text = " ".join(next(drawn) for _ in range(length))
        text = f"{text}{join}{synonyms[name]}" if name >= 0 else text
        styled = (text, text.title(), text.capitalize())[style % 3]
        captions.append(f"{styled} – {length * 37} HD" if style == 0 else styled)
    return captions


def batched(path: Path, column: str, names: Mapping[str, tuple[str, ...]]) -> Counting:
    """Return a function that searches the captions with the counter of this project."""
    forms = patterns(names)
    (shard,) = list_shards([str(path)])
    return lambda: dict(zip(names, count_shard(shard, column, forms, len(names)).counts, strict=True))


def automaton(path: Path, column: str, names: Mapping[str, tuple[str, ...]]) -> Counting:
    """Return a function that normalizes each caption in Python and searches it with an Aho-Corasick automaton."""
    matcher = ahocorasick.Automaton()
    for form, concepts in mentions(names).items():
        matcher.add_word(form, concepts)
    matcher.make_automaton()

    def count() -> dict[str, int]:
        totals: Counter[str] = Counter()
        for caption in pq.read_table(path, columns=[column])[column].drop_null().to_pylist():
            totals.update({name for _, concepts in matcher.iter(normalize(caption)) for name in concepts})
        return {name: totals[name] for name in names}

    return count


def polars(path: Path, column: str, names: Mapping[str, tuple[str, ...]]) -> Counting:
    """Return a function that normalizes and searches the captions in Polars, with Polars' Aho-Corasick automaton."""
    pl = import_module("polars")
    forms = mentions(names)
    owners = pl.LazyFrame(
        [(form, name) for form, concepts in forms.items() for name in concepts], ["form", "name"], orient="row"
    )
    text = pl.col(column).str.normalize("NFKC").str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}\p{M}]+", " ")
    counts = (
        pl.scan_parquet(path)
        .select((" " + text.str.strip_chars(" ") + " ").str.extract_many(list(forms), overlapping=True).alias("form"))
        .with_row_index("caption")
        .explode("form")
        .join(owners, on="form")
        .unique(["caption", "name"])
        .group_by("name")
        .len()
    )
    return lambda: dict.fromkeys(names, 0) | dict(counts.collect().iter_rows())


DUCKDB = r"""
WITH captions AS (
    SELECT row_number() OVER () AS caption,
           string_split(trim(regexp_replace(lower(nfc_normalize("{column}")), '[^\pL\pN\pM]+', ' ', 'g')), ' ') AS words
    FROM read_parquet('{path}')
), positions AS (
    SELECT caption, words, unnest(words) AS word, generate_subscripts(words, 1) AS position FROM captions
)
SELECT name, count(DISTINCT caption) FROM positions JOIN forms ON word = first_word
WHERE length = 1 OR array_to_string(words[position : position + length - 1], ' ') = form
GROUP BY name
"""


def duckdb(path: Path, column: str, names: Mapping[str, tuple[str, ...]]) -> Counting:
    """Return a function that searches the captions with a SQL query in DuckDB.

    A hash join finds the first words of the concept names in the captions. The remaining words of each name are
    compared after the join.
    """
    database = import_module("duckdb").connect()
    database.execute("SET threads = 1")
    database.execute("CREATE TABLE forms (form TEXT, first_word TEXT, length INT, name TEXT)")
    rows = [
        (form.strip(), form.split()[0], len(form.split()), name)
        for form, concepts in mentions(names).items()
        for name in concepts
    ]
    database.executemany("INSERT INTO forms VALUES (?, ?, ?, ?)", rows)
    query = DUCKDB.format(column=column, path=path)
    return lambda: dict.fromkeys(names, 0) | dict(database.execute(query).fetchall())


METHODS = {"batched": batched, "automaton": automaton, "polars": polars, "duckdb": duckdb}


def measure(count: Counting, repeats: int) -> tuple[dict[str, int], float]:
    """Run ``count`` several times; return the counts, and the CPU time of the fastest run in seconds.

    The CPU time is the sum over all threads of the process.
    """
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        counts = count()
        seconds.append(time.process_time() - start)
    return counts, min(seconds)


def main() -> None:
    parser = arguments.Arguments(__doc__)
    parser.add_argument(
        "--captions",
        type=arguments.integer(),
        default=1_000_000,
        help="number of synthetic captions (default: %(default)s)",
    )
    parser.add_argument("--file", type=Path, help="Parquet file of captions to read instead of synthetic captions")
    parser.add_argument("--column", default="caption", help="column of the captions (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=arguments.integer(), default=3, help="number of timed runs (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), help="counters to measure")
    options = parser.parse_args()
    if options.file:
        check_column(options.file, options.column)
    pa.set_cpu_count(1)
    names = {c.name: c.synonyms for c in imagenet_classes()}
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder) / "captions.parquet"
        if not options.file:
            pq.write_table(pa.table({options.column: synthetic_captions(options.captions, names, seed=0)}), path)
        report(path, options.column, names, options.only, repeats=options.repeats)


def check_column(path: Path, column: str) -> None:
    """Raise ValueError or OSError if ``path`` is not a Parquet file with captions in ``column``."""
    schema = pq.read_schema(path)
    strings = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    if column not in strings:
        raise ValueError(f"--column: must be a column of strings in {path}, such as {strings}, got {column!r}.")
    if not sum(chunk.nbytes for chunk in pq.read_table(path, columns=[column])[column].drop_null().chunks):
        raise ValueError(f"--file: the column {column!r} of {path} has no captions; choose another column or file.")


def report(path: Path, column: str, names: Mapping[str, tuple[str, ...]], only: list[str], *, repeats: int) -> None:
    """Measure the counters in ``only`` on the captions in ``column`` of the file ``path``, and print a table."""
    captions = pq.read_table(path, columns=[column])[column].drop_null()
    size = sum(chunk.nbytes for chunk in captions.chunks)
    print(
        f"{len(captions):,} captions of {size / len(captions):.0f} bytes, {len(mentions(names)):,} spellings of names"
    )
    expected = BatchCounter(patterns(names), len(names)).count(captions.combine_chunks()).tolist()
    print("| counter | captions/s | LAION-2B on one core | mentions | names with other counts |")
    print("|---|---|---|---|---|")
    for method in only:
        try:
            counts, seconds = measure(METHODS[method](path, column, names), repeats)
        except ModuleNotFoundError as error:
            print(f"| {method} | not measured: install {error.name} | | | |")
            continue
        rate = len(captions) / seconds
        other = sum(counts[name] != n for name, n in zip(names, expected, strict=True))
        hours = LAION_2B / rate / 3600
        print(f"| {method} | {rate:,.0f} | {hours:.2f} h | {sum(counts.values()):,} | {other} |", flush=True)


if __name__ == "__main__":
    arguments.run(main)
