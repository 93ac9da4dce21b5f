"""Comparison of finished runs."""

import json
import sys
from dataclasses import asdict

import pytest

from experiments.reporting.compare import compare, main
from experiments.reporting.run import Run
from experiments.reporting.tables import Column

PSNR = Column("psnr", "PSNR, dB", "higher")
SHARE = Column("share", "share, %", scale=100)


def write_run(folder, rows, identity=("method", "steps"), **changes):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    content = {"rows": rows, "identity": identity, "values": [asdict(PSNR), asdict(SHARE)], "versions": {"torch": "2"}}
    (folder / "results.json").write_text(json.dumps(content | changes))
    return folder


def row(method, psnr, steps=4, **values):
    return {"method": method, "steps": steps, "psnr": psnr, **values}


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    main()


def error_of(monkeypatch, *arguments):
    with pytest.raises(SystemExit) as end:
        run_main(monkeypatch, *arguments)
    assert end.value.code.startswith("error: ") and "\n" not in end.value.code
    return end.value.code


def test_shared_rows_have_differences_to_the_first_run(tmp_path):
    first = write_run(tmp_path / "a", [row("ddim", 20.0, psnr_low=19.0, psnr_high=21.0), row("aidi", 21.0)])
    second = write_run(tmp_path / "b", [row("ddim", 22.5, share=0.5), row("aidi", 21.0, steps=50), row("x", 1.0)])
    third = write_run(tmp_path / "c", [row("ddim", 19.0)])
    table = compare([Run(first), Run(second), Run(third)])
    assert table.heads == ["metric", "method", "a", "b", "b − a", "c", "c − a"]
    assert table.cells == [
        ["PSNR, dB ↑", "ddim", "20 (19–21)", "22.5", "+2.5", "19", "-1"],
        ["share, %", "ddim", "–", "50.0", "–", "–", "–"],
    ]


def test_rows_are_labeled_by_the_columns_that_differ(tmp_path):
    rows = [row("ddim", 20.0), row("ddim", 25.0, steps=50)]
    runs = [Run(write_run(tmp_path / name, rows)) for name in "ab"]
    assert [cells[1] for cells in compare(runs).cells] == ["steps 4", "steps 50"]
    runs = [Run(write_run(tmp_path / name / "same", rows)) for name in "cd"]
    assert compare(runs).heads[2:4] == [f"{tmp_path}/c/same", f"{tmp_path}/d/same"]


def test_command_prints_the_table_and_writes_html(tmp_path, monkeypatch, capsys):
    folders = [write_run(tmp_path / name, [row("ddim", psnr)]) for name, psnr in (("a", 20.0), ("b", 21.0))]
    run_main(monkeypatch, *folders, "--html", tmp_path / "comparison.html")
    assert "| PSNR, dB ↑ | ddim   | 20  | 21  | +1    |" in capsys.readouterr().out
    assert "<td data-value" not in (html := (tmp_path / "comparison.html").read_text()) and "+1" in html


def test_command_names_the_settings_that_differ(tmp_path, monkeypatch, capsys):
    first, second = (write_run(tmp_path / name, [row("ddim", 20.0)]) for name in "ab")
    for folder, steps in ((first, 20), (second, 4)):
        (folder / "config.yaml").write_text(f"run_dir: {folder}\ntask: {{steps: {steps}, images: 8}}\n")
    run_main(monkeypatch, first, second)
    assert "Settings of a and b that differ: task.steps (20, 4).\n" in capsys.readouterr().out


def test_folders_that_are_no_finished_runs_are_refused(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a", [row("ddim", 20.0)])
    assert "because it has no config.yaml" in error_of(monkeypatch, run, tmp_path / "nowhere")
    unfinished = write_run(tmp_path / "b", [])
    assert "no rows of results" in error_of(monkeypatch, run, unfinished)
    (unfinished / "results.json").write_text("{")
    assert "cannot be read as JSON" in error_of(monkeypatch, run, unfinished)
    (unfinished / "results.json").unlink()
    assert "the run is not finished" in error_of(monkeypatch, run, unfinished)
    (unfinished / "results.json").write_text(json.dumps({"rows": [row("ddim", 20.0)]}))
    assert "has no section 'identity': an earlier version" in error_of(monkeypatch, run, unfinished)


def test_runs_that_cannot_be_compared_are_refused(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a", [row("ddim", 20.0)])
    assert "two or more folders" in error_of(monkeypatch, run)
    other = write_run(tmp_path / "b", [row("aidi", 20.0)])
    assert "no row in common" in error_of(monkeypatch, run, other)
    other = write_run(tmp_path / "c", [{"method": "ddim", "bucket": "tail"}], identity=("method", "bucket"))
    assert "compare runs of one experiment" in error_of(monkeypatch, run, other)
