"""The experiment on seed diversity with images of colored squares, its measurements and its costs."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from torch.optim.lr_scheduler import ConstantLR

from experiments.cache.key import fingerprint_config
from experiments.config.errors import one_line
from experiments.data.concepts import Concept
from experiments.diversity.arm import DiversityArm
from experiments.diversity.report import arm_row, evaluate_group, pair_rows
from experiments.diversity.task import DiversityExperiment, predict_clean
from experiments.evaluation.classifier import load_classifier
from experiments.runtime.setup import setup
from rnri import FixedPoint, ImplicitInverter, NoisePredictor
from seedselect import BestOf, BestSubset, ContrastiveReward, GroupSelect, ImageDiversity, dpp_log_det
from tests.commands import composed
from tests.experiments.tiny_configs import COLORS, Squares, clip, run_to_end, tiny, tiny_classifier
from tests.problems import flow_schedule, gaussian, schedule, velocity

OPTIMIZER = {"optimizer": partial(torch.optim.Adam, lr=0.1), "schedule": partial(ConstantLR, factor=1.0)}
LOSS = GroupSelect(iterations=1, group_size=2, group_rewards=[(ImageDiversity(dpp_log_det), 1.0)], **OPTIMIZER)
CONTRAST = GroupSelect(iterations=3, group_size=2, group_rewards=[(ContrastiveReward(window=4), 1.0)], **OPTIMIZER)
ARMS = {
    "random": DiversityArm(1.0),
    "pink": DiversityArm(1.0, noise_exponent=0.2),
    "best_group": DiversityArm(1.0, select=BestOf(LOSS, 3)),
    "best_subset": DiversityArm(2.0, select=BestSubset(LOSS, 3)),
    "dpp": DiversityArm(1.0, select=LOSS),
    "cno": DiversityArm(1.0, select=CONTRAST, one_step=True),
    "cno_gradient": DiversityArm(1.0, select=CONTRAST, one_step=True, stop_gradient=False),
}
NFE = [2, 2, 3 * 2, 2 * 3 * 2, 2 * 2 + 2 * 1 * 2, 4 + 2, 4 + 2 * 3 + 2]  # by the definition of each arm, two steps


def experiment(folder: Path) -> DiversityExperiment:
    return DiversityExperiment(
        source=Squares(),
        concepts="all",
        buckets=["tail"],
        model=tiny,
        clip=clip,
        classifier=tiny_classifier(folder / "classifier"),
        arms=ARMS,
        steps=2,
        samples=2,
        references=2,
        concepts_per_batch=2,
        seed=0,
        run_dir=str(folder / "run"),
        gradient_checkpointing=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> DiversityExperiment:
    return run_to_end(experiment(tmp_path_factory.mktemp("diversity")))


@pytest.fixture(scope="module")
def rows(run) -> list[dict]:
    return json.loads((Path(run.run_dir) / "results.json").read_text())["rows"]


@pytest.mark.slow
def test_table_has_a_row_per_arm_with_its_network_evaluations(rows):
    assert [row["method"] for row in rows] == list(ARMS)
    assert [row["nfe"] for row in rows] == NFE
    for row in rows:
        assert (row["n"], row["concepts"]) == (6, 3)
        for name, low, high in (("accuracy", 0, 1), ("distance", 0, 4), ("vendi", 1, 2.001), ("distinct", 0, 2.001)):
            assert low <= row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] <= high


@pytest.mark.slow
def test_run_writes_tables_figures_and_report(run):
    folder = Path(run.run_dir)
    for name in ("table.md", "concepts.csv", "pairs.csv", "figures/diversity.png", "images/cat.png", "report.html"):
        assert (folder / name).stat().st_size > 0
    assert "Differences (method minus random" in (folder / "table.md").read_text()
    concepts = pd.read_csv(folder / "concepts.csv")
    assert len(concepts) == 3 * len(ARMS) and set(concepts["concept"]) == set(COLORS)


@pytest.mark.slow
def test_best_group_and_best_subset_do_not_have_a_larger_loss_than_the_first_group(run):
    samples = pd.read_parquet(Path(run.run_dir) / "samples.parquet")
    chosen = samples[samples["method"].isin(["best_group", "dpp"])]
    assert len(chosen) == 12 and (chosen["loss"] <= chosen["initial_loss"]).all()
    losses = {name: samples[samples["method"] == name].groupby("concept")["loss"] for name in ("best_group", "dpp")}
    assert all((group.nunique() == 1).all() for group in losses.values())  # the images of a concept share their loss


@pytest.mark.slow
def test_resumed_run_computes_no_unit_again(run):
    def units() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(run.run_dir).glob("units/**/*.safetensors")}

    before = units()
    assert len(before) == 3 * len(ARMS)
    again = run_to_end(experiment(Path(run.run_dir).parent))
    assert units() == before
    assert all(planned.done == planned.units == 3 for planned in again.plan(None))


@pytest.mark.slow
def test_images_of_optimized_one_step_predictions_are_sampled_with_all_steps(run):
    model = run.networks.model
    tensors, _ = run.context.units("cno").read(run.context.concepts[0].key)
    predictor = model.predictor([run.context.concepts[0].prompt] * 2, 1.0)
    with torch.no_grad():
        images = model.decode(model.sample(tensors["seeds"], predictor, run.context.schedule))
    difference = (255 * images - tensors["images"].float()).abs()
    assert difference.max() <= 1


def test_prediction_of_the_clean_latent_and_its_gradients():
    for (denoiser, z0), steps in ((gaussian(2), schedule(4)), (velocity(2), flow_schedule(4))):
        predictor = NoisePredictor(denoiser)
        seeds = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        alpha, sigma, *_ = steps.alpha_sigma(0)
        slope = alpha * denoiser.variance / (alpha**2 * denoiser.variance + sigma**2)  # d E[x0 | z] / dz
        expected = denoiser.mean + slope * (seeds - alpha * denoiser.mean)
        for stop_gradient, gradient in ((False, slope), (True, torch.full_like(slope, 1 / max(alpha + sigma, alpha)))):
            z = seeds.clone().requires_grad_()
            clean = predict_clean(z, predictor, steps, stop_gradient=stop_gradient)
            torch.testing.assert_close(clean, expected)
            if not stop_gradient:
                torch.testing.assert_close(torch.autograd.grad(clean.sum(), z)[0], gradient)
    z = seeds.clone().requires_grad_()
    stopped = predict_clean(z, predictor, steps, stop_gradient=True)
    alpha, sigma, *_ = steps.alpha_sigma(0)
    torch.testing.assert_close(
        torch.autograd.grad(stopped.sum(), z)[0], torch.full_like(z, 1 / (alpha + sigma))
    )  # fmt: skip


def record(finite: list[bool]) -> dict:
    return {"samples": [{"finite": ok, "nfe": 2.0} for ok in finite]}


def test_measurements_of_equal_different_and_missing_images(tmp_path):
    classifier = load_classifier(tiny_classifier(tmp_path), "cpu")
    image = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    other = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    label = evaluate_group(concept("?"), {"images": image}, record([True]), classifier).predictions[0]
    equal = evaluate_group(concept(label), {"images": torch.cat([image, image])}, record([True, True]), classifier)
    assert equal.distance == pytest.approx(0, abs=1e-6)
    assert equal.vendi == pytest.approx(1) and equal.distinct == pytest.approx(1)
    assert equal.correct == [True, True] and equal.row()["accuracy"] == 1 and equal.row()["nfe"] == 2
    wrong = evaluate_group(concept("?"), {"images": torch.cat([image, other])}, record([True, True]), classifier)
    assert wrong.distance > 0 and wrong.vendi > 1 and wrong.distinct == 0
    lost = evaluate_group(concept(label), {"images": image}, record([False, True]), classifier)
    assert lost.distance is None and lost.predictions == [None, label] and lost.row()["accuracy"] == 0.5
    none = evaluate_group(concept(label), {"images": image[:0]}, record([False, False]), classifier)
    assert none.vendi is None and none.distinct == 0 and none.row()["accuracy"] == 0
    row = arm_row("a", [equal.row(), lost.row(), none.row()], seed=0)
    assert row["accuracy"] == pytest.approx(0.5) and row["distance"] == pytest.approx(0, abs=1e-6) and row["n"] == 6
    pair = pair_rows({"a": [equal, none], "b": [equal, equal]}, seed=0)[0]
    assert (pair["method"], pair["baseline"]) == ("b", "a")
    assert pair["accuracy"] == pytest.approx(0.5) and pair["vendi"] == pytest.approx(0)


def concept(name: str) -> Concept:
    return Concept(name, f"a {name}", 5, "tail", np.zeros((1, 3, 16, 16), np.uint8))


def test_configured_arms_take_equal_network_evaluations():
    config = composed("experiment=diversity")
    arms = instantiate(config.task.arms, _convert_="all")
    cheap = {"random": 2, "pink": 2, "cno_3": 6}
    for name, arm in arms.items():
        forwards, backwards = arm.select.call_counts if arm.select else (1, 0)
        nfe = arm.nfe(config.task.steps, torch.tensor(forwards), torch.tensor(backwards)).item()
        assert nfe == cheap.get(name, 21 if name == "cno_gradient" else 20)
        assert arm.cost(config.task.steps, 1, 3).nfe == nfe
    descriptions = [fingerprint_config(arm) for arm in arms.values()]
    assert all(a != b for k, a in enumerate(descriptions) for b in descriptions[:k])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.samples=1"], "task.samples: Input should be greater than or equal to 2, got 1"),
        (["select.group_size=3"], "task.arms.best_group: group_size must equal task.samples=4, the number of images"),
        (["task.arms.pink.noise_exponent=-1"], "noise_exponent: Input should be greater than or equal to 0, got -1"),
        (["select.max_quality_loss=-1"], "max_quality_loss: Input should be greater than or equal to 0, got -1"),
        (["+task.arms.pink.one_step=true"], "one_step: must be false without select"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_run_folder(overrides, message, tmp_path):
    with pytest.raises((ValueError, HydraException)) as error:
        setup(composed("experiment=diversity", f"run_dir={tmp_path}/run", *overrides))
    assert message in one_line(error.value) and "\n" not in one_line(error.value)
    assert not (tmp_path / "run").exists()


def test_arm_with_an_inverter_is_rejected():
    with pytest.raises(ValueError, match="inverter: must be null, because the initial seeds of the experiment are ran"):
        DiversityArm(1.0, ImplicitInverter(FixedPoint(2)), partial(lambda seeds, count: seeds))
