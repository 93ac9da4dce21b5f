"""The project's own data and models, found from any working directory: ``${project:assets/emoji}`` in a config."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

PROJECT = Path(__file__).resolve().parents[2]


def project_path(path: str) -> str:
    """The absolute path of a file or folder of the project; a user's own relative paths are left to the user."""
    return str(PROJECT / path)


def register() -> None:
    """Makes ``${project:...}`` known to OmegaConf."""
    OmegaConf.register_new_resolver("project", project_path, replace=True)
