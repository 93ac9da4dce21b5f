"""Classifiers that timm has saved or published, and Inception-v3 features."""

import json
import math
import shutil

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.transforms.functional import to_tensor

from experiments.evaluation.classifier import Classifier, load_classifier
from experiments.evaluation.inception import load_inception
from experiments.evaluation.timm_classifiers import class_labels, is_timm_source, timm_preprocessing
from experiments.imagenet_classes import imagenet_classes

TINY = {"channels": [8, 8, 16, 16], "stem_width": 8}


@pytest.fixture(scope="module")
def saved_network(tmp_path_factory):
    """A small network with ImageNet's outputs, saved by timm: its folder and the network."""
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=1000, **TINY).eval()
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, 48, 48), "crop_pct": 0.8}
    save_for_hf(network, folder, model_args=TINY, safe_serialization=True)
    return folder, network


def test_timm_folder_without_names_has_imagenet_labels(saved_network):
    classifier = load_classifier(saved_network[0])
    assert classifier.labels == [c.name for c in imagenet_classes()] and classifier.title == "resnet10t"
    assert (
        classifier.labels[134] == "crane (n02012849)"
        and classifier.image_size == 48
        and classifier.preprocessing.crop == 0.8
    )


def all_preprocessings() -> dict[tuple, dict]:
    """The data configs of timm's classifiers, one for each class of arithmetic, with 64 pixels and more."""
    classes: dict[tuple, dict] = {}
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name).to_dict()
        if not config.get("num_classes"):
            continue
        data = resolve_data_config(pretrained_cfg=config)
        margin = math.floor(data["input_size"][1] / data["crop_pct"]) - data["input_size"][1]
        key = (margin % 4, margin < 0, data["crop_mode"], data["interpolation"])
        if key not in classes or data["input_size"][1] < classes[key]["input_size"][1]:
            classes[key] = data
    return classes


PREPROCESSINGS = all_preprocessings() | {
    ("64 pixels", crop, mode): {
        "input_size": (3, 64, 64), "crop_pct": crop, "crop_mode": mode, "interpolation": interpolation,
        "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3),
    }
    for crop in (0.95, 0.9, 0.875, 1.0, 1.15, 1.3)
    for mode, interpolation in (("center", "bicubic"), ("squash", "bilinear"))
}  # fmt: skip


def test_every_class_of_arithmetic_of_timm_is_compared():
    assert {key[0] for key in PREPROCESSINGS} >= {0, 1, 2, 3} and any(key[1] is True for key in PREPROCESSINGS)


@pytest.mark.parametrize("size", [(64, 64), (80, 120), (33, 200), (512, 512)])
@pytest.mark.parametrize("config", PREPROCESSINGS.values(), ids=map(str, PREPROCESSINGS))
def test_preprocessing_equals_timm(config, size):
    """On fine noise the tolerance is 1.1 of 255, because Pillow rounds to bytes after each of two passes."""
    noise = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())
    network = network_with_outputs(1000)
    network.pretrained_cfg = config
    classifier = Classifier(network, [str(k) for k in range(1000)], timm_preprocessing(network))
    expected = create_transform(**config)(image)[None]
    actual = classifier._preprocess(to_tensor(image)[None])
    assert actual.shape == expected.shape
    assert ((actual - expected) * classifier.std).abs().max() * 255 < 1.1


def test_features_and_logits_are_those_of_the_network(saved_network):
    folder, network = saved_network
    classifier = load_classifier(folder)
    images = torch.rand(2, 3, 60, 90, generator=torch.Generator().manual_seed(0))
    features, logits = classifier.features_and_logits(images)
    torch.testing.assert_close(logits, network(classifier._preprocess(images)))
    assert features.shape == (2, classifier.num_features)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("interpolation", "nearest", "interpolation in .* must be bicubic or bilinear, got 'nearest'"),
        ("interpolation", "lanczos", "got 'lanczos'"),
        ("crop_mode", "border", "crop_mode in .* must be center or squash, got 'border'"),
        ("input_size", (1, 48, 48), "3 channels, got 1 x 48 x 48"),
        ("input_size", (3, 48, 64), "square with 3 channels, got 3 x 48 x 64"),
        ("crop_pct", -1.0, "crop_pct and std"),
        ("std", (0.2, 0.0, 0.2), "crop_pct and std"),
    ],
)
def test_other_preprocessings_are_rejected(key, value, message):
    network = network_with_outputs(1000)
    network.pretrained_cfg = {"input_size": (3, 48, 48), key: value}
    with pytest.raises(ValueError, match=f"data.classifier: .*{message}"):
        timm_preprocessing(network)


