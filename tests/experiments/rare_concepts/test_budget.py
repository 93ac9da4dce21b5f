"""Methods at equal budgets, on colored squares."""

import json
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra.utils import instantiate

from experiments.cache.key import describe
from experiments.config.validate import check
from experiments.rare_concepts.arm import Arm, around_centroid, near_references
from experiments.rare_concepts.budget import BudgetExperiment
from nao import centroid_seeds, norm_penalty
from rnri import FixedPoint, ImplicitInverter
from seedselect import BestOf, Generation, LocalSearch, SeedSelect, Targets
from tests.commands import composed
from tests.experiments.tiny_configs import Squares, carried_out, clip, judge, tiny

INVERTER = ImplicitInverter(FixedPoint(2))
LOSS = SeedSelect(1, step_weights=(0.3, 0.7))
ARMS = {
    "random_2": Arm(1.0),
    "random_6": Arm(2.0, select=BestOf(LOSS, 3)),
    "around_6": Arm(1.0, INVERTER, partial(around_centroid, spread=0.3), BestOf(LOSS, 3)),
    "search_6": Arm(1.0, INVERTER, centroid_seeds, LocalSearch(LOSS, 1, 2)),
    "seedselect_6": Arm(1.0, INVERTER, centroid_seeds, LOSS, 1),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> BudgetExperiment:
    folder = tmp_path_factory.mktemp("budget")
    return carried_out(
        BudgetExperiment(
            source=Squares(),
            concepts="all",
            buckets=["tail"],
            model=tiny,
            clip=clip,
            classifier=judge(folder / "judge"),
            arms=ARMS,
            steps=2,
            samples=2,
            references=2,
            concepts_per_batch=3,
            seed=0,
            run_dir=str(folder / "run"),
            gradient_checkpointing=False,
        )
    )  # fmt: skip


def test_rows_say_what_every_method_cost_and_came_to(run):
    rows = json.loads((Path(run.run_dir) / "results.json").read_text())["rows"]
    assert [(row["method"], row["budget"]) for row in rows] == [
        ("random", 2), ("random", 6), ("around", 6), ("search", 6), ("seedselect", 6)
    ]  # fmt: skip
    inversion = 2 * 2 * 2 / 2  # two references, two evaluations in each of two steps, shared by two samples
    expected = [2, 2 * 3 * 2, 3 * 2 + inversion, 3 * 2 + inversion, 2 * 2 + 2 * 1 * 1 + inversion]
    assert [row["nfe"] for row in rows] == expected
    for row in rows:
        assert row["n"] == 6 and row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert 0 <= row["ceiling"] <= 1 and 0 <= row["copies"] <= 1 and row["kid"] >= 0
        assert 0.999 <= row["vendi"] <= 2.001 and row["nearest"] > 0 and row["pairwise"] >= 0
    assert (Path(run.run_dir) / "figures" / "budget.png").stat().st_size > 0
    assert "| random | 2 |" in (Path(run.run_dir) / "table.md").read_text()


def test_a_best_of_is_as_good_as_its_first_seed_alone_or_better(run):
    samples = pd.read_parquet(Path(run.run_dir) / "samples.parquet")
    chosen = samples[samples["method"].isin(["random_6", "around_6", "search_6"])]
    assert len(chosen) == 18 and (chosen["loss"] <= chosen["initial_loss"]).all()
    assert (chosen["loss"] < chosen["initial_loss"]).any()


def test_an_arm_without_a_budget_in_its_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"task\.arms names 'plain': call an arm METHOD_BUDGET"):
        BudgetExperiment(
            source=Squares(), concepts="all", buckets=["tail"], model=tiny, clip=clip, classifier=str(tmp_path),
            arms={"plain": Arm(1.0)}, steps=2, samples=2, references=2, concepts_per_batch=3, seed=0,
            run_dir=str(tmp_path), gradient_checkpointing=False,
        )  # fmt: skip


def test_neighbors_of_references_and_centroid_begin_with_these():
    seeds = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    near, around = near_references(seeds, 5, spread=0.2), around_centroid(seeds, 3, spread=0.2)
    assert torch.equal(near[:, :3], seeds) and torch.equal(around[:, :1], centroid_seeds(seeds, 1))
    for found, center in ((near[:, 3], seeds[:, 0]), (near[:, 4], seeds[:, 1]), (around[:, 2], around[:, 0])):
        cosine = torch.nn.functional.cosine_similarity(found.flatten(1), center.flatten(1))
        torch.testing.assert_close(cosine, torch.full((2,), 0.98), atol=0.03, rtol=0)


def test_the_config_has_arms_of_about_their_budgets():
    config = composed("experiment=budget")
    arms = instantiate(config.task.arms, _convert_="all")
    for name, arm in arms.items():
        budget = name.rpartition("_")[2]
        forwards, backwards = arm.select.call_counts if arm.select else (1, 0)
        cost = arm.nfe(config.task.steps, torch.tensor(forwards), torch.tensor(backwards)).item()
        assert 0.9 * int(budget) <= cost <= 1.25 * int(budget) or name == "random_10"
    descriptions = [describe(arm) for arm in arms.values()]
    assert all(a != b for k, a in enumerate(descriptions) for b in descriptions[:k])


def test_reno_is_seedselect_by_rewards_of_text():
    config = composed("experiment=reno")
    check(config)
    arm = instantiate(config.task.arms, _convert_="all")["reno"]
    assert arm.inverter is None and arm.select.call_counts == (51, 50) and describe(arm)["select"]["gradient"]
    clip_features = clip(device="cpu")
    seeds, prompts = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), ["a camel", "an owl"]
    targets = Targets(torch.zeros(2, 1), torch.zeros(2, 1), clip_features.text(prompts), prompts)
    made = Generation(seeds, [seeds], targets, torch.sigmoid, clip_features)
    text = (clip_features(torch.sigmoid(seeds)) * targets.text).sum(-1)
    torch.testing.assert_close(arm.select.compute_loss(made), -text + 0.01 * norm_penalty(seeds))
