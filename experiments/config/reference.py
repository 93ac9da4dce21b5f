"""The config reference in the documentation: the keys in ``configs/``, their default values and their descriptions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from omegaconf import OmegaConf

from experiments.config.help import CONFIGS, config_keys, file_comments, header_comment

GROUPS: Mapping[str, str] = {
    "data": "The data set: `data=NAME`.",
    "model": "The text-to-image model: `model=NAME`.",
    "task": "The settings of one type of experiment. Every experiment selects one of these configs.",
    "trainer": "The options of Lightning's `Trainer`. A training uses `fit`, any other experiment uses `default`.",
    "logger": "The logger: `logger=NAME`.",
    "arm": "An arm is one of the compared pipelines of an experiment on rare concepts: `+arm@task.arms.MY_NAME=NAME`.",
    "method": "The inversion method of an arm or of a comparison: `+method@task.methods.MY_NAME=NAME`.",
    "group_select": "The joint optimization of the seeds of a prompt: `group_select@select=NAME`.",
    "seed_init": "How an arm computes its initial seeds from the inverted references: `seed_init=NAME`.",
    "optimizer": "The optimizer of SeedSelect: `optimizer@select.optimizer=NAME`.",
    "lr_schedule": "The schedule of SeedSelect's learning rate: `lr_schedule@select.schedule=NAME`.",
}
"""Descriptions of the config groups in the config reference."""
PREFIXED = ("data", "model", "task", "trainer")
"""Config groups whose keys begin with the name of the group, such as ``data.``."""


def config_reference() -> str:
    """Return the config reference as a Markdown page."""
    experiments = [
        f"- `{path.stem}`: {escape(header_comment(path))}" for path in sorted((CONFIGS / "experiment").glob("*.yaml"))
    ]
    lines = [
        "# Config keys",
        "",
        "This page is generated from the comments in `configs/` and from docstrings. The command",
        "`python train.py experiment=NAME --help` prints the keys of one experiment with their values.",
        "`???` is a value that must be set. `${key}` is the value of another key.",
        "",
        "## Top-level keys",
        "",
        *_table(CONFIGS / "train.yaml", ""),
        "",
        "## Experiments",
        "",
        "The key `experiment` selects one of these configs:",
        "",
        *experiments,
        "",
    ]
    for group, description in GROUPS.items():
        lines += [f"## {group}", "", description, ""]
        for path in sorted((CONFIGS / group).glob("*.yaml")):
            lines += [f"### {group}: {path.stem}", "", escape(header_comment(path)), ""]
            lines += [*_table(path, f"{group}." if group in PREFIXED else ""), ""]
    lines += [
        "## Web page",
        "",
        "The keys of `python -m experiments.app`:",
        "",
        *_table(CONFIGS / "app.yaml", ""),
    ]
    return "\n".join(lines) + "\n"


def described_keys(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the key, the default value and the description of each key of a config file.

    The description of a key is the comment after the key. Without a comment, the description is the first sentence
    about the key in the docstring of the class or function that receives the value as an argument.
    """
    config = OmegaConf.load(path)
    for name in ("defaults", "hydra"):
        config.pop(name, None)
    yield from config_keys(config, "", file_comments(path, ""), {})


def _table(path: Path, prefix: str) -> list[str]:
    """Return the lines of a Markdown table of the keys in a config file, or no lines if the file has no keys."""
    rows = [f"| `{prefix}{key}` | `{_cell(value)}` | {escape(text)} |" for key, value, text in described_keys(path)]
    return ["| key | default | description |", "|---|---|---|", *rows] if rows else []


def _cell(value: str) -> str:
    return value.replace("|", "\\|") or '""'


def escape(text: str) -> str:
    """Escape the characters outside of code spans that have a special meaning in Markdown."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<|\[\]])", r"\\\1", part) for part in parts)
