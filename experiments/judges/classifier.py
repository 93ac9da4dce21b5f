"""The judge: a timm network in a local folder, which names concepts and supplies the features of FID and KID."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Classifier(nn.Module):
    """A timm network with its labels and its preprocessing; images are ``[B, 3, H, W]`` in [0, 1] of any size."""

    def __init__(self, network: nn.Module, labels: Sequence[str], image_size: int, mean: Sequence[float],
                 std: Sequence[float]) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.labels = list(labels)
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)

    @property
    def num_features(self) -> int:
        return self.network.num_features

    def _prepare(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, labels]``."""
        return self.network(self._prepare(images))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features ``[B, num_features]`` and logits ``[B, labels]`` from one pass."""
        maps = self.network.forward_features(self._prepare(images))
        features = self.network.forward_head(maps, pre_logits=True)
        return features, self.network.get_classifier()(features)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The outputs ``[B, C, h, w]`` of the network's stages."""
        return self.network.forward_intermediates(self._prepare(images), intermediates_only=True)

    def save(self, folder: str | Path, architecture: str) -> None:
        """Weights in half precision, and what it takes to build the network again."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.network.state_dict()
        half = {name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in state.items()}
        save_file(half, folder / WEIGHTS)
        config = {
            "architecture": architecture,
            "image_size": self.image_size,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "labels": self.labels,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def load_classifier(folder: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """The classifier saved in ``folder``, in evaluation mode and single precision; ValueError names what is missing."""
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} holds no {name}: point data.classifier at a folder made by "
                "`python train.py experiment=pretrain_classifier`."
            )
    config = json.loads((folder / CONFIG).read_text())
    network = timm.create_model(config["architecture"], num_classes=len(config["labels"]))
    network.load_state_dict({name: v.float() if v.is_floating_point() else v
                             for name, v in load_file(folder / WEIGHTS).items()})  # fmt: skip
    classifier = Classifier(network, config["labels"], config["image_size"], config["mean"], config["std"])
    return classifier.eval().requires_grad_(False).to(device)
