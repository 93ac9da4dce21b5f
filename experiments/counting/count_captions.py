"""Counts how many captions of a corpus mention each name: ``python -m experiments.counting.count_captions --help``.

Shards are Parquet files, local or remote (``s3://...``). Each shard's counts are kept in a folder beside the output,
so a stopped run goes on where it was; a shard that is listed twice, or is a copy of another, counts once.
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
from experiments.counting.rows import write_rows
from experiments.counting.shards import Shard, ShardCounts, count_shard, list_shards

CACHE_VERSION = 2  # of what a mention is: a change makes kept counts void


@dataclass(frozen=True)
class Question:
    """What is asked of every shard: the caption column, the forms searched for and how many concepts they belong to."""

    column: str
    forms: Patterns
    concepts: int


class KeptCounts:
    """Counts of finished shards, a file each; those of other shards, names or columns are never seen."""

    def __init__(self, folder: Path, question: Question) -> None:
        self.folder, self._question = folder, digest(asdict(question) | {"rules": CACHE_VERSION})

    def read(self, shard: Shard) -> ShardCounts | None:
        """The counts of a shard; None where they are missing or damaged."""
        try:
            record = json.loads(self._path(shard).read_text())
            return ShardCounts(**record["counts"] | {"counts": tuple(record["counts"]["counts"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, shard: Shard, counts: ShardCounts) -> None:
        _write_json(self._path(shard), {"shard": shard.identity, "counts": asdict(counts)})

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{digest({'question': self._question, 'shard': shard.identity})[:32]}.json"


def _write_json(path: Path, content: Any) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False)))


def count_shards(
    shards: Sequence[Shard],
    question: Question,
    kept: KeptCounts,
    engine: Callable[[], AbstractContextManager[Workers]],
) -> dict[Shard, ShardCounts]:
    """Counts of all shards, those kept by an earlier run read and the others counted and kept.

    ValueError if shards fail, after all others are done; names how many and the first one's reason.
    """
    done = {shard: counts for shard in shards if (counts := kept.read(shard))}
    left = [shard for shard in shards if shard not in done]
    failed: list[str] = []
    with tqdm(total=len(shards), initial=len(done), unit="shard", desc="counting") as bar:
        if left:
            with engine() as (pool, share):
                forms = share(question.forms)
                asked = {pool.submit(count_shard, s, question.column, forms, question.concepts): s for s in left}
                _gather(asked, kept, done, failed, bar)
    if failed:
        raise ValueError(f"{len(failed)} of {len(shards)} shards failed, run again for them alone; first: {failed[0]}")
    return done


def _gather(
    asked: Mapping[Future, Shard], kept: KeptCounts, done: dict[Shard, ShardCounts], failed: list[str], bar: tqdm
) -> None:
    for future in as_completed(asked):
        shard = asked[future]
        try:
            done[shard] = future.result()
        except ValueError as error:
            failed.append(str(error))
        except BrokenExecutor:
            failed.append(f"{shard.url}: a process died, often for want of memory; use fewer workers.")
        except Exception as error:  # whatever a worker met must not cost the other shards their counts
            failed.append(f"{shard.url}: {error!r}")
        else:
            kept.write(shard, done[shard])
            bar.set_postfix(captions=f"{sum(counts.captions for counts in done.values()):,}")
            bar.update()


def distinct(counts: Mapping[Shard, ShardCounts]) -> tuple[dict[Shard, ShardCounts], dict[Shard, Shard]]:
    """Shards of different captions in the order of their URLs, and the copies with the shard that each repeats."""
    first: dict[str, Shard] = {}
    copies: dict[Shard, Shard] = {}
    for shard in sorted(counts, key=lambda shard: shard.url):
        original = first.setdefault(counts[shard].content, shard)
        if original is not shard:
            copies[shard] = original
    return {shard: counts[shard] for shard in first.values()}, copies


def write_counts(path: Path, names: Sequence[str], totals: Sequence[int]) -> None:
    """Names and counts without a header, as ``.tsv``, ``.csv`` or ``.json``; whole or not at all."""

    rows = list(zip(names, totals, strict=True))
    if path.suffix == ".json":
        _write_json(path, dict(rows))
    else:
        atomic_write(path, lambda temporary: write_rows(temporary, path.suffix, rows))


def run(options: argparse.Namespace) -> None:
    """Counts, and writes the totals and where they come from. ValueError for anything wrong with the input."""
    output = Path(options.output)
    if output.suffix not in (".tsv", ".csv", ".json"):
        raise ValueError(f"--output {output} must end in .tsv, .csv or .json.")
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers}: give one or more.")
    if options.scheduler and options.engine != "dask":
        raise ValueError("--scheduler needs --engine dask.")
    check_writable(output)
    names = read_names(options.names)
    question = Question(options.column, patterns(names), len(names))
    shards = list_shards(options.shards, _storage(options.storage))
    kept = KeptCounts(output.with_name(f"{output.name}.shards"), question)
    engines = {"processes": lambda: processes(min(options.workers, len(shards))),
               "dask": lambda: dask(options.workers, options.scheduler)}  # fmt: skip
    counts, copies = distinct(count_shards(shards, question, kept, engines[options.engine]))
    for copy, original in copies.items():
        print(f"{copy.url} repeats {original.url}: counted once.")
    totals = [sum(column) for column in zip(*(shard.counts for shard in counts.values()), strict=True)]
    write_counts(output, list(names), totals)
    captions = sum(shard.captions for shard in counts.values())
    _write_json(output.with_name(f"{output.name}.provenance.json"), {
        "captions": captions, "nulls": sum(shard.nulls for shard in counts.values()), "column": options.column,
        "names": options.names, "forms_sha256": digest({"forms": question.forms}), "rules": CACHE_VERSION,
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
    parser.add_argument("--column", default="caption", help="the captions' column (default: %(default)s)")
    parser.add_argument("--output", required=True, help=".tsv, .csv or .json")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--engine", choices=("processes", "dask"), default="processes")
    parser.add_argument("--scheduler", help="address of a Dask scheduler, such as tcp://host:8786")
    parser.add_argument("--storage", default="{}", help="JSON options of the file system, such as '{\"anon\": true}'")
    try:
        run(parser.parse_args(arguments))
    except (ValueError, CannotWrite) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        sys.exit("Stopped. Finished shards are kept: the same command goes on from them.")


if __name__ == "__main__":
    main()
