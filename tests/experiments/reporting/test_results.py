"""Result files of a run."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.reporting import results
from experiments.reporting.figures import image_grid
from experiments.reporting.results import Report, metric_name


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
