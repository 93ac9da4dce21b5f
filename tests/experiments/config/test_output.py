"""Output of the commands to terminals whose encoding is not UTF-8."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments.config.output import replace_unencodable
from tests.test_architecture import imports

COMMANDS = [Path("train.py"), Path("tools/__init__.py"), *sorted(Path("benchmarks").glob("*.py"))]
"""Modules of commands outside of the package ``experiments``, and the modules that these commands share."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_table_with_other_characters_is_printed(tmp_path, environment):
    rows = [{"rater": "ada", "item": "a", "shown": ["plain", "λ = 1"], "choice": "λ = 1"}]
    pd.DataFrame(rows).to_parquet(tmp_path / "ratings.parquet")
    finished = subprocess.run(
        [sys.executable, "-m", "experiments.reporting.human_ratings", str(tmp_path)],
        capture_output=True,
        env=os.environ | environment,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert b"| ? = 1 | 100.0 (100" in finished.stdout and not finished.stderr


def test_lone_surrogates_and_missing_streams(monkeypatch):
    for encoding, expected in (("ascii", b"caf? ?"), ("utf-8", "café ?".encode())):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="surrogateescape")
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", None)
        replace_unencodable()
        print("café \ud800", end="", flush=True)
        assert stream.buffer.getvalue() == expected


def test_commands_outside_of_experiments_import_experiments():
    sources = {".".join(path.with_suffix("").parts): path.read_text(encoding="utf-8") for path in COMMANDS}
    modules = {name: imports(source) for name, source in sources.items()}
    direct = {name for name, names in modules.items() if any(each.split(".")[0] == "experiments" for each in names)}
    others = {name for name, names in modules.items() if name not in direct and not names & direct}
    assert direct
    assert others == {"benchmarks.random_checkpoints"}
    assert "__main__" not in sources["benchmarks.random_checkpoints"]  # no command: other modules import this module
