"""Counts the captions of a corpus that mention a name, for each name in a list.

Run ``python -m experiments.counting.count_captions --help`` for the options. The corpus consists of Parquet files
(shards), which are local or remote (``s3://...``). The counts of each finished shard are cached in the folder
``OUTPUT.shards``, so that an interrupted run resumes. A shard that is listed twice is counted once. Shards with
identical captions are also counted once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, as_completed
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.cache.atomic import CannotWrite, atomic_write, check_writable, digest, remove_stale_temporaries
from experiments.counting.count_engines import Workers, dask, processes
from experiments.counting.matcher import Patterns, patterns
from experiments.counting.names import read_names
from experiments.counting.rows import check_tsv_cells, write_rows
from experiments.counting.shards import Shard, ShardCounts, count_shard, list_shards

CACHE_VERSION = 3  # increase this version when the definition of a mention changes, so that cached counts are not used


@dataclass(frozen=True)
class CountQuery:
    """The names whose mentions are counted in every shard (Parquet file of captions), and the column of the captions.

    Attributes:
        column: name of the Parquet column that contains the captions.
        forms: spelling variants of all names (singular and plural, with and without hyphens), each with the indices of
            the concepts that have this name.
        concepts: number of concepts to which the names belong.
    """

    column: str
    forms: Patterns
    concepts: int


class CachedCounts:
    """Cache folder with one JSON file of counts per finished shard (Parquet file of captions).

    The name of a JSON file is a hash of the shard (URL, size, version) and of the query (caption column, spelling
    variants of the names).
    """

    def __init__(self, folder: Path, query: CountQuery) -> None:
        self.folder = folder
        self._query = digest(asdict(query) | {"rules": CACHE_VERSION})

    def read(self, shard: Shard) -> ShardCounts | None:
        """Return the cached counts of the Parquet file ``shard``, or None if the cache file is missing or damaged."""
        try:
            record = json.loads(self._path(shard).read_text(encoding="utf-8"))
            return ShardCounts(**record["counts"] | {"counts": tuple(record["counts"]["counts"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, shard: Shard, counts: ShardCounts) -> None:
        _write_json(self._path(shard), {"shard": shard.identity, "counts": asdict(counts)})

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{digest({'query': self._query, 'shard': shard.identity})[:32]}.json"


def _write_json(path: Path, content: Any) -> None:
    atomic_write(
        path,
        lambda temporary: temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8"),
    )


def count_shards(
    shards: Sequence[Shard],
    query: CountQuery,
    cache: CachedCounts,
    engine: Callable[[], AbstractContextManager[Workers]],
) -> dict[Shard, ShardCounts]:
    """Return the counts of all shards (Parquet files of captions).

    Counts that are not in ``cache`` are computed and added to ``cache``.

    Args:
        shards: Parquet files of captions.
        query: the names whose mentions are counted, and the column of the captions.
        cache: counts of shards that are already finished.
        engine: function that starts the worker processes, from :mod:`experiments.counting.count_engines`.

    Raises:
        ValueError: counting failed for at least one shard. The exception is raised after all other shards are finished.
            The message contains the number of failed shards and the first error.
    """
    done = {shard: counts for shard in shards if (counts := cache.read(shard))}
    remaining = [shard for shard in shards if shard not in done]
    errors: list[str] = []
    with tqdm(total=len(shards), initial=len(done), unit="shard", desc="counting") as bar:
        if remaining:
            with engine() as (pool, share):
                forms = share(query.forms)
                futures = {pool.submit(count_shard, s, query.column, forms, query.concepts): s for s in remaining}
                _merge(futures, cache, done, errors, bar=bar)
    if errors:
        raise ValueError(
            f"{len(errors)} of {len(shards)} shards failed: run the command again to retry only the failed shards; "
            f"first error: {errors[0]}"
        )
    return done


def _merge(
    futures: Mapping[Future, Shard],
    cache: CachedCounts,
    done: dict[Shard, ShardCounts],
    errors: list[str],
    *,
    bar: tqdm,
) -> None:
    """Add the counts of finished shards to ``done`` and ``cache``, and the errors of failed shards to ``errors``."""
    for future in as_completed(futures):
        shard = futures[future]
        try:
            done[shard] = future.result()
        except ValueError as error:
            errors.append(str(error))
        except BrokenExecutor:
            errors.append(f"{shard.url}: a worker process died, often because memory ran out; reduce --workers.")
        except Exception as error:  # an error in one shard must not discard the counts of the other shards
            errors.append(f"{shard.url}: {error!r}")
        else:
            cache.write(shard, done[shard])
            bar.set_postfix(captions=f"{sum(counts.captions for counts in done.values()):,}")
            bar.update()


def deduplicate(counts: Mapping[Shard, ShardCounts]) -> tuple[dict[Shard, ShardCounts], dict[Shard, Shard]]:
    """Separate duplicate shards (Parquet files), which have the same captions as another shard, from all other shards.

    Returns:
        The counts of the shards without duplicates, sorted by URL, and a dict that maps each duplicate shard to the
        shard with the same captions.
    """
    first: dict[str, Shard] = {}
    copies: dict[Shard, Shard] = {}
    for shard in sorted(counts, key=lambda shard: shard.url):
        original = first.setdefault(counts[shard].content, shard)
        if original is not shard:
            copies[shard] = original
    return {shard: counts[shard] for shard in first.values()}, copies


def write_counts(path: Path, names: Sequence[str], totals: Sequence[int]) -> None:
    """Writes names and counts to a ``.tsv`` or ``.csv`` file without a header, or to a ``.json`` file."""
    rows = list(zip(names, totals, strict=True))
    if path.suffix == ".json":
        _write_json(path, dict(rows))
    else:
        atomic_write(path, lambda temporary: write_rows(temporary, path.suffix, rows))


def run(options: argparse.Namespace) -> None:
    """Counts the captions in all shards (Parquet files), and writes the total count of each concept to ``OUTPUT``.

    The file ``OUTPUT.provenance.json`` records the shards, the file of names and the version of the counting rules.

    Raises:
        ValueError: a command-line option or an input file is invalid.
    """
    output = Path(options.output)
    if output.suffix not in (".tsv", ".csv", ".json"):
        raise ValueError(f"--output {output} must end in .tsv, .csv or .json.")
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers}: must be an integer >= 1.")
    if options.scheduler and options.engine != "dask":
        raise ValueError("--scheduler needs --engine dask: add --engine dask, or omit --scheduler.")
    check_writable(output)
    names = read_names(options.names)
    if output.suffix == ".tsv":
        check_tsv_cells(names)
    query = CountQuery(options.column, patterns(names), len(names))
    shards = list_shards(options.shards, _storage(options.storage))
    cache = CachedCounts(output.with_name(f"{output.name}.shards"), query)
    remove_stale_temporaries(cache.folder)
    engines = {
        "processes": lambda: processes(min(options.workers, len(shards))),
        "dask": lambda: dask(options.workers, options.scheduler),
    }
    counts, copies = deduplicate(count_shards(shards, query, cache, engines[options.engine]))
    for copy, original in copies.items():
        print(f"{copy.url} has the same captions as {original.url}: the captions are counted once.")
    totals = [sum(column) for column in zip(*(shard.counts for shard in counts.values()), strict=True)]
    write_counts(output, list(names), totals)
    captions = sum(shard.captions for shard in counts.values())
    _write_json(output.with_name(f"{output.name}.provenance.json"), {
        "captions": captions, "nulls": sum(shard.nulls for shard in counts.values()), "column": options.column,
        "names": options.names, "forms_sha256": digest({"forms": query.forms}), "rules": CACHE_VERSION,
        "shards": [shard.identity | {"captions": c.captions, "content": c.content} for shard, c in counts.items()],
        "copies": {copy.url: original.url for copy, original in copies.items()},
    })  # fmt: skip
    print(f"{output}: {len(names):,} names in {captions:,} captions of {len(counts):,} shards.")


def _storage(text: str) -> dict[str, Any]:
    try:
        storage = json.loads(text)
    except json.JSONDecodeError:
        storage = None
    if not isinstance(storage, dict):
        raise ValueError(f"--storage {text} must be a JSON object, such as '{{\"anon\": true}}'.")
    return storage


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.counting.count_captions", description=__doc__)
    parser.add_argument("shards", nargs="+", help="files, folders or patterns, local or URLs (s3://bucket/*.parquet)")
    parser.add_argument("--names", required=True, help="file of names and synonyms, or imagenet1k")
    parser.add_argument("--column", default="caption", help="Parquet column of captions (default: %(default)s)")
    parser.add_argument("--output", required=True, help="file of counts to write: .tsv, .csv or .json")
    parser.add_argument("--workers", type=int, default=1, help="number of worker processes (default: %(default)s)")
    parser.add_argument("--engine", choices=("processes", "dask"), default="processes")
    parser.add_argument("--scheduler", help="address of a Dask scheduler, such as tcp://host:8786")
    parser.add_argument("--storage", default="{}", help="fsspec options as JSON, such as '{\"anon\": true}'")
    try:
        run(parser.parse_args(arguments))
    except (ValueError, CannotWrite) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        sys.exit("Interrupted. Finished shards are cached: run the same command to resume.")


if __name__ == "__main__":
    main()
