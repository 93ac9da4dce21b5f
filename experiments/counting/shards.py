"""Parquet shards of captions, local or remote, and the counts of one shard. It does not import PyTorch."""

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

BATCH_SIZE = 65_536  # captions

# Fields in which file systems report the version of a file.
_VERSION_FIELDS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "modified", "created")


@dataclass(frozen=True)
class Shard:
    """A Parquet file.

    Attributes:
        url: with protocol and full path.
        size: in bytes.
        version: tag or modification time that the file system reports.
        storage: JSON object of file system options.
    """

    url: str
    size: int
    version: str
    storage: str = "{}"

    @property
    def identity(self) -> dict[str, Any]:
        """Key of cached counts: a replaced file with the same name has another identity."""
        return {"url": self.url, "size": self.size, "version": self.version}


@dataclass(frozen=True)
class ShardCounts:
    """Counts of one shard.

    Attributes:
        captions: number of captions, nulls excluded.
        nulls: number of rows without a caption.
        content: SHA-256 of the captions in order; equal for a copy of the shard.
        counts: number of captions that mention each concept.
    """

    captions: int
    nulls: int
    content: str
    counts: tuple[int, ...]


def list_shards(urls: Iterable[str], storage: Mapping[str, Any] | None = None) -> list[Shard]:
    """Parquet files matched by paths, URLs, folders or patterns (``*``), each once, sorted by URL.

    Args:
        urls: any that fsspec opens, such as ``shards/``, ``shards/*.parquet`` or ``s3://bucket/part-*.parquet``.
        storage: file system options, such as ``{"anon": True}`` for public S3 buckets.

    Raises:
        ValueError: a URL matches no Parquet file, or the package of its file system is not installed.
    """
    shards: dict[str, Shard] = {}
    for url in urls:
        matches = list(_expand(url, dict(storage or {})))
        if not matches:
            raise ValueError(f"{url} matches no Parquet file: give files, folders of *.parquet, or patterns.")
        shards |= {shard.url: shard for shard in matches}
    return [shards[url] for url in sorted(shards)]


def _expand(url: str, storage: dict[str, Any]) -> Iterator[Shard]:
    try:
        system, path = url_to_fs(url if "://" in url else os.path.abspath(url), **storage)
        if any(character in path for character in "*?[") and not system.exists(path):
            infos = system.glob(path, detail=True)
            names = [name for name in infos if not _is_hidden(name, path)]
        elif system.isdir(path):
            infos = system.find(path, detail=True)
            pattern = path.rstrip("/") + "/"
            names = [name for name in infos if name.endswith(".parquet") and not _is_hidden(name, pattern)]
        else:
            infos = {path: system.info(path)} if system.exists(path) else {}
            names = list(infos)
        infos = {name: _resolve_link(name, infos[name]) for name in names}
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename or url} is a broken link: repair or remove it.") from None
    except Exception as error:  # each file system has its own errors
        raise ValueError(f"{url} cannot be listed ({_first_line(error)}): check the URL and --storage.") from None
    for name, info in infos.items():
        if info["type"] != "directory":
            version = next((str(info[key]) for key in _VERSION_FIELDS if info.get(key)), "")
            yield Shard(system.unstrip_protocol(name), info["size"], version, json.dumps(storage, sort_keys=True))


def _is_hidden(name: str, pattern: str) -> bool:
    """True if a file matched by ``pattern`` (or a folder ending in ``/``) is hidden or temporary, as Spark names files.

    That is, a part of its path begins with ``.`` or ``_``, except for parts that ``pattern`` itself names and Hive
    partitions (``_x=...``).
    """
    parts = pattern.split("/")
    fixed = next((k for k, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts) - 1)
    named = [part for part in parts[fixed:] if part[:1] in (".", "_")]
    for part in name.split("/")[fixed:]:
        hidden = part.startswith(".") or (part.startswith("_") and "=" not in part)
        if hidden and not any(fnmatchcase(part, glob) for glob in named):
            return True
    return False


def _resolve_link(name: str, info: dict[str, Any]) -> dict[str, Any]:
    """``info`` of the target of a local link, as in the hub's cache; FileNotFoundError if the link is broken."""
    if info["type"] in ("file", "directory") and not info.get("islink"):
        return info
    target = os.stat(name)
    kind = "directory" if S_ISDIR(target.st_mode) else "file"
    return info | {"type": kind, "size": target.st_size, "mtime": target.st_mtime}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def read_captions(shard: Shard, column: str, batch_size: int = BATCH_SIZE) -> Iterator[pa.Array]:
    """Only the caption column, in arrays of up to ``batch_size`` captions (nulls included), one row group at a time.

    ValueError if the shard has no such column of strings or cannot be read.
    """
    try:
        system, path = url_to_fs(shard.url, **json.loads(shard.storage))
        # Arrow requests whole column chunks; another cache would also fetch neighboring bytes.
        with system.open(path, "rb", cache_type="none") as file, pq.ParquetFile(file, pre_buffer=True) as parquet:
            _check_column(shard, parquet.schema_arrow, column)
            for group in range(parquet.num_row_groups):
                for part in parquet.iter_batches(batch_size, [group], [column], use_threads=False):
                    yield part.column(0).cast(pa.string())
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(
            f"{shard.url} cannot be read as Parquet ({_first_line(error)}): replace or remove it."
        ) from None
    except ValueError:
        raise
    except Exception as error:  # errors of file systems, which cannot always be pickled by a worker
        raise ValueError(f"{shard.url} cannot be read ({error!r}): check --storage and the network.") from None


def _check_column(shard: Shard, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        columns = ", ".join(schema.names)
        raise ValueError(f"{shard.url} has no column {column!r} (its columns: {columns}): set --column.")
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_text or pa.types.is_null(kind)):  # a column of nulls has the type null
        raise ValueError(f"{shard.url} has {kind} in the column {column!r}: captions must be strings.")


@lru_cache(maxsize=1)
def _counter(forms: Patterns, concepts: int) -> BatchCounter:
    return BatchCounter(forms, concepts)


def count_shard(shard: Shard, column: str, forms: Patterns, concepts: int) -> ShardCounts:
    """Counts the captions of one shard on one core; ``forms`` as from ``patterns``. ValueError as ``read_captions``."""
    pa.set_cpu_count(1)
    counter = _counter(forms, concepts)
    counts = np.zeros(concepts, np.int64)
    content = hashlib.sha256()
    rows = nulls = 0
    for captions in read_captions(shard, column):
        rows += len(captions)
        nulls += captions.null_count
        captions = captions.drop_null()
        _update_hash(captions, content)
        counts += counter.count(captions)
    return ShardCounts(rows - nulls, nulls, content.hexdigest(), tuple(counts.tolist()))


def _update_hash(captions: pa.StringArray, content: hashlib._Hash) -> None:
    """Adds the lengths and the bytes of the captions."""
    _, offsets, text = captions.buffers()
    if len(captions):
        bounds = np.frombuffer(offsets, np.int32)[captions.offset : captions.offset + len(captions) + 1]
        content.update(np.diff(bounds).tobytes())
        content.update(memoryview(text or b"")[bounds[0] : bounds[-1]])
