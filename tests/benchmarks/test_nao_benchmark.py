"""The benchmark runs on what it says; its times are not tested, but for the order of magnitude between them."""

import subprocess
import sys

from benchmarks.nao import measure


def test_the_published_procedure_takes_longer():
    found = measure(3, 1024, 2, points=8, repeats=2, iterations=300)
    assert found["ratio"] > 2 and found["processor"] > 0


def test_the_command_prints_a_line_a_case():
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.nao", "--seeds", "2", "--sizes", "64", "--batches", "1", "2",
         "--repeats", "1", "--iterations", "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == 3
