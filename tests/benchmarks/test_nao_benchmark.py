"""The NAO benchmark runs, and the published procedure takes longer; other times are not tested."""

import subprocess
import sys

from benchmarks.nao import measure


def test_published_procedure_takes_longer():
    result = measure(3, 1024, 2, num_points=8, repeats=2, iterations=300)
    assert result["ratio"] > 2 and result["cpu"] > 0


def test_command_prints_one_line_per_case():
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.nao", "--seeds", "2", "--sizes", "64", "--batches", "1", "2",
         "--repeats", "1", "--iterations", "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == 3
