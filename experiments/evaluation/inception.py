"""Features of Inception-v3 as published FIDs have them, by torchmetrics, from a file of weights on this machine."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import NoTrainInceptionV3

from experiments.reporting.finite import NonFiniteError, is_finite

NAME = "Inception-v3"
FEATURES = 2048


class Inception(nn.Module):
    """``uint8 [B, 3, H, W]`` of any size to the pool features ``float64 [B, 2048]`` of FID."""

    num_features = FEATURES
    title = NAME

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features = self.network(images)
        if not is_finite(features).all():
            raise NonFiniteError("the features of Inception-v3 are not finite: its file is damaged, name another.")
        return features.double()


def load_inception(path: str | Path, device: str | torch.device = "cpu") -> Inception:
    """The network with the weights of ``path``: torch-fidelity's ``pt_inception-2015-12-05-*.pth``.

    ValueError if they are missing or of another network.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"metrics.inception={path} is no file: name torch-fidelity's pt_inception-2015-12-05-6726825d.pth, or "
            "leave it out for the judge's features."
        )
    try:
        network = NoTrainInceptionV3("inception-v3-compat", [str(FEATURES)], str(path))
    except (RuntimeError, OSError, KeyError, AttributeError, TypeError, pickle.UnpicklingError, EOFError) as error:
        said = " ".join(str(error).split())[:120]
        raise ValueError(f"metrics.inception={path} holds no weights of FID's Inception-v3 ({said}).") from None
    return Inception(network.requires_grad_(False).to(device))
