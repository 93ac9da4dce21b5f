"""Lists local or remote Parquet files of captions (shards), and counts the captions of a shard that mention names."""

from __future__ import annotations

import glob
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
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from experiments.counting.matcher import BatchCounter, Patterns
from rnri.validation import first_line

BATCH_SIZE = 65_536  # maximum number of captions that are read at once

# Keys under which fsspec file systems report the version of a file: an ETag, a generation or a modification time.
_VERSION_FIELDS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "modified", "created")


@dataclass(frozen=True)
class Shard:
    """A Parquet file of captions.

    Attributes:
        url: URL of the file with protocol and full path.
        size: file size in bytes.
        version: version of the file (ETag, generation or modification time) that the file system reports.
        storage: fsspec options of the file system as a JSON object.
    """

    url: str
    size: int
    version: str
    storage: str = "{}"

    @property
    def identity(self) -> dict[str, Any]:
        """Return URL, size and version of the shard (Parquet file of captions).

        Cached counts are not used if one of the three values has changed.
        """
        return {"url": self.url, "size": self.size, "version": self.version}


@dataclass(frozen=True)
class ShardCounts:
    """The counts of one shard (Parquet file of captions).

    Attributes:
        captions: number of rows with a caption.
        nulls: number of rows without a caption.
        content: SHA-256 hash of the sequence of captions. Two shards with the same captions have the same hash.
        counts: number of captions that mention each concept.
    """

    captions: int
    nulls: int
    content: str
    counts: tuple[int, ...]


def list_shards(urls: Iterable[str], storage: Mapping[str, Any] | None = None) -> list[Shard]:
    """Return the Parquet files that match ``urls``, without duplicates, sorted by URL.

    Symbolic links to files and to folders are followed.

    Args:
        urls: files, folders or patterns with ``*``, local or remote, as fsspec accepts them: ``shards/``,
            ``shards/*.parquet`` or ``s3://bucket/part-*.parquet``. A folder stands for all files ``*.parquet`` in the
            folder and its subfolders; a pattern may match folders.
        storage: fsspec options of the file system, such as ``{"anon": True}`` for public S3 buckets.

    Raises:
        ValueError: a URL matches no Parquet file, or the Python package for the protocol of a URL is not installed.
    """
    shards: dict[str, Shard] = {}
    for url in urls:
        matches = list(_expand(url, dict(storage or {})))
        if not matches:
            raise ValueError(
                f"{url} matches no Parquet file: pass *.parquet files, folders with such files, or patterns."
            )
        shards |= {shard.url: shard for shard in matches}
    return [shards[url] for url in sorted(shards)]


def _expand(url: str, storage: dict[str, Any], parents: frozenset[str] = frozenset()) -> Iterator[Shard]:
    """Yield the shards (Parquet files) for one of the ``urls`` of :func:`list_shards`.

    ``parents`` are the folders whose symbolic links led to ``url``; a link to a parent is not followed.
    """
    try:
        system, path = url_to_fs(url if "://" in url else os.path.abspath(url), **storage)
        if any(character in path for character in "*?[") and not system.exists(path):
            infos = _match(system, path)
            names = [name for name in infos if not _is_hidden(name, path)]
        elif system.isdir(path):
            infos = system.find(path, detail=True)
            pattern = path.rstrip("/") + "/"
            names = [
                name
                for name, info in infos.items()
                if (name.endswith(".parquet") or _is_linked_folder(name, info)) and not _is_hidden(name, pattern)
            ]
        else:
            infos = {path: system.info(path)} if system.exists(path) else {}
            names = list(infos)
        infos = {name: _resolve_link(name, infos[name]) for name in names}
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename or url} is a broken link: repair or remove it.") from None
    except Exception as error:  # fsspec file systems raise exceptions of many types
        raise ValueError(f"{url} cannot be listed ({first_line(error)}): check the URL and --storage.") from None
    for name, info in infos.items():
        if info["type"] == "directory":
            parents |= {os.path.realpath(path)}
            if os.path.realpath(name) not in parents:  # a link to a parent would be a loop
                yield from _expand(system.unstrip_protocol(name), storage, parents)
        else:
            version = next((str(info[key]) for key in _VERSION_FIELDS if info.get(key)), "")
            yield Shard(system.unstrip_protocol(name), info["size"], version, json.dumps(storage, sort_keys=True))


