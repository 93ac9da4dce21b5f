"""Parquet shards of captions, local or remote, and the counts of one shard. Workers import this and no PyTorch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from stat import S_ISDIR
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from experiments.counting.matcher import BatchCounter, Patterns

BATCH = 65_536  # captions read at once

# Where file systems say that a file is another one than before.
_VERSIONS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "modified", "created")


@dataclass(frozen=True)
class Shard:
    """A Parquet file.

    Attributes:
        url: with its protocol and whole path.
        size: in bytes.
        version: the file system's tag, or time of the last change.
        storage: JSON object of options for the file system.
    """

    url: str
    size: int
    version: str
    storage: str = "{}"

    @property
    def identity(self) -> dict[str, Any]:
        """What a kept count belongs to: another file under the same name has another identity."""
        return {"url": self.url, "size": self.size, "version": self.version}


@dataclass(frozen=True)
class ShardCounts:
    """What one shard holds.

    Attributes:
        captions: how many there are, without nulls.
        nulls: rows without a caption.
        content: SHA-256 of the captions in their order; a copy of the shard has the same.
        counts: captions that mention each concept, in the concepts' order.
    """

    captions: int
    nulls: int
    content: str
    counts: tuple[int, ...]


def list_shards(urls: Iterable[str], storage: Mapping[str, Any] | None = None) -> list[Shard]:
    """The Parquet files that paths, URLs, folders or patterns (``*``) name, each once, in the order of their URLs.

    Args:
        urls: anything that fsspec opens, such as ``shards/``, ``shards/*.parquet`` or ``s3://bucket/part-*.parquet``.
        storage: options for the file system, such as ``{"anon": True}`` for public S3 buckets.

    Raises:
        ValueError: a URL names no Parquet file, or its file system's package is not installed.
    """
    shards: dict[str, Shard] = {}
    for url in urls:
        found = list(_expand(url, dict(storage or {})))
        if not found:
            raise ValueError(f"{url} names no Parquet file: give files, folders of *.parquet, or patterns.")
        shards |= {shard.url: shard for shard in found}
    return [shards[url] for url in sorted(shards)]


def _expand(url: str, storage: dict[str, Any]) -> Iterator[Shard]:
    try:
        system, path = url_to_fs(url if "://" in url else os.path.abspath(url), **storage)
        if any(sign in path for sign in "*?[") and not system.exists(path):
            found = system.glob(path, detail=True)
            infos = {name: info for name, info in found.items() if not _is_passed_over(name, path)}
        elif system.isdir(path):
            found = system.find(path, detail=True)
            infos = {
                name: info
                for name, info in found.items()
                if name.endswith(".parquet") and not _is_passed_over(name, path.rstrip("/") + "/")
            }
        else:
            infos = {path: system.info(path)} if system.exists(path) else {}
        infos = {name: _followed(name, info) for name, info in infos.items()}
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename or url} is a link to nothing: mend or remove it.") from None
    except Exception as error:  # every file system has its own
        raise ValueError(f"{url} cannot be listed ({_line(error)}).") from None
    for name, info in infos.items():
        if info["type"] != "directory":
            version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
            yield Shard(system.unstrip_protocol(name), info["size"], version, json.dumps(storage, sort_keys=True))


def _is_passed_over(name: str, asked: str) -> bool:
    """Whether a file found below ``asked``, a folder or pattern, is hidden or temporary, as Spark and others name it.

    That is where a part of its path that ``asked`` does not itself name begins with ``.`` or ``_``; Hive's partitions
    (``_x=...``) excepted.
    """
    named = asked.split("/")
    fixed = next((k for k, part in enumerate(named) if any(sign in part for sign in "*?[")), len(named) - 1)
    wanted = [part for part in named[fixed:] if part[:1] in (".", "_")]
    for part in name.split("/")[fixed:]:
        hidden = part.startswith(".") or (part.startswith("_") and "=" not in part)
        if hidden and not any(fnmatchcase(part, pattern) for pattern in wanted):
            return True
    return False


def _followed(name: str, info: dict[str, Any]) -> dict[str, Any]:
    """``info`` of what a local link leads to, as the hub's cache is made of; FileNotFoundError if it is nothing."""
    if info["type"] in ("file", "directory") and not info.get("islink"):
        return info
    target = os.stat(name)
    kind = "directory" if S_ISDIR(target.st_mode) else "file"
    return info | {"type": kind, "size": target.st_size, "mtime": target.st_mtime}


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def read_captions(shard: Shard, column: str, batch: int = BATCH) -> Iterator[pa.Array]:
    """The caption column, and no other, in arrays of up to ``batch`` captions (nulls included), a row group at a time.

    ValueError if the shard has no such column of text or cannot be read.
    """
    try:
        system, path = url_to_fs(shard.url, **json.loads(shard.storage))
        # Arrow asks for whole column chunks; another cache would only fetch their neighbors.
        with system.open(path, "rb", cache_type="none") as file, pq.ParquetFile(file, pre_buffer=True) as parquet:
            _check_column(shard, parquet.schema_arrow, column)
            for group in range(parquet.num_row_groups):
                for part in parquet.iter_batches(batch, [group], [column], use_threads=False):
                    yield part.column(0).cast(pa.string())
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(f"{shard.url} cannot be read as Parquet ({_line(error)}): replace or remove it.") from None
    except ValueError:
        raise
    except Exception as error:  # a file system's own, which may not survive the way from a worker
        raise ValueError(f"{shard.url} cannot be read ({error!r}).") from None


def _check_column(shard: Shard, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        columns = ", ".join(schema.names)
        raise ValueError(f"{shard.url} has no column {column!r} (its columns: {columns}): set --column.")
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (text or pa.types.is_null(kind)):  # a column without any caption has the type null
        raise ValueError(f"{shard.url} holds {kind} in the column {column!r}: captions must be text.")


@lru_cache(maxsize=1)
def _counter(forms: Patterns, concepts: int) -> BatchCounter:
    return BatchCounter(forms, concepts)


def count_shard(shard: Shard, column: str, forms: Patterns, concepts: int) -> ShardCounts:
    """Counts one shard's captions on one core; ``forms`` from ``patterns``. ValueError as from ``read_captions``."""
    pa.set_cpu_count(1)
    counter = _counter(forms, concepts)
    counts, content, rows, nulls = np.zeros(concepts, np.int64), hashlib.sha256(), 0, 0
    for captions in read_captions(shard, column):
        rows, nulls = rows + len(captions), nulls + captions.null_count
        captions = captions.drop_null()
        _digest(captions, content)
        counts += counter.count(captions)
    return ShardCounts(rows - nulls, nulls, content.hexdigest(), tuple(counts.tolist()))


def _digest(captions: pa.StringArray, content: hashlib._Hash) -> None:
    """Adds the captions' lengths and their bytes."""
    _, offsets, text = captions.buffers()
    if len(captions):
        bounds = np.frombuffer(offsets, np.int32)[captions.offset : captions.offset + len(captions) + 1]
        content.update(np.diff(bounds).tobytes())
        content.update(memoryview(text or b"")[bounds[0] : bounds[-1]])
