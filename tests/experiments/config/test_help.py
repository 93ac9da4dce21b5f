"""``python train.py --help`` lists the experiments, and the keys of one experiment with a description each."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.config.help import experiment_help, file_comments, general_help, header_comment

DURATION = re.compile(r"\((estimate: )?\d+ (seconds|minutes?|hours) on (one|two) CPU cores?\)|\(not measured\)")
EXPERIMENTS = sorted(path.stem for path in Path("configs/experiment").glob("*.yaml"))


def test_general_help_lists_experiments_and_groups():
    text = general_help()
    assert all(f"  {name}" in text for name in [*EXPERIMENTS, "model", "method", "trainer"])
    assert 'eval "$(python train.py -sc install=bash)"' in text


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_has_a_description(experiment):
    assert len(header_comment(Path(f"configs/experiment/{experiment}.yaml"))) > 20


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_description_has_one_duration(experiment):
    assert len(DURATION.findall(header_comment(Path(f"configs/experiment/{experiment}.yaml")))) == 1


def test_experiment_help_describes_keys_from_comments_and_docstrings():
    text = experiment_help(["experiment=rare_concepts", "task.steps=7"])
    assert "task.steps=7\n    number of sampling steps" in text  # a comment of the config
    assert "select.iterations=3\n    " in text  # the docstring of SeedSelect


def test_comments_of_a_file_have_full_keys(tmp_path):
    (tmp_path / "a.yaml").write_text("# header\nx:  # an x\n  y: 1  # a y\nz: '#'\n")
    assert file_comments(tmp_path / "a.yaml", "task") == {"task.x": "an x", "task.x.y": "a y"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--help"], "Experiments (default: rare_concepts)"),
        (["experiment=typo"], "experiment=typo does not exist; choose from augmentation"),
        (["task.stps=3"], "task.stps: unknown key; nearest: steps"),
        (["+task.stps=3"], "task.stps: unknown key of RareConceptsExperiment; nearest: steps"),
        (["model=nosuch"], "model=nosuch does not exist; choose from"),
        (["task.steps=abc"], "task.steps: Input should be a valid integer, got 'abc'."),
    ],
)
def test_command_prints_help_or_one_line_error(arguments, message):
    command = [sys.executable, "train.py", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert message in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr


def test_console_script_runs_from_any_folder(tmp_path):
    command = [sys.executable, "-c", "from experiments.cli import main; main()", "experiment=typo"]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert finished.returncode == 1 and finished.stderr.startswith("error: experiment=typo does not exist")
