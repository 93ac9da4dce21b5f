"""Classifiers saved or published by timm, and Inception's features."""

import json

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.transforms.functional import to_tensor

from experiments.evaluation.classifier import load_classifier
from experiments.evaluation.inception import load_inception
from experiments.evaluation.timm_classifiers import class_labels, is_timm_source
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


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (33, 33)])
def test_preprocessing_matches_timm(saved_network, size):
    """Compares with timm's transform on a smooth image. They differ slightly, because PIL rounds to bytes."""
    folder, network = saved_network
    small = Image.fromarray((torch.rand(5, 6, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy())
    image = small.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    config = resolve_data_config(pretrained_cfg=dict(network.pretrained_cfg), model=network)
    expected = create_transform(**config)(image)[None]
    classifier = load_classifier(folder)
    prepared = classifier._preprocess(to_tensor(image)[None])
    assert prepared.shape == expected.shape
    assert (prepared - expected).abs().mean() < 0.02  # of values with a standard deviation of 1
    features, logits = classifier.features_and_logits(to_tensor(image)[None])
    torch.testing.assert_close(logits, network(prepared))
    assert features.shape == (1, classifier.num_features)


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


def test_inception_features_match_torchmetrics_fid(weights):
    images = (torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 255).byte()
    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(weights))
    features = load_inception(weights)(images)
    torch.testing.assert_close(features, metric.inception(images).double())
    assert features.shape == (3, 2048) and features.std() > 0


def test_invalid_inception_files_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.inception: file not found, got /nowhere"):
        load_inception("/nowhere")
    (tmp_path / "bad.pth").write_bytes(b"none")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    for name in ("bad.pth", "other.pth"):
        with pytest.raises(ValueError, match=r"does not contain the weights of FID's Inception-v3"):
            load_inception(tmp_path / name)
