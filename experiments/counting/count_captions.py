"""Counts the captions of a corpus that mention each name: ``python -m experiments.counting.count_captions --help``.

Shards are Parquet files, local or remote (``s3://...``). The counts of each shard are cached in a folder next to the
output, so an interrupted run resumes. A shard that is listed twice, or is a copy of another, counts once.
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

from experiments.cache.atomic import CannotWrite, atomic_write, check_writable, digest
from experiments.counting.count_engines import Workers, dask, processes
from experiments.counting.matcher import Patterns, patterns
from experiments.counting.names import read_names
from experiments.counting.rows import check_tsv_cells, write_rows
from experiments.counting.shards import Shard, ShardCounts, count_shard, list_shards

CACHE_VERSION = 3  # increase it when the definition of a mention changes: cached counts become invalid


@dataclass(frozen=True)
class CountQuery:
    """The query of every shard: its caption column, the forms to search for and the number of concepts."""

    column: str
    forms: Patterns
    concepts: int


class CachedCounts:
    """Counts of finished shards, one file each; the file name depends on the shard and on the query."""

    def __init__(self, folder: Path, query: CountQuery) -> None:
        self.folder = folder
        self._query = digest(asdict(query) | {"rules": CACHE_VERSION})

    def read(self, shard: Shard) -> ShardCounts | None:
        """Counts of a shard, or None if they are missing or damaged."""
        try:
            record = json.loads(self._path(shard).read_text())
            return ShardCounts(**record["counts"] | {"counts": tuple(record["counts"]["counts"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, shard: Shard, counts: ShardCounts) -> None:
        _write_json(self._path(shard), {"shard": shard.identity, "counts": asdict(counts)})

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{digest({'query': self._query, 'shard': shard.identity})[:32]}.json"


def _write_json(path: Path, content: Any) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False)))


def count_shards(
    shards: Sequence[Shard],
    query: CountQuery,
    cache: CachedCounts,
    engine: Callable[[], AbstractContextManager[Workers]],
) -> dict[Shard, ShardCounts]:
    """Counts of all shards: read from the cache, or computed and cached.

    ValueError if shards fail, after all others are done, with their number and the first error.
    """
    done = {shard: counts for shard in shards if (counts := cache.read(shard))}
    remaining = [shard for shard in shards if shard not in done]
    errors: list[str] = []
    with tqdm(total=len(shards), initial=len(done), unit="shard", desc="counting") as bar:
        if remaining:
            with engine() as (pool, share):
                forms = share(query.forms)
                futures = {pool.submit(count_shard, s, query.column, forms, query.concepts): s for s in remaining}
                _merge(futures, cache, done, errors, bar)
    if errors:
        raise ValueError(
            f"{len(errors)} of {len(shards)} shards failed, run the command again to retry only these; "
            f"first error: {errors[0]}"
        )
    return done


def _merge(
    futures: Mapping[Future, Shard],
    cache: CachedCounts,
    done: dict[Shard, ShardCounts],
    errors: list[str],
    bar: tqdm,
) -> None:
    """Adds finished counts to ``done`` and to the cache, and the messages of failed shards to ``errors``."""
    for future in as_completed(futures):
        shard = futures[future]
        try:
            done[shard] = future.result()
        except ValueError as error:
            errors.append(str(error))
        except BrokenExecutor:
            errors.append(f"{shard.url}: a worker process died, often because memory ran out: use fewer workers.")
        except Exception as error:  # any error of one worker must not discard the counts of other shards
            errors.append(f"{shard.url}: {error!r}")
        else:
            cache.write(shard, done[shard])
            bar.set_postfix(captions=f"{sum(counts.captions for counts in done.values()):,}")
            bar.update()


def deduplicate(counts: Mapping[Shard, ShardCounts]) -> tuple[dict[Shard, ShardCounts], dict[Shard, Shard]]:
    """Counts of shards with different captions, sorted by URL, and each copy with the shard that it repeats."""
    first: dict[str, Shard] = {}
    copies: dict[Shard, Shard] = {}
    for shard in sorted(counts, key=lambda shard: shard.url):
        original = first.setdefault(counts[shard].content, shard)
        if original is not shard:
            copies[shard] = original
    return {shard: counts[shard] for shard in first.values()}, copies


def write_counts(path: Path, names: Sequence[str], totals: Sequence[int]) -> None:
    """Writes names and counts without a header as ``.tsv``, ``.csv`` or ``.json``, in one atomic write."""
    rows = list(zip(names, totals, strict=True))
    if path.suffix == ".json":
        _write_json(path, dict(rows))
    else:
        atomic_write(path, lambda temporary: write_rows(temporary, path.suffix, rows))


def run(options: argparse.Namespace) -> None:
    """Counts all shards and writes the totals and their provenance. ValueError if an option or file is invalid."""
    output = Path(options.output)
    if output.suffix not in (".tsv", ".csv", ".json"):
        raise ValueError(f"--output {output} must end in .tsv, .csv or .json.")
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers}: must be an integer >= 1.")
    if options.scheduler and options.engine != "dask":
        raise ValueError("--scheduler needs --engine dask.")
    check_writable(output)
    names = read_names(options.names)
    if output.suffix == ".tsv":
        check_tsv_cells(names)
    query = CountQuery(options.column, patterns(names), len(names))
    shards = list_shards(options.shards, _storage(options.storage))
    cache = CachedCounts(output.with_name(f"{output.name}.shards"), query)
    engines = {
        "processes": lambda: processes(min(options.workers, len(shards))),
        "dask": lambda: dask(options.workers, options.scheduler),
    }
    counts, copies = deduplicate(count_shards(shards, query, cache, engines[options.engine]))
    for copy, original in copies.items():
        print(f"{copy.url} repeats {original.url}: counted once.")
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
    parser.add_argument("--column", default="caption", help="column of captions (default: %(default)s)")
    parser.add_argument("--output", required=True, help=".tsv, .csv or .json")
    parser.add_argument("--workers", type=int, default=1, help="number of processes (default: %(default)s)")
    parser.add_argument("--engine", choices=("processes", "dask"), default="processes")
    parser.add_argument("--scheduler", help="address of a Dask scheduler, such as tcp://host:8786")
    parser.add_argument("--storage", default="{}", help="JSON options of the file system, such as '{\"anon\": true}'")
    try:
        run(parser.parse_args(arguments))
    except (ValueError, CannotWrite) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        sys.exit("Interrupted. Finished shards are cached: run the same command to resume.")


if __name__ == "__main__":
    main()
