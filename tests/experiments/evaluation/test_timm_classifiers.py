"""Judges of timm: folders that it saved, ImageNet's labels by index, its own preprocessing; Inception's features."""

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

from experiments.evaluation import load_classifier, load_inception
from experiments.evaluation.timm_classifiers import is_timm_source, class_labels
from experiments.imagenet_classes import imagenet_classes

TINY = {"channels": [8, 8, 16, 16], "stem_width": 8}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small network with ImageNet's outputs, as timm saves it, and the network."""
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=1000, **TINY).eval()
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, 48, 48), "crop_pct": 0.8}
    save_for_hf(network, folder, model_args=TINY, safe_serialization=True)
    return folder, network


def test_a_folder_of_timm_has_imagenets_labels_by_index(saved):
    judge = load_classifier(saved[0])
    assert judge.labels == [c.name for c in imagenet_classes()] and judge.title == "resnet10t"
    assert judge.labels[134] == "crane (n02012849)" and judge.image_size == 48 and judge.crop == 0.8


@pytest.mark.parametrize("size", [(60, 90), (90, 60), (33, 33)])
def test_images_are_prepared_as_timm_does(saved, size):
    """Against timm's transform on the same image, smooth as photographs are: its PIL rounds to bytes between."""
    folder, network = saved
    small = Image.fromarray((torch.rand(5, 6, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy())
    image = small.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    config = resolve_data_config(pretrained_cfg=dict(network.pretrained_cfg), model=network)
    expected = create_transform(**config)(image)[None]
    judge = load_classifier(folder)
    prepared = judge._prepare(to_tensor(image)[None])
    assert prepared.shape == expected.shape
    assert (prepared - expected).abs().mean() < 0.02  # of values whose deviation is 1
    features, logits = judge.features_and_logits(to_tensor(image)[None])
    torch.testing.assert_close(logits, network(prepared))
    assert features.shape == (1, judge.num_features)


def test_names_in_the_file_go_before_imagenets(saved, tmp_path):
    config = json.loads((saved[0] / "config.json").read_text())
    names = [f"thing {k}" for k in range(998)] + ["n01440764", "n01443537"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"label_names": names}))
    (tmp_path / "model.safetensors").symlink_to(saved[0] / "model.safetensors")
    assert load_classifier(tmp_path).labels[-3:] == ["thing 997", "tench", "goldfish"]


def test_larger_sets_name_imagenets_classes_alike():
    network, unknown = nn.Identity(), nn.Identity()
    network.num_classes, network.pretrained_cfg = 21841, {"num_classes": 21841}
    unknown.num_classes, unknown.pretrained_cfg = 7, {"num_classes": 7}
    labels = class_labels(network, "x")
    shared = {c.name for c in imagenet_classes()} & set(labels)
    assert len(set(labels)) == 21841 and len(shared) > 900 and "crane (n02012849)" in shared  # a few it has not
    with pytest.raises(ValueError, match=r"data\.classifier=x has 7 outputs and no names for them"):
        class_labels(unknown, "x")


def test_which_names_are_timms(saved, tmp_path):
    assert is_timm_source(saved[0]) and is_timm_source("timm/resnet50.a1_in1k") and is_timm_source("resnet50.a1_in1k")
    assert not any(map(is_timm_source, ("/nowhere", "runs/x/model", "assets/models/classifier", str(tmp_path))))


def test_a_model_that_cannot_be_had_is_said_in_one_sentence(monkeypatch, saved, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"data\.classifier=timm/no_such is no model that timm can load") as caught:
        load_classifier("timm/no_such")
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text((saved[0] / "config.json").read_text())
    with pytest.raises(ValueError, match="is no model that timm can load"):
        load_classifier(tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights in the form of FID's Inception."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path, kept = tmp_path_factory.mktemp("inception") / "weights.pth", {}

    class Made(FeatureExtractorInceptionV3):
        def load_state_dict(self, state, **options):
            kept.update(self.state_dict())

    torch.save({}, path)
    torch.manual_seed(0)
    Made("inception-v3-compat", ["2048"], str(path))
    torch.save(kept, path)
    return path


def test_inceptions_features_are_those_of_torchmetrics_fid(weights):
    """The distance of given features is torchmetrics' too, which other tests hold against the formula."""
    images = (torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 255).byte()
    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(weights))
    features = load_inception(weights)(images)
    torch.testing.assert_close(features, metric.inception(images).double())
    assert features.shape == (3, 2048) and features.std() > 0


def test_a_file_that_is_none_of_inceptions_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.inception=/nowhere is no file"):
        load_inception("/nowhere")
    (tmp_path / "bad.pth").write_bytes(b"none")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    for name in ("bad.pth", "other.pth"):
        with pytest.raises(ValueError, match=r"holds no weights of FID's Inception-v3"):
            load_inception(tmp_path / name)
