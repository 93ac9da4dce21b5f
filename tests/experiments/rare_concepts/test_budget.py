"""The budget experiment with images of colored squares."""

import json
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra.utils import instantiate

from experiments.cache.key import fingerprint_config
from experiments.config.validate import check
from experiments.rare_concepts.arm import Arm, around_centroid, near_references
from experiments.rare_concepts.budget import BudgetExperiment, copies_figure
from nao import centroid_seeds, norm_penalty
from rnri import FixedPoint, ImplicitInverter
from seedselect import BestOf, Generation, LocalSearch, SeedSelect, Targets
from tests.commands import composed
from tests.experiments.tiny_configs import Squares, clip, run_to_end, tiny, tiny_classifier

pytestmark = pytest.mark.slow

INVERTER = ImplicitInverter(FixedPoint(2))
LOSS = SeedSelect(1, step_weights=(0.3, 0.7))
ARMS = {
    "random_2": Arm(1.0),
    "random_6": Arm(2.0, select=BestOf(LOSS, 3)),
    "around_6": Arm(1.0, INVERTER, partial(around_centroid, spread=0.3), BestOf(LOSS, 3)),
    "search_6": Arm(1.0, INVERTER, centroid_seeds, LocalSearch(LOSS, 1, 2)),
    "seedselect_6": Arm(1.0, INVERTER, centroid_seeds, LOSS, 1),
}


def budget_experiment(folder: Path, arms: dict[str, Arm], quantity: str = "budget") -> BudgetExperiment:
    return BudgetExperiment(
        quantity=quantity,
        source=Squares(),
        concepts="all",
        buckets=["tail"],
        model=tiny,
        clip=clip,
        classifier=tiny_classifier(folder / "classifier"),
        second_classifier=tiny_classifier(folder / "second", seed=1),
        arms=arms,
        steps=2,
        samples=2,
        references=2,
        concepts_per_batch=3,
        seed=0,
        run_dir=str(folder / "run"),
        gradient_checkpointing=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> BudgetExperiment:
    return run_to_end(budget_experiment(tmp_path_factory.mktemp("budget"), ARMS))


@pytest.fixture(scope="module")
def rows(run) -> list[dict]:
    rows = json.loads((Path(run.run_dir) / "results.json").read_text())["rows"]
    assert rows[-1]["method"] == "real" and rows[-1]["budget"] is None
    return rows[:-1]


def test_table_has_a_row_per_method_and_budget(run, rows):
    assert [(row["method"], row["budget"]) for row in rows] == [
        ("random", 2), ("random", 6), ("around", 6), ("search", 6), ("seedselect", 6)
    ]  # fmt: skip
    assert "| random     | 2      |" in (Path(run.run_dir) / "table.md").read_text()
    assert (Path(run.run_dir) / "report.html").stat().st_size > 0
    assert (Path(run.run_dir) / "figures" / "budget.png").stat().st_size > 0


def test_figure_shows_accuracy_against_copies(rows):
    real = {"method": "real", "budget": None, "copies": 0.1, "accuracy": 0.8}
    measured = [row | {"copies": 0.25, "accuracy": 0.5} for row in rows[:2]]
    unknown = [row | {"copies": None} for row in rows[2:]]
    figure = copies_figure([*measured, *unknown], "budget", real)
    (axis,) = figure.axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}
    assert points["random"] == [[25, 50], [25, 50]]
    assert points["real images"] == [[10, 80]]
    assert points["around"] == []
    assert [text.get_text() for text in axis.texts] == ["2", "6"]


def test_nfe_includes_guidance_gradients_and_inversion(rows):
    inversion = 2 * 2 * 2 / 2  # two references, two evaluations in each of two steps, shared by two samples
    expected = [2, 2 * 3 * 2, 3 * 2 + inversion, 3 * 2 + inversion, 2 * 2 + 2 * 1 * 1 + inversion]
    assert [row["nfe"] for row in rows] == expected


def test_losses_of_seedselect_are_recorded_for_every_arm(run, rows):
    samples = pd.read_parquet(Path(run.run_dir) / "samples.parquet")
    assert (samples["semantic_loss"].between(0, 2) & (samples["appearance_loss"] >= 0)).all()
    for row in rows:
        assert 0 <= row["semantic_loss"] <= 2
    last = samples[samples["method"] == "seedselect_6"]
    expected = 10 * last["semantic_loss"] + last["appearance_loss"]
    assert (last["loss"] - expected).abs().max() < expected.max()  # the loss also has the latent before the last step


