"""Print the content of a W&B run from its local files, without a server: ``python -m tools.inspect_wandb RUN``.

``RUN`` is the folder of a run, such as ``runs/rare_concepts``. If the run was interrupted and resumed, the output has
one section for each start of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from wandb.proto import wandb_internal_pb2

BLOCK_SIZE = 32768
FILE_HEADER_SIZE = 7
CHUNK_HEADER = struct.Struct("<IHB")
"""Format of the header of a chunk in a ``.wandb`` file: checksum, length and type.

A ``.wandb`` file is a LevelDB log, which consists of a file header and of blocks of chunks. A record is stored in one
or several chunks.
"""
FULL = 1
LAST = 4
"""``FULL`` and ``LAST`` are the types of chunks that end a record."""


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a ``.wandb`` file as W&B's protobuf messages. An incomplete record at the end is omitted.

    Raises:
        ValueError: ``path`` is not a ``.wandb`` file, or a record is damaged.
    """
    content = path.read_bytes()
    if not content.startswith(b":W&B"):
        raise ValueError(f"{path} is not a W&B file: pass the folder of a run with logger=wandb.")
    position = FILE_HEADER_SIZE
    chunks = b""
    while position + CHUNK_HEADER.size <= len(content):
        rest = BLOCK_SIZE - position % BLOCK_SIZE
        if rest < CHUNK_HEADER.size:  # the rest of the block is padding
            position += rest
            continue
        _, length, chunk_type = CHUNK_HEADER.unpack_from(content, position)
        position += CHUNK_HEADER.size + length
        if position > len(content):
            return
        chunks += content[position - length : position]
        if chunk_type in (FULL, LAST):
            try:
                record = wandb_internal_pb2.Record.FromString(chunks)
            except DecodeError:
                raise ValueError(f"{path} is damaged: copy the file again.") from None
            yield record
            chunks = b""


def summarize(path: Path) -> str:
    """Return a summary of a W&B run: its name, state, config keys, metrics, tables and images."""
    header: list[str] = []
    config: list[str] = []
    metrics: dict[str, list[Any]] = {}
    media: dict[str, list[dict[str, Any]]] = {}
    state = "killed, or still running"
    for record in records(path):
        record_type = record.WhichOneof("record_type")
        if record_type == "run":
            run = record.run
            header.append(f"run {run.run_id}: {run.display_name}, group {run.run_group}, job type {run.job_type}")
            config += _config_keys(run.config)  # config keys whose values a W&B sweep has chosen
        elif record_type == "config":
            config += _config_keys(record.config)
        elif record_type == "history":
            for name, value in _history_row(record.history).items():
                (media if isinstance(value, dict) else metrics).setdefault(name, []).append(value)
        elif record_type == "exit":
            state = "finished" if record.exit.exit_code == 0 else "failed, or stopped"
    steps = metrics.get("trainer/global_step", [])
    span = f" at steps {steps[0]:g} to {steps[-1]:g}" if steps else ""
    return "\n".join(
        [
            *header,
            f"state: {state}",
            f"config: {', '.join(dict.fromkeys(config))}",
            f"last values of the metrics{span}:",
            *_metric_lines(metrics),
            *_media_lines(path.parent / "files", media),
        ]
    )


def _config_keys(config: Any) -> list[str]:
    return [update.key for update in config.update if not update.key.startswith("_")]


def _history_row(history: Any) -> dict[str, Any]:
    """Return the values that were logged in one step, by the name of the value.

    The value of a metric is a number. The value of a table or an image is a dictionary.
    """
    row: dict[str, Any] = {}
    for item in history.item:
        name, *inner = item.nested_key or [item.key]
        if inner:
            row.setdefault(name, {})[inner[0]] = json.loads(item.value_json)
        else:
            row[name] = json.loads(item.value_json)
    return row


def _metric_lines(metrics: dict[str, list[Any]]) -> Iterator[str]:
    for name, values in sorted(metrics.items()):
        if not name.startswith(("_", "trainer/")):
            count = f" ({len(values)} values)" if len(values) > 1 else ""
            last = values[-1]
            yield f"  {name} = {f'{last:.4g}' if isinstance(last, int | float) else last}{count}"


def _media_lines(files: Path, media: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Yield one line of text per table, followed by one line per image."""
    last = {name: entries[-1] for name, entries in sorted(media.items())}
    for name, entry in last.items():
        if entry["_type"] == "table-file":
            columns = json.loads((files / entry["path"]).read_text(encoding="utf-8"))["columns"]
            yield f"table {name}, {entry['nrows']} rows: {', '.join(columns)}"
    for name, entry in last.items():
        if entry["_type"] != "table-file":
            yield f"image {name}: {', '.join(entry['filenames'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    folder = parser.parse_args().run
    files = (path for path in folder.glob("**/*run-*/run-*.wandb") if path.is_file())
    paths = sorted(files, key=lambda path: path.parent.name)
    if not paths:
        sys.exit(
            f"error: {folder} contains no W&B run: pass the folder of a run that was started with logger=wandb "
            "logger.wandb.offline=true."
        )
    try:
        print("\n\n".join(map(summarize, paths)), flush=True)
    except BrokenPipeError:  # a program that reads the output, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # prevents an error when Python flushes stdout
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
