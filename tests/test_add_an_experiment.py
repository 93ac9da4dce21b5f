"""The guide *Add an experiment*: its code blocks are written to files and executed."""

import json
import re
from itertools import takewhile
from pathlib import Path

import pandas as pd
import pytest
from hydra.utils import get_object

from experiments.base import Task
from tests.commands import composed, forked

PROJECT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((PROJECT / "configs" / "experiment").glob("*.yaml"))
PAGE = PROJECT / "docs" / "guides" / "add_an_experiment.md"


def blocks(language: str) -> list[str]:
    """Return the page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with the page's files after its commands were run."""
    folder = tmp_path_factory.mktemp("experiment")
    (task,), (config,), (commands,) = blocks("python"), blocks("yaml"), blocks("sh")
    (folder / "brightness.py").write_text(task)
    (folder / "configs" / "experiment").mkdir(parents=True)
    (folder / "configs" / "experiment" / "brightness.yaml").write_text(config)
    path, *starts, show = commands.splitlines()
    assert path == "export PYTHONPATH=.:$PROJECT"
    assert show == "cat runs/brightness/table.md"
    for start in starts:
        python, program, *overrides = start.split()
        assert (python, program) == ("python", "$PROJECT/train.py")
        finished = forked(*overrides, folder=folder)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        with (folder / "stdout").open("a") as file:
            file.write(finished.stdout)
    return folder


@pytest.mark.slow
def test_plan_counts_network_evaluations(folder):
    output = (folder / "stdout").read_text()
    assert "| images | 4 | 0 | 16 |" in output


@pytest.mark.slow
def test_run_writes_rows_samples_and_table(folder):
    run = folder / "runs" / "brightness"
    rows = json.loads((run / "results.json").read_text())["rows"]
    assert [row["n"] for row in rows] == [2, 2]
    assert all(0 < row["brightness"] < 1 for row in rows)
    assert len(pd.read_parquet(run / "samples.parquet")) == 4
    assert "| a drawing of a camel " in (run / "table.md").read_text()


def test_config_starts_with_its_description():
    (config,) = blocks("yaml")
    package, description, *_ = config.splitlines()
    assert package == "# @package _global_"
    assert re.fullmatch(r"# [A-Z].*\.", description)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted((PROJECT / "configs" / "experiment").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_experiment_is_a_task_with_a_description(path):
    package, *lines = path.read_text().splitlines()
    assert package == "# @package _global_"
    description = " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("# "), lines))
    assert re.fullmatch(r"[A-Z].*\.", description)
    assert issubclass(get_object(composed(f"experiment={path.stem}").task._target_), Task)
