"""Disks that break in the middle of a whole run: one sentence, nothing finished is lost, the same command goes on."""

import errno
import json
import os
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from experiments.cache import atomic as files
from experiments.cache.atomic import CannotWrite
from experiments.config.errors import explain
from experiments.reporting.results import log_metrics
from tests.experiments.tiny_configs import NAO, PLAIN, carried_out, rare_concepts, tiny

PLACES = ("seeds/", "units/nao", "results.json", "images/")
"""In the order in which a run writes them; what lies between is written by the same function."""


@pytest.fixture
def breaking(monkeypatch):
    """Lets the first write below one of ``PLACES`` fail, where the complete file is moved to its name."""
    place, replace = [], os.replace

    def broken(source, target):
        if place and f"run/{place[0]}" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", broken)
    return place


def rows(folder):
    found = json.loads((folder / "run" / "results.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name not in ("t_init", "t_opt")} for row in found]


def written(folder, *parts):
    paths = [path for part in parts for path in (folder / "run" / part).rglob("*.safetensors")]
    return {path: path.stat().st_mtime_ns for path in paths}


def test_a_full_disk_loses_nothing_wherever_a_run_writes(tmp_path, breaking):
    arms, model = {"plain": PLAIN, "nao": NAO}, tiny()

    def job(folder):
        carried_out(rare_concepts(folder, arms, model=lambda *_, **__: model))

    job(tmp_path / "alone")
    for place in PLACES:
        before = written(tmp_path, "units", "seeds")
        breaking[:] = [place]
        with pytest.raises(
            CannotWrite, match=rf"run/{place}\S* cannot be written \(No space left on device\): make room"
        ):
            job(tmp_path)
        assert before.items() <= written(tmp_path, "units", "seeds").items()
        assert not [path for path in (tmp_path / "run").rglob(".*") if path.is_file()]
    breaking.clear()
    job(tmp_path)
    assert rows(tmp_path) == rows(tmp_path / "alone")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room"), (errno.EROFS, "make it writable"), (errno.ESTALE, "bring its disk back")],
)
def test_a_file_that_a_library_could_not_write_is_said_with_what_helps(number, remedy):
    said = explain(OSError(number, os.strerror(number), "runs/a/metrics.csv"))
    assert said.startswith(
        f"the file runs/a/metrics.csv cannot be used ({os.strerror(number)}): {remedy}, and run the "
    )
    assert explain(OSError(number, os.strerror(number))).startswith("a file of run_dir cannot be used (")
    assert explain(OSError("the disk is odd")) == "the disk is odd"


def test_a_table_of_a_logger_on_a_full_disk_is_an_error_that_the_command_explains(tmp_path, monkeypatch):
    """Lightning's loggers write by themselves."""
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
    assert "metrics.csv cannot be used (No space left on device): make room" in explain(caught.value)
