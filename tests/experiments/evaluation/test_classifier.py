"""Loading a classifier from a folder, and the errors of invalid folders."""

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
    Classifier(network, TINY["labels"], Preprocessing(32, (0.5,) * 3, (0.5,) * 3)).save(
        tmp_path / "classifier", "resnet10t"
    )
    return tmp_path / "classifier"


def change_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def loading_error(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_classifier(folder)
    return str(caught.value)


DECOMPOSED = unicodedata.normalize("NFD", "jalapeño")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["camel", "tomato", "camel"], "'camel' twice"),
        (["camel", "jalapeño", DECOMPOSED], "which are one name"),
        (["camel", "camel ", "tomato"], "which are one name"),
        (["camel", " ", "tomato"], "an empty name"),
    ],
)
def test_duplicate_labels_are_rejected(folder, network, labels, message):
    change_config(folder, labels=labels)
    assert message in loading_error(folder) and "config.json" in loading_error(folder)
    with pytest.raises(ValueError, match=message):
        Classifier(network, labels, Preprocessing(32, (0.5,) * 3, (0.5,) * 3))


def test_labels_are_normalized(folder):
    change_config(folder, labels=["camel", DECOMPOSED, " tomato"])
    assert load_classifier(folder).labels == ["camel", "jalapeño", "tomato"]


@pytest.mark.parametrize("labels", [["camel", "padlock"], list("abcd")])
def test_number_of_labels_must_match_the_outputs(folder, network, labels):
    change_config(folder, labels=labels)
    message = loading_error(folder)
    assert "fc.weight is of shape [3, 512] in the file" in message and f"with {len(labels)} labels" in message
    with pytest.raises(ValueError, match=f"{len(labels)} labels for a network with 3 outputs"):
        Classifier(network, labels, Preprocessing(32, (0.5,) * 3, (0.5,) * 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is not a classifier config: missing architecture"),
        (
            '{"model_type": "clip", "architectures": ["CLIPModel"]}',
            "is not a classifier config: missing architecture, image_size",
        ),
        ('{"architecture": "resnet18", "num_classes": 3}', "missing image_size, mean, std, labels"),
    ],
)
def test_configs_of_other_kinds_are_rejected(folder, content, message):
    (folder / "config.json").write_text(content)
    assert message in loading_error(folder) and "pretrain_classifier" in loading_error(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": {"0": "camel"}}, "labels: Input should be an instance of Sequence, got"),
        ({"labels": "camel"}, "labels: 'str' instances are not allowed"),
        ({"labels": []}, "labels: Value should have at least 1 item"),
        ({"labels": ["camel", 3, "tomato"]}, "Input should be a valid string, got 3"),
        ({"image_size": 0}, "image_size: Input should be greater than 0, got 0"),
        ({"image_size": [32, 32]}, "image_size: Input should be a valid integer"),
        ({"mean": [0.5]}, "mean: Value should have at least 3 items"),
        ({"mean": [float("nan")] * 3}, "Input should be a finite number"),
        ({"std": [0, 1, 1]}, "Input should be greater than 0, got 0"),
        ({"architecture": "resnet1000"}, "architecture 'resnet1000' is unknown to timm"),
        ({"architecture": "hf-hub:someone/something"}, "is unknown to timm"),
        ({"architecture": 7}, "architecture: Input should be a valid string"),
    ],
)
def test_invalid_config_values_are_rejected(folder, fields, message):
    change_config(folder, **fields)
    assert message in loading_error(folder) and "config.json" in loading_error(folder)


def test_weights_of_another_network_are_rejected(folder):
    weights = folder / "model.safetensors"
    state = load_file(weights)
    save_file({name: tensor for name, tensor in state.items() if name != "fc.bias"}, weights)
    assert "fc.bias is missing in the file" in loading_error(folder)
    save_file(state | {"head.extra": torch.zeros(2)}, weights)
    assert "head.extra is of shape [2] in the file and missing in" in loading_error(folder)
    save_file(state | {"fc.bias": torch.full((3,), torch.nan)}, weights)
    assert "not finite, for example fc.bias" in loading_error(folder)
    save_file(state, weights)
    change_config(folder, architecture="resnet18")
    assert "resnet18 with 3 labels" in loading_error(folder)
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors cannot be read" in loading_error(folder)


def test_missing_files_and_folders_are_reported(folder):
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors: set data.classifier to" in loading_error(folder)
    assert "nowhere has no config.json" in loading_error(folder / "nowhere")
    assert "config.json has no config.json" in loading_error(folder / "config.json")


def test_non_finite_classifier_is_not_saved(network, folder):
    classifier = load_classifier(folder)
    classifier.network.fc.bias = torch.nn.Parameter(torch.tensor([0.0, torch.inf, 0.0]))
    with pytest.raises(ValueError, match=r"not finite, in fc\.bias"):
        classifier.save(folder / "again", "resnet10t")
    assert not (folder / "again").exists()


def test_weights_that_overflow_float16_are_saved_in_float32(folder):
    classifier = load_classifier(folder)
    classifier.network.fc.bias = torch.nn.Parameter(torch.tensor([0.0, 1e6, 0.0]))
    classifier.save(folder, "resnet10t")
    assert load_classifier(folder).network.fc.bias.tolist() == [0.0, 1e6, 0.0]
    assert load_file(folder / "model.safetensors")["fc.weight"].dtype == torch.float16


def test_saved_classifier_gives_the_same_outputs(network, folder):
    classifier = Classifier(network, TINY["labels"], Preprocessing(32, (0.5,) * 3, (0.5,) * 3)).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded = load_classifier(folder)
    torch.testing.assert_close(loaded(images), classifier(images), rtol=0.02, atol=0.02)  # saved in float16
    features, logits = loaded.features_and_logits(images)
    assert features.shape == (2, loaded.num_features)
    torch.testing.assert_close(logits, loaded(images))
