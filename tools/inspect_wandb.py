"""What a run at W&B holds, from its own files and without a server: ``python -m tools.inspect_wandb RUN``.

``RUN`` is a run's folder, as ``runs/rare_concepts``; every time that it was begun has a section, in their order.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEAD, PART = 32768, 7, struct.Struct("<IHB")
"""W&B's files are LevelDB's logs: blocks of parts, each behind its checksum, length and kind, after seven bytes."""
WHOLE, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file as W&B's own messages; of a run that was killed those that are whole.

    Raises:
        ValueError: it is no such file.
    """
    content = path.read_bytes()
    if not content.startswith(b":W&B"):
        raise ValueError(f"{path} is no file of W&B's: name the folder of a run with logger=wandb.")
    at, parts = HEAD, b""
    while at + PART.size <= len(content):
        rest = BLOCK - at % BLOCK
        if rest < PART.size:  # padding
            at += rest
            continue
        _, length, kind = PART.unpack_from(content, at)
        at += PART.size + length
        if at > len(content):
            return
        parts += content[at - length : at]
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def describe(path: Path) -> str:
    """Who the run is, its config's keys, its curves, its tables with their columns, its pictures and how it ended."""
    lines, config, curves, media, ended = [], [], {}, {}, "was killed, or is at work"
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            lines.append(f"run {run.run_id}: {run.display_name}, group {run.run_group}, job type {run.job_type}")
        if kind in ("run", "config"):  # the first holds what a sweep sets
            given = record.config if kind == "config" else record.run.config
            config += [update.key for update in given.update if not update.key.startswith("_")]
        elif kind == "history":
            for name, value in _row(record.history).items():
                (media if isinstance(value, dict) else curves).setdefault(name, []).append(value)
        elif kind == "exit":
            ended = "finished" if record.exit.exit_code == 0 else "failed, or was stopped"
    steps = curves.get("trainer/global_step", [])
    span = f" at steps {steps[0]:g} to {steps[-1]:g}" if steps else ""
    lines += [f"it {ended}", f"config: {', '.join(dict.fromkeys(config))}", f"values{span}, the last of each:"]
    lines += [
        f"  {name} = {own[-1]:.4g}" + (f" ({len(own)} values)" if len(own) > 1 else "")
        for name, own in sorted(curves.items())
        if not name.startswith(("_", "trainer/"))
    ]
    return "\n".join([*lines, *_media(path.parent / "files", media)])


def _row(history: Any) -> dict[str, Any]:
    """Numbers by their names; of tables and pictures their properties."""
    row: dict[str, Any] = {}
    for item in history.item:
        name, *inner = item.nested_key or [item.key]
        if inner:
            row.setdefault(name, {})[inner[0]] = json.loads(item.value_json)
        else:
            row[name] = json.loads(item.value_json)
    return row


def _media(files: Path, media: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    for name, logged in sorted(media.items(), key=lambda own: (own[1][-1]["_type"] != "table-file", own[0])):
        last = logged[-1]
        if last["_type"] == "table-file":
            columns = json.loads((files / last["path"]).read_text())["columns"]
            yield f"table {name}, {last['nrows']} rows: {', '.join(columns)}"
        else:
            yield f"picture {name}: {', '.join(last['filenames'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    folder = parser.parse_args().run
    paths = sorted(folder.glob("**/*run-*/run-*.wandb"), key=lambda path: path.parent.name)
    if not paths:
        sys.exit(f"error: {folder} holds no run of W&B's: run with logger=wandb logger.wandb.offline=true.")
    try:
        print("\n\n".join(map(describe, paths)))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
