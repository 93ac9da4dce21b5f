"""The NAO benchmark runs, and the published procedure takes longer than this project. Other times are not tested."""

import sys

from benchmarks.nao import main, measure


def test_published_procedure_takes_longer():
    result = measure(3, 1024, 2, num_points=8, repeats=2, iterations=300)
    assert result["ratio"] > 2 and result["cpu"] > 0


def test_command_prints_one_line_per_case(monkeypatch, capsys):
    options = ["--seeds", "2", "--sizes", "64", "--batches", "1", "2", "--repeats", "1", "--iterations", "0"]
    monkeypatch.setattr(sys, "argv", ["nao", *options])
    main()
    assert len(capsys.readouterr().out.splitlines()) == 3
