"""The experiments on interpolation and centroids (Table 2) run with two concepts of the emoji corpus."""

import json

import pandas as pd
import pytest
import torch

from experiments.rare_concepts.seed_geometry import norm_figure
from tests.commands import run_in_process
from tests.experiments import tiny_configs as small

pytestmark = pytest.mark.slow

SMALL = ["data.concepts=[camel,padlock]", "task.steps=2", "trainer.accelerator=cpu",
         "~task.inversions.aidi", "~task.inversions.rnri"]  # fmt: skip
OPERATIONS = {
    "interpolation": {"lerp", "normalized_lerp", "slerp", "cog", "nao"},
    "centroids": {"mean", "normalized_mean", "cog", "spherical_mean", "nao"},
}
SAMPLES = {"interpolation": 5, "centroids": 1}
REFERENCES = {"interpolation": 2, "centroids": 3}


@pytest.fixture(scope="module", params=["interpolation", "centroids"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    classifier = small.tiny_emoji_classifier(folder / "classifier")
    run_in_process(f"experiment={request.param}", f"run_dir={folder}", *SMALL, classifier)
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert rows[-1]["method"] == "real"
    totals = {(row["inversion"], row["method"]): row for row in rows[:-1] if row["bucket"] == "total"}
    return request.param, folder, totals


def test_table_has_a_row_per_inversion_and_operation(run):
    name, folder, totals = run
    inversions = ("ddim", "accelerated")
    assert set(totals) == {(inversion, operation) for inversion in inversions for operation in OPERATIONS[name]}
    lines = [line.split("|") for line in (folder / "table.md").read_text().splitlines()]
    assert ["accelerated", "nao"] in [[cell.strip() for cell in line[1:3]] for line in lines]
    assert (folder / "report.html").stat().st_size > 0


def test_rows_have_intervals_counts_and_distances(run):
    name, _, totals = run
    for row in totals.values():
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["n"] == 2 * SAMPLES[name]
        assert {"fid", "kid", "norm"} <= set(row)


def test_linear_averages_have_smaller_norms_than_nao(run):
    name, _, totals = run
    linear = "lerp" if name == "interpolation" else "mean"
    assert totals["accelerated", linear]["norm"] < totals["accelerated", "nao"]["norm"]


def test_figures_are_written(run):
    _, folder, _ = run
    assert {path.name for path in (folder / "images").glob("*.png")} == {"camel.png", "padlock.png"}
    assert (folder / "figures" / "norms.png").stat().st_size > 0


def test_each_reference_is_inverted_once_per_method(run):
    name, folder, _ = run
    seeds = list((folder / "seeds").rglob("*.safetensors"))
    assert len(seeds) == 2 * 2 * REFERENCES[name]  # inversions x concepts x references


def test_samples_have_one_row_per_image(run):
    name, folder, _ = run
    assert len(pd.read_parquet(folder / "samples.parquet")) == 2 * len(OPERATIONS[name]) * 2 * SAMPLES[name]


def test_norm_figure_accepts_equal_and_skewed_norms():
    equal = torch.full((34, 5), 1 / 3, dtype=torch.float64)
    skewed = torch.ones(34, 5, dtype=torch.float64)
    skewed[0] = 50  # moves the mean above the 95th percentile
    norm_figure({"equal": equal, "skewed": skewed})
