"""Print what a W&B run contains, from its local files and without a server: ``python -m tools.inspect_wandb RUN``.

``RUN`` is a run's folder, such as ``runs/rare_concepts``. If the run was started several times, each start has its own
section.
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

from wandb.proto import wandb_internal_pb2

BLOCK_SIZE = 32768
FILE_HEADER_SIZE = 7
CHUNK_HEADER = struct.Struct("<IHB")
"""W&B writes LevelDB logs: blocks of chunks, each with checksum, length and type, after a file header."""
FULL = 1
LAST = 4
"""Chunk types that complete a record."""


def records(path: Path) -> Iterator[Any]:
    """Records of a ``.wandb`` file as W&B's protobuf messages; an incomplete record at its end is skipped.

    Raises:
        ValueError: it is not a ``.wandb`` file.
    """
    content = path.read_bytes()
    if not content.startswith(b":W&B"):
        raise ValueError(f"{path} is not a W&B file: give the folder of a run with logger=wandb.")
    position = FILE_HEADER_SIZE
    chunks = b""
    while position + CHUNK_HEADER.size <= len(content):
        rest = BLOCK_SIZE - position % BLOCK_SIZE
        if rest < CHUNK_HEADER.size:  # padding at the end of a block
            position += rest
            continue
        _, length, chunk_type = CHUNK_HEADER.unpack_from(content, position)
        position += CHUNK_HEADER.size + length
        if position > len(content):
            return
        chunks += content[position - length : position]
        if chunk_type in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(chunks)
            chunks = b""


def summarize(path: Path) -> str:
    """Summary of a ``.wandb`` file: the run, its state, config keys, metrics, tables and images."""
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
            config += _config_keys(run.config)  # values set by a sweep
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
    """One logged step: metrics by name; tables and images are mappings of their properties."""
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
            yield f"  {name} = {values[-1]:.4g}{count}"


def _media_lines(files: Path, media: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """One line per table, then one per image."""
    last = {name: entries[-1] for name, entries in sorted(media.items())}
    for name, entry in last.items():
        if entry["_type"] == "table-file":
            columns = json.loads((files / entry["path"]).read_text())["columns"]
            yield f"table {name}, {entry['nrows']} rows: {', '.join(columns)}"
    for name, entry in last.items():
        if entry["_type"] != "table-file":
            yield f"image {name}: {', '.join(entry['filenames'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    folder = parser.parse_args().run
    paths = sorted(folder.glob("**/*run-*/run-*.wandb"), key=lambda path: path.parent.name)
    if not paths:
        sys.exit(f"error: {folder} contains no W&B run: run with logger=wandb logger.wandb.offline=true.")
    try:
        print("\n\n".join(map(summarize, paths)), flush=True)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # lets Python's exit flush without error


if __name__ == "__main__":
    main()
