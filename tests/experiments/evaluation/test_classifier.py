"""A judge from a folder: whatever is wrong with the folder is a sentence that names file and fault."""

import json
import unicodedata
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from experiments.evaluation.classifier import Classifier, Preprocessing, load_classifier

TINY = {"architecture": "resnet10t", "labels": ["camel", "padlock", "tomato"]}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=3)


@pytest.fixture
def folder(network, tmp_path) -> Path:
    Classifier(network, TINY["labels"], Preprocessing(32, (0.5,) * 3, (0.5,) * 3)).save(tmp_path / "judge", "resnet10t")
    return tmp_path / "judge"


def change(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_classifier(folder)
    return str(caught.value)


PARTED = unicodedata.normalize("NFD", "jalapeño")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["camel", "tomato", "camel"], "'camel' twice"),
        (["camel", "jalapeño", PARTED], "which are one name"),
        (["camel", "camel ", "tomato"], "which are one name"),
        (["camel", " ", "tomato"], "an empty name"),
    ],
)
def test_a_label_twice_is_refused_wherever_labels_come_from(folder, network, labels, message):
    change(folder, labels=labels)
    assert message in refused(folder) and "config.json" in refused(folder)
    with pytest.raises(ValueError, match=message):
        Classifier(network, labels, Preprocessing(32, (0.5,) * 3, (0.5,) * 3))


def test_labels_are_in_the_form_in_which_names_are_compared(folder):
    change(folder, labels=["camel", PARTED, " tomato"])
    assert load_classifier(folder).labels == ["camel", "jalapeño", "tomato"]


@pytest.mark.parametrize("labels", [["camel", "padlock"], list("abcd")])
def test_labels_have_to_be_as_many_as_outputs(folder, network, labels):
    change(folder, labels=labels)
    message = refused(folder)
    assert "fc.weight" in message and "of shape [3, 512]" in message and f"with {len(labels)} labels" in message
    with pytest.raises(ValueError, match=f"{len(labels)} labels for a network of 3 outputs"):
        Classifier(network, labels, Preprocessing(32, (0.5,) * 3, (0.5,) * 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is no judge's, for it lacks architecture"),
        (
            '{"model_type": "clip", "architectures": ["CLIPModel"]}',
            "is no judge's, for it lacks architecture, image_size",
        ),
        ('{"architecture": "resnet18", "num_classes": 3}', "lacks image_size, mean, std, labels"),
    ],
)
def test_another_kind_of_config_is_refused(folder, content, message):
    (folder / "config.json").write_text(content)
    assert message in refused(folder) and "pretrain_classifier" in refused(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": {"0": "camel"}}, "labels={0: 'camel'}: give a list of names"),
        ({"labels": "camel"}, "labels='camel': give a list of names"),
        ({"labels": []}, "labels=[]: give a list of names"),
        ({"labels": ["camel", 3, "tomato"]}, "labels="),
        ({"image_size": 0}, "image_size=0: give a whole number of at least 1"),
        ({"image_size": [32, 32]}, "image_size=[32, 32]"),
        ({"mean": [0.5]}, "mean=[0.5]: give a list of three numbers"),
        ({"mean": [float("nan")] * 3}, "mean="),
        ({"std": [0, 1, 1]}, "std=[0, 1, 1]: give a list of three numbers above 0"),
        ({"architecture": "resnet1000"}, "'resnet1000', which timm"),
        ({"architecture": "hf-hub:someone/something"}, "which timm"),
        ({"architecture": 7}, "architecture=7"),
    ],
)
def test_values_that_cannot_be_are_named(folder, fields, message):
    change(folder, **fields)
    assert message in refused(folder) and "config.json" in refused(folder)


def test_weights_of_another_network_are_refused(folder):
    weights = folder / "model.safetensors"
    state = load_file(weights)
    save_file({name: tensor for name, tensor in state.items() if name != "fc.bias"}, weights)
    assert "of fc.bias the file has none" in refused(folder)
    save_file(state | {"head.extra": torch.zeros(2)}, weights)
    assert "of head.extra the file has it of shape [2]" in refused(folder)
    save_file(state | {"fc.bias": torch.full((3,), torch.nan)}, weights)
    assert "not finite, in fc.bias" in refused(folder)
    save_file(state, weights)
    change(folder, architecture="resnet18")
    assert "resnet18 with 3 labels" in refused(folder)
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors cannot be read" in refused(folder)


def test_missing_files_and_folders_are_named(folder):
    (folder / "model.safetensors").unlink()
    assert "holds no model.safetensors: point data.classifier at" in refused(folder)
    assert "nowhere holds no config.json" in refused(folder / "nowhere")
    assert "config.json holds no config.json" in refused(folder / "config.json")


def test_a_judge_that_is_not_finite_is_not_saved(network, folder):
    judge = load_classifier(folder)
    judge.network.fc.bias = torch.nn.Parameter(torch.tensor([0.0, torch.inf, 0.0]))
    with pytest.raises(ValueError, match=r"not finite, in fc\.bias"):
        judge.save(folder / "again", "resnet10t")
    assert not (folder / "again").exists()


def test_weights_beyond_half_precision_are_kept(folder):
    judge = load_classifier(folder)
    judge.network.fc.bias = torch.nn.Parameter(torch.tensor([0.0, 1e6, 0.0]))
    judge.save(folder, "resnet10t")
    assert load_classifier(folder).network.fc.bias.tolist() == [0.0, 1e6, 0.0]
    assert load_file(folder / "model.safetensors")["fc.weight"].dtype == torch.float16
