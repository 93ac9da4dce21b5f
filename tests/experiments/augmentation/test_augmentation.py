"""The few-shot augmentation experiment runs with three concepts, and its functions give known results."""

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

from experiments.augmentation.few_shot import FewShot, classify
from experiments.augmentation.report import Predictions, accuracy_rows
from experiments.config.errors import one_line
from experiments.data.concepts import Concept
from experiments.data.folder import FolderConcepts
from experiments.runtime.setup import setup
from tests.commands import composed, forked, run_in_process
from tests.experiments.tiny_configs import tiny_emoji_classifier

SMALL = [
    "experiment=augmentation", "data.concepts=3", "task.steps=3", "task.samples=2", "select.iterations=1",
    "task.trainings=2", "task.few_shot.steps=3", "trainer.accelerator=cpu", "~task.arms.nao_rnri",
    "~task.arms.seedselect_rnri", "~task.arms.seedselect_ours",
]  # fmt: skip
METHODS = ["references only", "plain", "seedselect_ddim", "nao_ddim"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return tiny_emoji_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, classifier):
    folder = tmp_path_factory.mktemp("augmentation")
    finished = forked(*SMALL, f"run_dir={folder}", classifier)
    assert finished.returncode == 0, finished.stderr
    return folder, finished


@pytest.fixture(scope="module")
def rows(run):
    folder, _ = run
    return json.loads((folder / "results.json").read_text())["rows"]


@pytest.mark.slow
def test_table_starts_with_the_references_alone(run, rows):
    _, finished = run
    assert rows[0]["method"] == "references only"
    assert {row["method"] for row in rows} == set(METHODS)
    assert "| references only |" in finished.stdout


@pytest.mark.slow
def test_gain_is_relative_to_the_references_alone(rows):
    for row in rows:
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["gain"] == pytest.approx(row["accuracy"] - rows[0]["accuracy"])
        assert row["gain_low"] <= row["gain"] <= row["gain_high"]


@pytest.mark.slow
def test_rows_count_images_concepts_and_trainings(rows):
    for row in rows:
        has_images = row["method"] != "references only"
        assert (row["k"], row["concepts"], row["trainings"]) == (3, 3, 2)
        assert row["generated"] == (2 if has_images else 0)
        assert ("generated_accuracy" in row) == has_images


@pytest.mark.slow
def test_accuracy_is_the_mean_over_the_samples(run, rows):
    samples = pd.read_parquet(run[0] / "samples.parquet")
    assert len(samples) == len(METHODS) * 2 * rows[0]["n"]
    for row in rows:
        assert samples[samples["method"] == row["method"]]["correct"].mean() == pytest.approx(row["accuracy"])


@pytest.mark.slow
def test_run_writes_table_figures_and_images(run):
    for name in ("table.md", "config.yaml", "metrics.csv", "figures/accuracy.png", "images/tail.png"):
        assert (run[0] / name).stat().st_size > 0


@pytest.mark.slow
def test_other_training_settings_reuse_the_images(run, classifier):
    folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*.safetensors")}
    trainings = {path for path in before if "trainings" in path.parts}
    assert len(trainings) == len(METHODS) * 2
    run_in_process(*SMALL, f"run_dir={folder}", classifier, "task.few_shot.steps=4")
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*.safetensors")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + len(trainings)


@pytest.mark.slow
def test_labeled_real_images_are_not_references():
    source = instantiate(composed("experiment=augmentation").data.source)
    images_by_label = source.labeled_real_images()
    concepts = {concept.name: concept for concept in source.concepts()}
    assert set(images_by_label) == set(concepts)
    assert sum(map(len, images_by_label.values())) == len(list(source.real_images()))
    references = {image.tobytes() for concept in concepts.values() for image in concept.references}
    assert not references & {image.tobytes() for images in images_by_label.values() for image in images}


def test_labeled_real_images_of_user_folders(tmp_path):
    for name, color in {"cat": "orange", "payphone": "blue"}.items():
        (tmp_path / "real" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), color).save(tmp_path / "real" / name / "1.png")
    source = FolderConcepts(str(tmp_path / "references"), str(tmp_path / "real"), "counts.tsv", "{name}", 8, 2, 1)
    images_by_label = source.labeled_real_images()
    shapes = {name: images.shape for name, images in images_by_label.items()}
    assert shapes == dict.fromkeys(("cat", "payphone"), (1, 3, 8, 8))
    assert images_by_label["payphone"][0, :, 0, 0].tolist() == [0, 0, 255]


def stripes(vertical: bool, n: int) -> torch.Tensor:
    """Return stripes, ``uint8 [n, 3, 16, 16]``; no change of color turns one direction into the other."""
    lines = (torch.arange(16) // 4 % 2 * 255).expand(16, 16)
    return (lines if vertical else lines.T).byte().expand(n, 3, 16, 16)


@pytest.mark.slow
def test_training_learns_the_classes_and_is_reproducible():
    few_shot = FewShot(
        partial(timm.create_model, "resnet10t", channels=[8, 16, 16, 16], stem_width=8), 32, 40, 16, 4e-3, 0
    )
    images = torch.cat([stripes(True, 3), stripes(False, 3)])
    labels = torch.arange(2).repeat_interleave(3)
    state = torch.get_rng_state()
    cpu = torch.device("cpu")
    first, again, other = (few_shot.train(images, labels, ["|", "-"], seed=s, device=cpu) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert classify(first, images, cpu).tolist() == labels.tolist()
    x = images.float() / 255
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


def test_accuracy_and_gain_are_means_over_images_and_trainings():
    concepts = [Concept(name, name, 1, "tail", np.zeros((1, 3, 2, 2), np.uint8)) for name in "ab"]
    truth = torch.tensor([0, 0, 1])
    alone = Predictions(torch.tensor([[0, 1, 0], [0, 0, 0]]), truth, concepts, [1.0, 3.0])  # 3 of 6 right
    helped = Predictions(torch.tensor([[0, 0, 1], [0, 0, 0]]), truth, concepts, [1.0, 1.0])  # 5 of 6
    first, second = accuracy_rows({"alone": alone, "helped": helped}, {}, references=3, seed=0)
    assert (first["accuracy"], first["gain"], first["t_train"]) == (0.5, 0.0, 2.0)
    assert second["accuracy"] == pytest.approx(5 / 6)
    assert second["gain"] == pytest.approx(1 / 3)
    assert second["gain_low"] == pytest.approx(0.25)  # concept a alone: 1.0 - 0.75
    assert second["gain_high"] == pytest.approx(0.5)  # concept b alone: 0.5 - 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.trainings=0"], "task.trainings"),
        (["task.few_shot.steps=0"], "task.few_shot.steps"),
        (["data.concepts=[camel]"], "at least 2"),
        (["task.references=9"], "reference images"),
    ],
)
def test_prepare_rejects_bad_input_without_a_run_folder(overrides, message, tmp_path):
    with pytest.raises((ValueError, HydraException)) as error:
        setup(composed("experiment=augmentation", f"run_dir={tmp_path}/run", *overrides))
    assert message in one_line(error.value)
    assert not (tmp_path / "run").exists()
