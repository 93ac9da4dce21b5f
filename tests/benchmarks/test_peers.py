"""Both implementations of each pair compute the same result with the same number of network evaluations."""

import json
import sys

import pytest

from benchmarks import peers


@pytest.mark.slow
@pytest.mark.parametrize("name", peers.PAIRS)
def test_both_compute_the_same_with_equal_evaluations(name):
    result = peers.measure(name, 2, 1 if name == "reno" else 2, repeats=1)
    assert result.theirs_evaluations == result.ours_evaluations > 0
    assert result.difference < 1e-3
    assert result.theirs_ms > 0 and result.ours_ms > 0 and result.ratio > 0


@pytest.mark.slow
def test_command_prints_a_table_and_writes_json(monkeypatch, capsys, tmp_path):
    path = tmp_path / "peers.json"
    options = ["--pairs", "ddim", "--batches", "1", "2", "--steps", "2", "--repeats", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["peers", *options])
    assert peers.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.count("|") == 9 for line in lines)
    first, second = json.loads(path.read_text())
    assert first["pair"] == "ddim" and (first["batch"], second["batch"]) == (1, 2)
    assert first["theirs_evaluations"] == first["ours_evaluations"] == 2


def test_unequal_evaluations_fail(monkeypatch, capsys):
    timing = peers.PairTiming("ddim", 1, 2, 1.0, 1.0, 1.0, 2, 3, 0.0)
    monkeypatch.setattr(peers, "measure", lambda *_: timing)
    monkeypatch.setattr(sys, "argv", ["peers", "--pairs", "ddim", "--batches", "1"])
    assert peers.main() == 1
    assert "| 2, 3 |" in capsys.readouterr().out
