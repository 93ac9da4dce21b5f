"""If a disk fails during a run, the error has one line, finished units remain, and the same command resumes."""

import errno
import json
import os
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from experiments.cache import atomic
from experiments.cache.atomic import CannotWrite
from experiments.config.errors import one_line
from experiments.reporting.results import log_metrics
from tests.experiments.tiny_configs import NAO, PLAIN, rare_concepts, run_to_end, tiny

WRITES = ("seeds/", "units/nao", "results.json", "images/")
"""Paths in the order in which a run writes them; all other files are written by the same function."""


@pytest.fixture
def breaking(monkeypatch):
    """A list; the move of a complete file to a path that starts with its element fails."""
    failing: list[str] = []
    replace = os.replace

    def broken(source, target):
        if failing and f"run/{failing[0]}" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", broken)
    return failing


def rows(folder):
    rows = json.loads((folder / "run" / "results.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name not in ("t_init", "t_opt")} for row in rows]


def written(folder, *parts):
    paths = [path for part in parts for path in (folder / "run" / part).rglob("*.safetensors")]
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.slow
def test_full_disk_keeps_finished_units(tmp_path, breaking):
    arms = {"plain": PLAIN, "nao": NAO}
    model = tiny()

    def job(folder):
        run_to_end(rare_concepts(folder, arms, model=lambda *_, **__: model))

    job(tmp_path / "alone")
    for path in WRITES:
        before = written(tmp_path, "units", "seeds")
        breaking[:] = [path]
        with pytest.raises(
            CannotWrite, match=rf"run/{path}\S* cannot be written \(No space left on device\): (free|make)"
        ):
            job(tmp_path)
        assert before.items() <= written(tmp_path, "units", "seeds").items()
        assert not [path for path in (tmp_path / "run").rglob(".*") if path.is_file()]
    breaking.clear()
    job(tmp_path)
    assert rows(tmp_path) == rows(tmp_path / "alone")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "make it writable"), (errno.ESTALE, "restore its disk")],
)
def test_errors_of_libraries_name_the_file_and_a_remedy(number, remedy):
    message = one_line(OSError(number, os.strerror(number), "runs/a/metrics.csv"))
    assert message.startswith(
        f"the file runs/a/metrics.csv cannot be written ({os.strerror(number)}): {remedy} and run the "
    )
    assert one_line(OSError(number, os.strerror(number))).startswith("a file of run_dir cannot be written (")
    assert one_line(OSError("the disk is odd")) == "the disk is odd"


def test_full_disk_of_a_logger_is_explained(tmp_path, monkeypatch):
    """Lightning's loggers write files without our functions."""
    logger = CSVLogger(tmp_path, name="", version="")
    open_ = Path.open

    def full(path, *rest, **options):
        if path.name == "metrics.csv":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return open_(path, *rest, **options)

    monkeypatch.setattr(
        "fsspec.implementations.local.LocalFileSystem.open", lambda _, path, *__, **___: full(Path(path))
    )
    with pytest.raises(OSError, match="No space left") as caught:
        log_metrics([logger], [{"method": "plain", "bucket": "tail", "accuracy": 0.5}], ("method", "bucket"))
    assert "metrics.csv cannot be written (No space left on device): free some space" in one_line(caught.value)
