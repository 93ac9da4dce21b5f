"""The Inception-v3 features of the published FID, with the network of torchmetrics and weights from a local file."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import NoTrainInceptionV3

from experiments.finite import NonFiniteError, is_finite
from rnri.loading import read_weights

NAME = "Inception-v3"
FEATURES = 2048


class Inception(nn.Module):
    """Maps images ``uint8 [B, 3, H, W]`` of any size to pooled Inception-v3 features ``float64 [B, 2048]``."""

    num_features = FEATURES
    title = NAME

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features = self.network(images)
        if not is_finite(features).all():
            raise NonFiniteError(
                "the features of Inception-v3 are NaN or infinite, because the weight file is damaged: set "
                "metrics.inception to another file."
            )
        return features.double()


def load_inception(path: str | Path, device: str | torch.device = "cpu") -> Inception:
    """Load Inception-v3 with the weights in torch-fidelity's file ``pt_inception-2015-12-05-*.pth``.

    Raises:
        ValueError: the file is missing, or contains the weights of another network.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"metrics.inception: {path} does not exist; set it to torch-fidelity's "
            "pt_inception-2015-12-05-6726825d.pth, or set metrics.inception=null to use the classifier's features."
        )
    try:
        read_weights(path)
        network = NoTrainInceptionV3("inception-v3-compat", [str(FEATURES)], str(path))
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"metrics.inception: {path} does not contain the weights of FID's Inception-v3 "
            f"({shorten(str(error), 300)}); set metrics.inception to torch-fidelity's file."
        ) from None
    return Inception(network.requires_grad_(False).to(device))
