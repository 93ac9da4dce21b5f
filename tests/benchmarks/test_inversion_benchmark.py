"""The inversion benchmark reports the correct numbers of network evaluations. Measured times are not tested."""

import sys

import pytest

from benchmarks.inversion import Case, main, measure, seed_only_methods

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("method", "nfe", "backward"), [("ddim", 1, 0), ("rnri_paper", 2, 1)])
def test_evaluation_counts(method, nfe, backward):
    result = measure(Case(method, 2, 4, 1.0, "assets/models/emoji", "cpu", "float32"))
    assert result["nfe"] == nfe and result["backward"] == backward
    assert result["seconds"] > 0 and result["ratio"] > 0 and result["memory"] >= 0


def test_default_methods_are_all_seed_only_methods():
    assert {"renoise", "renoise_one_window", "rnri_sign", "accelerated"} <= set(seed_only_methods())
    assert not {"edict", "null_text", "edit_friendly"} & set(seed_only_methods())


def test_command_measures_a_case_in_a_separate_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inversion", "--methods", "ddim", "--batches", "2", "--steps", "2"])
    main()
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["method", "batch", "steps"]
    assert line.split()[:5] == ["ddim", "2", "2", "1.00", "0.00"]
