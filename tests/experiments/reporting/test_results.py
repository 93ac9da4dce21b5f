"""The result files of a run are written correctly."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.naming import metric_name
from experiments.reporting import results
from experiments.reporting.figures import image_grid
from experiments.reporting.results import Report
from experiments.reporting.tables import Column, Table

ACCURACY = Column("accuracy", "accuracy, %", "higher", scale=100)
FILES = {"results.json", "samples.parquet", "table.md", "table.tex", "table.csv", "concepts.csv"}
"""Files that are written before the figures."""


def draw_grid():
    return image_grid([("camel", [np.zeros((3, 8, 8), np.uint8), None])], ["x", "y"], "title")


def report(figures):
    rows = [{"method": "plain", "bucket": "tail", "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}]
    tables = [Table(rows, [Column("method", "method"), ACCURACY])]
    samples = [{"sample": "a/0"}]
    return Report(
        rows=rows, settings={}, samples=samples, tables=tables, figures=figures, values=[ACCURACY],
        extra_tables={"concepts": [{"concept": "owl", "n": 4}]}, bounds=["vae"],
    )  # fmt: skip


def test_results_are_strict_json(tmp_path):
    results.write_results(tmp_path, [{"fid": float("nan"), "n": 3, "low": float("-inf")}], {"steps": 20})
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["rows"] == [{"fid": None, "n": 3, "low": None}]
    assert content["settings"] == {"steps": 20} and "torch" in content["versions"]


def test_numpy_and_torch_scalars_are_json(tmp_path):
    rows = [{"n": np.int64(3), "ok": np.bool_(True), "mse": torch.tensor(float("inf")), "names": ("a", np.float32(2))}]
    results.write_results(tmp_path, rows, {})
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == [
        {"n": 3, "ok": True, "mse": None, "names": ["a", 2.0]}
    ]


def test_samples_can_be_read_back(tmp_path):
    results.write_samples(tmp_path, [{"sample": "a/0", "correct": True}, {"sample": "a/1", "correct": False}])
    assert pd.read_parquet(tmp_path / "samples.parquet")["correct"].tolist() == [True, False]


def test_failing_figure_does_not_affect_other_files(tmp_path, capsys):
    def fail():
        raise RuntimeError("no such font")

    with pytest.warns(UserWarning, match=r"figures/first could not be drawn \(RuntimeError: no such font\)"):
        report({"figures/first": fail, "images/second": draw_grid}).write(tmp_path, [])
    for name in ("images/second.png", "images/second.pdf", "report.html", *FILES):
        assert (tmp_path / name).stat().st_size > 0
    assert not (tmp_path / "figures").exists() and "| plain  |" in capsys.readouterr().out


def test_figures_are_written_last(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report({"figures/first": interrupt}).write(tmp_path, [])
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_tables_are_written_in_all_formats(tmp_path):
    report({}).write(tmp_path, [])
    assert (tmp_path / "table.md").read_text().splitlines()[-1] == "| plain  | 50.0 (40–60)  |"
    assert r"plain & 50.0 (40--60) \\" in (tmp_path / "table.tex").read_text()
    assert (tmp_path / "table.csv").read_text().splitlines() == [
        "method,bucket,accuracy,accuracy_low,accuracy_high", "plain,tail,0.5,0.4,0.6"
    ]  # fmt: skip
    assert (tmp_path / "concepts.csv").read_text() == "concept,n\nowl,4\n"
    assert "50.0 (40–60)" in (tmp_path / "report.html").read_text()


def test_results_describe_their_rows(tmp_path):
    report({}).write(tmp_path, [])
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["identity"], content["bounds"]) == (["method", "bucket"], ["vae"])
    assert [Column(**column) for column in content["values"]] == [ACCURACY]


def test_tables_have_at_most_seven_columns():
    columns = [Column(str(k), str(k)) for k in range(8)]
    with pytest.raises(ValueError, match="a table has at most 7 columns, got 0, 1, 2, 3, 4, 5, 6, 7; remove some"):
        Report(rows=[], settings={}, samples=[], tables=[Table([], columns)], figures={})


def test_versions_do_not_require_git_or_all_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(results, "PACKAGES", ("torch", "no-such-package"))
    versions = results.versions()
    assert versions["commit"] == versions["no-such-package"] == "unknown" and versions["torch"] != "unknown"


def test_logger_keys_follow_from_the_row():
    row = {"method": "rnri", "steps": 50, "guidance": 7.5, "nfe": None, "prompt": "caption", "generated": True}
    assert metric_name(row, list(row), "psnr") == "rnri/steps_50/guidance_7_5/caption/generated/psnr"


def test_equal_rows_of_different_methods_are_named(tmp_path, capsys):
    def row(method, psnr, steps=50, bucket="total", **other):
        return {"method": method, "steps": steps, "bucket": bucket, "psnr": psnr, **other}

    nan = float("nan")
    rows = [
        row("ddim", 20.0, seconds=1.0, fid=nan),
        row("direct", 20.0, seconds=2.0, fid=nan),  # all metrics are equal except for the time
        row("aidi", 20.5, seconds=1.0, fid=nan),
        row("edict", 20.0, seconds=1.0, fid=3.0),
        row("rnri", 20.0, steps=4, seconds=1.0, fid=nan),
        row("bdia", 20.0),  # has other figures
        row("x", 1.0, bucket="tail"),
        row("y", 1.0, bucket="tail"),
    ]
    identity = ("method", "steps", "bucket")
    sentence = "Rows whose metrics are all equal, except for times: (ddim, 50, total) = (direct, 50, total)."
    assert results.equal_rows(rows, identity) == sentence
    assert results.equal_rows(rows[1:], identity) == ""
    geometry = [row("mean", 1.0, inversion=name) for name in ("a", "b")]
    assert results.equal_rows(geometry, ("inversion", "method")).endswith(": (a, mean) = (b, mean).")
    Report(rows=rows, settings={}, samples=[], tables=[], figures={}, identity=identity).write(tmp_path, [])
    assert (tmp_path / "table.md").read_text() == f"{sentence}\n" and sentence in capsys.readouterr().out
