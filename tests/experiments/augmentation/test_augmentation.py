"""Few-shot augmentation on three concepts through the command that users type, and its parts on known answers."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from PIL import Image

import train
from experiments.augmentation.few_shot import FewShot, classify
from experiments.augmentation.report import Predictions, accuracy_rows
from experiments.data.concepts import Concept
from experiments.data.folder import FolderConcepts
from tests.commands import composed, forked

FAST = [
    "experiment=augmentation", "data.concepts=3", "task.steps=3", "task.samples=2", "select.iterations=1",
    "task.trainings=2", "task.few_shot.steps=3", "trainer.accelerator=cpu", "~task.arms.nao_rnri",
    "~task.arms.seedselect_rnri", "~task.arms.seedselect_ours",
]  # fmt: skip
METHODS = ["references only", "plain", "seedselect_ddim", "nao_ddim"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augmentation")
    finished = forked(*FAST, f"run_dir={folder}")
    assert finished.returncode == 0, finished.stderr
    return folder, finished


def test_results_follow_the_contract(run):
    folder, finished = run
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == set(METHODS)
    assert rows[0]["method"] == "references only"
    for row in rows:
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["gain"] == pytest.approx(row["accuracy"] - rows[0]["accuracy"])
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]
        assert (row["k"], row["concepts"], row["trainings"]) == (3, 3, 2)
        assert row["generated"] == (0 if row is rows[0] else 2)
        assert ("generated_accuracy" in row) == (row is not rows[0])
    samples = pd.read_parquet(folder / "samples.parquet")
    assert len(samples) == len(METHODS) * 2 * rows[0]["n"]
    for row in rows:
        own = samples[samples["method"] == row["method"]]
        assert own["correct"].mean() == pytest.approx(row["accuracy"])
    for name in ("table.md", "config.yaml", "metrics.csv", "figures/accuracy.png", "images/tail.png"):
        assert (folder / name).stat().st_size > 0
    assert "| references only |" in finished.stdout


def test_a_second_run_computes_nothing_again_and_other_settings_train_again(run):
    folder, _ = run
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*.safetensors")}
    trainings = {path for path in files if "trainings" in path.parts}
    assert len(trainings) == len(METHODS) * 2
    assert forked(*FAST, f"run_dir={folder}", "task.few_shot.steps=4").returncode == 0
    now = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*.safetensors")}
    assert files.items() <= now.items()
    assert len(now) == len(files) + len(trainings)


def test_held_out_drawings_are_no_references_and_carry_their_names():
    source = instantiate(composed("experiment=augmentation").data.source)
    found = source.labeled_real_images()
    concepts = {concept.name: concept for concept in source.concepts()}
    assert set(found) == set(concepts)
    assert sum(len(own) for own in found.values()) == len(list(source.real_images()))
    references = {picture.tobytes() for concept in concepts.values() for picture in concept.references}
    assert not references & {picture.tobytes() for own in found.values() for picture in own}


def test_held_out_images_of_a_users_folders(tmp_path):
    for name, color in {"cat": "orange", "payphone": "blue"}.items():
        (tmp_path / "real" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), color).save(tmp_path / "real" / name / "1.png")
    folders = FolderConcepts(str(tmp_path / "references"), str(tmp_path / "real"), "counts.tsv", "{name}", 8, 2, 1)
    found = folders.labeled_real_images()
    assert {name: images.shape for name, images in found.items()} == dict.fromkeys(("cat", "payphone"), (1, 3, 8, 8))
    assert found["payphone"][0, :, 0, 0].tolist() == [0, 0, 255]


def stripes(vertical: bool, n: int) -> torch.Tensor:
    """``uint8 [n, 3, 16, 16]``; no change of color turns one class into the other."""
    lines = (torch.arange(16) // 4 % 2 * 255).expand(16, 16)
    return (lines if vertical else lines.T).byte().expand(n, 3, 16, 16)


def test_a_classifier_learns_its_classes_and_is_the_same_every_time():
    few_shot = FewShot(
        partial(timm.create_model, "resnet10t", channels=[8, 16, 16, 16], stem_width=8), 32, 40, 16, 4e-3, 0
    )
    images, labels = torch.cat([stripes(True, 3), stripes(False, 3)]), torch.arange(2).repeat_interleave(3)
    state = torch.get_rng_state()
    first, again, other = (few_shot.train(images, labels, ["|", "-"], s, torch.device("cpu")) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert classify(first, images, torch.device("cpu")).tolist() == labels.tolist()
    x = images.float() / 255
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


def test_accuracy_and_gain_are_means_over_images_and_trainings():
    concepts = [Concept(name, name, 1, "tail", np.zeros((1, 3, 2, 2), np.uint8)) for name in "ab"]
    truth = torch.tensor([0, 0, 1])
    alone = Predictions(torch.tensor([[0, 1, 0], [0, 0, 0]]), truth, concepts, [1.0, 3.0])  # 3 of 6 right
    helped = Predictions(torch.tensor([[0, 0, 1], [0, 0, 0]]), truth, concepts, [1.0, 1.0])  # 5 of 6
    first, second = accuracy_rows({"alone": alone, "helped": helped}, {}, k=3, seed=0)
    assert (first["accuracy"], first["gain"], first["t_train"]) == (0.5, 0.0, 2.0)
    assert second["accuracy"] == pytest.approx(5 / 6)
    assert second["gain"] == pytest.approx(1 / 3)
    assert second["gain_low"] == pytest.approx(0.25)  # concept a alone: 1.0 - 0.75
    assert second["gain_high"] == pytest.approx(0.5)  # concept b alone: 0.5 - 0.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.trainings=0"], "task.trainings=0"),
        (["task.few_shot.steps=0"], "task.few_shot.steps=0"),
        (["data.concepts=[camel]"], "at least 2"),
        (["task.references=9"], "reference images"),
    ],
)
def test_bad_input_is_found_before_any_work(overrides, message, tmp_path):
    with pytest.raises((ValueError, HydraException)) as caught:
        train.prepare(composed("experiment=augmentation", f"run_dir={tmp_path}/run", *overrides))
    assert message in train.explain(caught.value)
    assert not (tmp_path / "run").exists()
