"""Evaluation counts of the inversion benchmark; times are not tested."""

import subprocess
import sys

import pytest

from benchmarks.inversion import Case, measure, seed_only_methods


@pytest.mark.parametrize(("method", "nfe", "backward"), [("ddim", 1, 0), ("rnri_paper", 2, 1)])
def test_evaluation_counts(method, nfe, backward):
    result = measure(Case(method, 2, 4, 1.0, "assets/models/emoji", "cpu", "float32"))
    assert result["nfe"] == nfe and result["backward"] == backward
    assert result["seconds"] > 0 and result["ratio"] > 0 and result["memory"] >= 0


def test_default_methods_are_all_seed_only_methods():
    assert {"renoise", "renoise_one_window", "rnri_sign", "accelerated"} <= set(seed_only_methods())
    assert not {"edict", "null_text", "edit_friendly"} & set(seed_only_methods())


@pytest.mark.slow
def test_command_prints_one_line_per_case():
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.inversion", "--methods", "ddim", "--batches", "1", "2", "--steps", "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == 3
