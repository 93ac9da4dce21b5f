"""The benchmark's figures are those of the inversion; its times are not tested."""

import subprocess
import sys

import pytest

from benchmarks.inversion import Case, measure, single_latent_methods


@pytest.mark.parametrize(("method", "nfe", "backward"), [("ddim", 1, 0), ("rnri_paper", 2, 1)])
def test_counts(method, nfe, backward):
    found = measure(Case(method, 2, 4, 1.0, "assets/models/emoji", "cpu", "float32"))
    assert found["nfe"] == nfe and found["backward"] == backward
    assert found["seconds"] > 0 and found["ratio"] > 0 and found["memory"] >= 0


def test_methods_that_are_variants_of_another_are_among_them():
    assert {"renoise", "renoise_one_window", "rnri_sign", "accelerated"} <= set(single_latent_methods())
    assert not {"edict", "null_text", "edit_friendly"} & set(single_latent_methods())


@pytest.mark.slow
def test_the_command_prints_a_line_a_case():
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.inversion", "--methods", "ddim", "--batches", "1", "2", "--steps", "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == 3
