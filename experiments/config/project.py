"""Paths of the project's own data and models, from any working directory: ``${project:assets/emoji}`` in a config."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

PROJECT = Path(__file__).resolve().parents[2]


def project_path(path: str) -> str:
    """Return the absolute path of a file or folder of the project."""
    return str(PROJECT / path)


def register() -> None:
    """Register the resolver ``${project:...}`` with OmegaConf."""
    OmegaConf.register_new_resolver("project", project_path, replace=True)