def test_weights_without_the_last_layer_are_rejected(saved_network, tmp_path):
    """timm fills the last layer with random numbers if the config's number of classes is not that of the file."""
    folder = shutil.copytree(saved_network[0], tmp_path / "timm")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {**config["model_args"], "num_classes": 7}
    config["label_names"] = [f"thing {k}" for k in range(7)]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"data\.classifier: the weights of .* do not contain fc\.weight \(2 such"):
        load_classifier(folder)


def test_weights_without_a_layer_are_rejected(saved_network, tmp_path):
    folder = shutil.copytree(saved_network[0], tmp_path / "timm")
    path = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "fc.bias"}, path)
    with pytest.raises(ValueError, match=r"data\.classifier: .*fc\.bias"):
        load_classifier(folder)


def test_label_names_of_the_config_take_precedence(saved_network, tmp_path):
    config = json.loads((saved_network[0] / "config.json").read_text())
    names = [f"thing {k}" for k in range(998)] + ["n01440764", "n01443537"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"label_names": names}))
    (tmp_path / "model.safetensors").symlink_to(saved_network[0] / "model.safetensors")
    assert load_classifier(tmp_path).labels[-3:] == ["thing 997", "tench", "goldfish"]


def network_with_outputs(count):
    network = nn.Identity()
    network.num_classes = count
    network.pretrained_cfg = {"num_classes": count}
    return network


def test_imagenet_21k_uses_the_names_of_imagenet_1k():
    network = network_with_outputs(21841)
    labels = class_labels(network, "x")
    shared = {c.name for c in imagenet_classes()} & set(labels)
    assert len(set(labels)) == 21841 and "crane (n02012849)" in shared
    assert len(shared) > 900  # a few classes are not in ImageNet-21k
    with pytest.raises(ValueError, match=r"data\.classifier: x has 7 outputs and no label names"):
        class_labels(network_with_outputs(7), "x")


def test_sources_that_timm_loads(saved_network, tmp_path):
    assert (
        is_timm_source(saved_network[0])
        and is_timm_source("timm/resnet50.a1_in1k")
        and is_timm_source("resnet50.a1_in1k")
    )
    assert not any(map(is_timm_source, ("/nowhere", "runs/x/model", "assets/models/classifier", str(tmp_path))))


def test_unavailable_models_give_one_line_errors(monkeypatch, saved_network, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"data\.classifier: timm cannot load timm/no_such") as caught:
        load_classifier("timm/no_such")
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text((saved_network[0] / "config.json").read_text())
    with pytest.raises(ValueError, match="timm cannot load"):
        load_classifier(tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights in the format of FID's Inception."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    state = {}

    class RandomInception(FeatureExtractorInceptionV3):
        def load_state_dict(self, _, **options):
            state.update(self.state_dict())

    torch.save({}, path)
    torch.manual_seed(0)
    RandomInception("inception-v3-compat", ["2048"], str(path))
    torch.save(state, path)
    return path


@pytest.mark.slow
def test_inception_features_match_torchmetrics_fid(weights):
    images = (torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 255).byte()
    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(weights))
    features = load_inception(weights)(images)
    torch.testing.assert_close(features, metric.inception(images).double())
    assert features.shape == (3, 2048) and features.std() > 0


def test_invalid_inception_files_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.inception: /nowhere does not exist"):
        load_inception("/nowhere")
    (tmp_path / "bad.pth").write_bytes(b"none")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    for name in ("bad.pth", "other.pth"):
        with pytest.raises(ValueError, match=r"does not contain the weights of FID's Inception-v3"):
            load_inception(tmp_path / name)
