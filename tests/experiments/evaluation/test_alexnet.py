"""The shift-tolerant AlexNet as a classifier, with random weights."""

import pytest
import timm
import torch

from experiments.evaluation.alexnet import ShiftTolerantAlexNet
from experiments.evaluation.classifier import Classifier, Preprocessing, load_classifier
from experiments.evaluation.lpips import CONVOLUTIONS, ShiftTolerantLpips

SETTINGS = Preprocessing(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def network() -> ShiftTolerantAlexNet:
    torch.manual_seed(0)
    return timm.create_model("shift_tolerant_alexnet", num_classes=3).eval()


def test_saved_classifier_predicts_as_before(network, tmp_path):
    classifier = Classifier(network, ["a", "b", "c"], SETTINGS)
    classifier.save(tmp_path, "shift_tolerant_alexnet")
    loaded = load_classifier(tmp_path)
    images = torch.rand(2, 3, 48, 80)
    torch.testing.assert_close(loaded(images), classifier(images), rtol=0, atol=1e-3)  # weights are stored as float16
    features, logits = loaded.features_and_logits(images)
    assert features.shape == (2, loaded.num_features) == (2, 1024)
    torch.testing.assert_close(logits, network.head(features), rtol=0, atol=1e-3)
    assert [maps.shape[1] for maps in loaded.feature_maps(images)] == [64, 192, 384, 256, 256]


def test_trunk_is_read_from_the_published_file(network, tmp_path):
    published = ShiftTolerantLpips()
    names = {"scaling_layer.shift": published.shift + 0.1, "scaling_layer.scale": published.scale * 2}
    for k, layer in enumerate(CONVOLUTIONS):
        names[f"net.{layer}.weight"] = published.convolutions[k].weight
        names[f"net.{layer}.bias"] = published.convolutions[k].bias
        names[f"lin{k}.model.1.weight"] = published.weights[k].view(1, -1, 1, 1)
    torch.save({name: tensor.detach() for name, tensor in names.items()}, tmp_path / "alex.pth")
    network.load_trunk(tmp_path / "alex.pth")
    assert network.trunk.shift.flatten().tolist() == pytest.approx([0.1] * 3)
    assert torch.equal(network.trunk.convolutions[4].weight, published.convolutions[4].weight)


def test_pretrained_weights_are_refused():
    with pytest.raises(ValueError, match="has no pretrained weights in timm"):
        timm.create_model("shift_tolerant_alexnet", pretrained=True)
