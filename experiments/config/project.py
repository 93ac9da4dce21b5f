"""Absolute paths of data and models in this repository.

A config refers to files of this repository as ``${project:PATH}``, for example ``${project:assets/emoji}``, so that the
working directory does not matter.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

PROJECT = Path(__file__).resolve().parents[2]


def project_path(path: str) -> str:
    """Return the absolute path of a file or folder; ``path`` is relative to the root of this repository."""
    return str(PROJECT / path)


def register() -> None:
    """Register the OmegaConf resolver ``${project:PATH}``, which returns ``project_path(PATH)``."""
    OmegaConf.register_new_resolver("project", project_path, replace=True)
