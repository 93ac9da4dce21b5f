"""The project's own data and models, found from any working directory: ``${embedded:assets/emoji}`` in a config."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

PROJECT = Path(__file__).resolve().parents[2]


def embedded(path: str) -> str:
    """The absolute path of a file or folder of the project; a user's own relative paths are left to the user."""
    return str(PROJECT / path)


def register() -> None:
    """Makes ``${embedded:...}`` known to OmegaConf."""
    OmegaConf.register_new_resolver("embedded", embedded, replace=True)