def _match(system: AbstractFileSystem, pattern: str) -> dict[str, dict[str, Any]]:
    """Return the paths of all files and folders that match ``pattern``, with the information from fsspec."""
    if not isinstance(system, LocalFileSystem):
        return system.glob(pattern, detail=True)
    names = glob.glob(pattern, recursive=True, include_hidden=True)  # unlike fsspec, glob searches linked folders
    return {name: system.info(name) for name in names}


def _is_linked_folder(name: str, info: Mapping[str, Any]) -> bool:
    return bool(info.get("islink")) and os.path.isdir(name)


def _is_hidden(name: str, pattern: str) -> bool:
    """Return True if the file ``name``, which matches ``pattern``, is hidden or temporary by the conventions of Spark.

    A file is hidden if a part of its path begins with ``.`` or ``_``. Parts that ``pattern`` contains literally, and
    Hive partitions (``_x=...``), do not make a file hidden. If ``pattern`` is a folder, it must end in ``/``.
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
    """If ``name`` is a symbolic link, return ``info`` with the type, size and modification time of the link's target.

    If ``name`` is not a symbolic link, ``info`` is returned unchanged. The cache of the Hugging Face Hub, for example,
    contains symbolic links.

    Raises:
        FileNotFoundError: the target of the link does not exist.
    """
    if info["type"] in ("file", "directory") and not info.get("islink"):
        return info
    target = os.stat(name)
    kind = "directory" if S_ISDIR(target.st_mode) else "file"
    return info | {"type": kind, "size": target.st_size, "mtime": target.st_mtime}


def read_captions(shard: Shard, column: str, batch_size: int = BATCH_SIZE) -> Iterator[pa.Array]:
    """Yield the captions of a Parquet file in arrays of at most ``batch_size`` rows; rows without a caption are null.

    Only the column with the captions is read, one Parquet row group at a time.

    Raises:
        ValueError: the shard cannot be read, or ``column`` is missing or does not contain strings.
    """
    try:
        system, path = url_to_fs(shard.url, **json.loads(shard.storage))
        # The cache of fsspec is disabled: Arrow reads whole column chunks, and the cache would read unneeded bytes.
        with system.open(path, "rb", cache_type="none") as file, pq.ParquetFile(file, pre_buffer=True) as parquet:
            _check_column(shard, parquet.schema_arrow, column)
            for group in range(parquet.num_row_groups):
                for part in parquet.iter_batches(batch_size, [group], [column], use_threads=False):
                    yield part.column(0).cast(pa.string())
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ValueError(
            f"{shard.url} cannot be read as Parquet ({first_line(error)}): replace or remove it."
        ) from None
    except ValueError:
        raise
    except Exception as error:  # raised as ValueError, because some exceptions of file systems cannot be pickled
        raise ValueError(f"{shard.url} cannot be read ({error!r}): check --storage and the network.") from None


def _check_column(shard: Shard, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        columns = ", ".join(schema.names)
        raise ValueError(f"{shard.url} has no column {column!r} (its columns: {columns}): set --column.")
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (is_text or pa.types.is_null(kind)):  # a column that contains only nulls has the type null
        raise ValueError(f"{shard.url} has {kind} in the column {column!r}, not strings: set --column.")


@lru_cache(maxsize=1)
def _counter(forms: Patterns, concepts: int) -> BatchCounter:
    return BatchCounter(forms, concepts)


def count_shard(shard: Shard, column: str, forms: Patterns, concepts: int) -> ShardCounts:
    """Return the counts of one shard (Parquet file of captions), computed on one CPU core.

    Args:
        shard: Parquet file of captions.
        column: name of the column that contains the captions.
        forms: spelling variants of all names, from :func:`experiments.counting.matcher.patterns`.
        concepts: number of concepts.

    Raises:
        ValueError: the shard cannot be read, or ``column`` is missing or does not contain strings.
    """
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
    """Update the hash ``content`` with the lengths and the bytes of the captions."""
    _, offsets, text = captions.buffers()
    if len(captions):
        bounds = np.frombuffer(offsets, np.int32)[captions.offset : captions.offset + len(captions) + 1]
        content.update(np.diff(bounds).tobytes())
        content.update(memoryview(text or b"")[bounds[0] : bounds[-1]])