def test_metrics_are_in_their_ranges(rows):
    for row in rows:
        assert row["n"] == 6
        assert 0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1
        assert 0 <= row["ceiling"] <= 1
        assert 0 <= row["copies"] <= 1
        assert row["kid"] >= 0
        assert 0.999 <= row["vendi"] <= 2.001
        assert row["nearest"] > 0
        assert row["pairwise"] >= 0


def test_best_of_n_never_has_a_larger_loss_than_its_first_seed(run):
    samples = pd.read_parquet(Path(run.run_dir) / "samples.parquet")
    selected = samples[samples["method"].isin(["random_6", "around_6", "search_6"])]
    assert len(selected) == 18
    assert (selected["loss"] <= selected["initial_loss"]).all()
    assert (selected["loss"] < selected["initial_loss"]).any()


def test_rejects_an_arm_without_a_budget_in_its_name(tmp_path):
    with pytest.raises(ValueError, match=r"task\.arms: names must be METHOD_BUDGET, for example nao_50, got 'plain'"):
        budget_experiment(tmp_path, {"plain": Arm(1.0)})


@pytest.mark.parametrize("quantity", ["updates", "noise"])
def test_number_in_the_name_of_an_arm_may_have_another_meaning(tmp_path, quantity):
    run = run_to_end(budget_experiment(tmp_path, {"random_0": Arm(1.0), "random_1": Arm(1.0, select=LOSS)}, quantity))
    rows = json.loads((Path(run.run_dir) / "results.json").read_text())["rows"]
    assert [(row["method"], row[quantity]) for row in rows] == [("random", 0), ("random", 1), ("real", None)]
    assert (Path(run.run_dir) / "figures" / f"{quantity}.png").stat().st_size > 0


def test_perturbed_seeds_follow_the_references_and_the_centroid():
    seeds = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    near = near_references(seeds, 5, spread=0.2)
    around = around_centroid(seeds, 3, spread=0.2)
    assert torch.equal(near[:, :3], seeds)
    assert torch.equal(around[:, :1], centroid_seeds(seeds, 1))
    for copy, center in ((near[:, 3], seeds[:, 0]), (near[:, 4], seeds[:, 1]), (around[:, 2], around[:, 0])):
        cosine = torch.nn.functional.cosine_similarity(copy.flatten(1), center.flatten(1))
        torch.testing.assert_close(cosine, torch.full((2,), 0.98), atol=0.03, rtol=0)


def test_configured_arms_cost_about_their_budgets():
    config = composed("experiment=budget")
    arms = instantiate(config.task.arms, _convert_="all")
    for name, arm in arms.items():
        budget = int(name.rpartition("_")[2])
        forwards, backwards = arm.select.call_counts if arm.select else (1, 0)
        cost = arm.nfe(config.task.steps, torch.tensor(forwards), torch.tensor(backwards)).item()
        assert 0.9 * budget <= cost <= 1.25 * budget or name == "random_10"
    descriptions = [fingerprint_config(arm) for arm in arms.values()]
    assert all(a != b for k, a in enumerate(descriptions) for b in descriptions[:k])


def test_reno_optimizes_text_rewards_from_random_seeds():
    config = composed("experiment=reno")
    check(config)
    arm = instantiate(config.task.arms, _convert_="all")["reno"]
    assert arm.inverter is None
    assert arm.select.call_counts == (50, 49)  # the authors' 50 evaluations, each but the last followed by an update
    assert arm.select.best_by == "rewards"
    assert fingerprint_config(arm)["select"]["gradient"]
    features = clip(device="cpu")
    seeds = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = ["a camel", "an owl"]
    targets = Targets(torch.zeros(2, 1), torch.zeros(2, 1), features.text(prompts), prompts)
    generation = Generation(seeds, [seeds], targets, torch.sigmoid, features)
    similarity = (features(torch.sigmoid(seeds)) * targets.text).sum(-1)
    torch.testing.assert_close(arm.select.compute_loss(generation), -similarity + 0.01 * norm_penalty(seeds))
