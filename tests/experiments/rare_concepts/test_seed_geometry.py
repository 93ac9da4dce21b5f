"""Table 2's experiments on a few concepts, through the command that users type."""

import json

import pandas as pd
import pytest
import torch

from experiments.rare_concepts.seed_geometry import norm_figure
from tests.commands import carried_out
from tests.experiments import tiny_configs as small

FEW = ["data.concepts=[camel,padlock]", "task.steps=3", "trainer.accelerator=cpu",
       "~task.inversions.aidi", "~task.inversions.rnri_mean_sign"]  # fmt: skip


@pytest.fixture(scope="module", params=["interpolation", "centroids"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    carried_out(f"experiment={request.param}", f"run_dir={folder}", *FEW, small.emoji_judge(folder / "judge"))
    return request.param, folder


def test_results_follow_the_contract(run):
    name, folder = run
    rows = json.loads((folder / "results.json").read_text())["rows"]
    totals = {(row["inversion"], row["method"]): row for row in rows if row["bucket"] == "total"}
    operations = {"interpolation": {"lerp", "normalized_lerp", "slerp", "nao"},
            "centroids": {"mean", "normalized_mean", "spherical_mean", "nao"}}[name]  # fmt: skip
    assert set(totals) == {(inversion, operation) for inversion in ("ddim", "accelerated") for operation in operations}
    for row in totals.values():
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["n"] == (10 if name == "interpolation" else 2)
        assert {"fid", "kid", "norm"} <= set(row)
    plain, guided = ("lerp", "nao") if name == "interpolation" else ("mean", "nao")
    assert totals["accelerated", plain]["norm"] < totals["accelerated", guided]["norm"]
    assert {path.name for path in (folder / "images").iterdir()} == {"camel.png", "padlock.png"}
    assert (folder / "figures" / "norms.png").stat().st_size > 0
    assert "| accelerated | nao |" in (folder / "table.md").read_text()


def test_seeds_are_inverted_once_for_all_ways(run):
    name, folder = run
    references = 2 if name == "interpolation" else 3
    assert len(list((folder / "seeds").rglob("*.safetensors"))) == 2 * 2 * references  # inversions x concepts


def test_samples_tell_of_every_image(run):
    name, folder = run
    assert len(pd.read_parquet(folder / "samples.parquet")) == 2 * 4 * 2 * (5 if name == "interpolation" else 1)


def test_norms_are_drawn_whatever_their_spread():
    equal, skewed = torch.full((34, 5), 1 / 3, dtype=torch.float64), torch.ones(34, 5, dtype=torch.float64)
    skewed[0] = 50  # the mean lies above nineteen twentieths of the values
    norm_figure({"equal": equal, "skewed": skewed})
