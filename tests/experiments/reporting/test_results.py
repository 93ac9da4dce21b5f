"""Result files of a run."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.naming import metric_name
from experiments.reporting import results
from experiments.reporting.figures import image_grid
from experiments.reporting.results import Report


def draw_grid():
    return image_grid([("camel", [np.zeros((3, 8, 8), np.uint8), None])], ["x", "y"], "title")


def report(figures):
    rows = [{"method": "plain", "bucket": "tail", "accuracy": 0.5}]
    return Report(rows=rows, settings={}, samples=[{"sample": "a/0"}], table="| a |\n", figures=figures)


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
    for name in ("results.json", "samples.parquet", "table.md", "images/second.png"):
        assert (tmp_path / name).stat().st_size > 0
    assert not (tmp_path / "figures").exists() and "| a |" in capsys.readouterr().out


def test_figures_are_written_last(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report({"figures/first": interrupt}).write(tmp_path, [])
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "samples.parquet", "table.md"}


def test_versions_do_not_require_git_or_all_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(results, "PACKAGES", ("torch", "no-such-package"))
    versions = results.versions()
    assert versions["commit"] == versions["no-such-package"] == "unknown" and versions["torch"] != "unknown"


def test_logger_keys_follow_from_the_row():
    row = {"method": "rnri", "steps": 50, "guidance": 7.5, "nfe": None, "prompts": "right", "generated": True}
    assert metric_name(row, list(row), "psnr") == "rnri/steps_50/guidance_7_5/right/generated/psnr"


def test_equal_rows_of_different_methods_are_named(tmp_path, capsys):
    def row(method, psnr, steps=50, bucket="total", **other):
        return {"method": method, "steps": steps, "bucket": bucket, "psnr": psnr, **other}

    nan = float("nan")
    rows = [
        row("ddim", 20.0, seconds=1.0, fid=nan),
        row("direct", 20.0, seconds=2.0, fid=nan),  # equal in every figure except for the time
        row("aidi", 20.5, seconds=1.0, fid=nan),
        row("edict", 20.0, seconds=1.0, fid=3.0),
        row("rnri", 20.0, steps=4, seconds=1.0, fid=nan),
        row("bdia", 20.0),  # has other figures
        row("x", 1.0, bucket="tail"),
        row("y", 1.0, bucket="tail"),
    ]
    identity = ("method", "steps", "bucket")
    sentence = "Rows that are equal in every figure except for times: (ddim, 50, total) = (direct, 50, total).\n"
    assert results.equal_rows(rows, identity) == sentence
    assert results.equal_rows(rows[1:], identity) == ""
    geometry = [row("mean", 1.0, inversion=name) for name in ("a", "b")]
    assert results.equal_rows(geometry, ("inversion", "method")).endswith(": (a, mean) = (b, mean).\n")
    Report(rows=rows, settings={}, samples=[], table="| a |\n", figures={}, identity=identity).write(tmp_path, [])
    assert (tmp_path / "table.md").read_text() == f"| a |\n\n{sentence}" and sentence in capsys.readouterr().out
