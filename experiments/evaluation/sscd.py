"""SSCD, a network that detects copied images (Pizzi et al. 2022), with weights from a local file."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.finite import NonFiniteError, is_finite

IMAGE_SIZE = 288  # side of the input images in pixels, as in the published evaluation
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SSCD_COPY = 0.5
"""An image counts as a copy if its SSCD similarity to a reference is above this threshold (Somepalli et al. 2023)."""


class Sscd(nn.Module):
    """Maps images ``uint8 [B, 3, H, W]`` of any size to descriptors ``float32 [B, D]`` of unit length.

    The similarity of two images is the scalar product of their descriptors.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = F.interpolate(
            images.to(self.mean.device).float() / 255, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True
        )
        descriptors = F.normalize(self.network((pixels - self.mean) / self.std))
        if not is_finite(descriptors).all():
            raise NonFiniteError(
                "the descriptors of SSCD are NaN or infinite, because the weight file is damaged: set metrics.sscd to "
                "another file."
            )
        return descriptors


@torch.no_grad()
def similarities(sscd: Sscd, images: Tensor, references: Tensor) -> list[float]:
    """Return the SSCD similarity of each of n images to its most similar reference, from -1 to 1 (the same image).

    Args:
        sscd: the SSCD network.
        images: n images, ``uint8 [n, 3, H, W]``.
        references: R references, ``uint8 [R, 3, H, W]``, where R > 0.
    """
    return (sscd(images) @ sscd(references).T).amax(1).tolist() if len(images) else []


def load_sscd(path: str | Path, device: str | torch.device = "cpu") -> Sscd:
    """Load SSCD from a TorchScript file, such as the file ``sscd_disc_mixup.torchscript.pt`` of the authors of SSCD.

    Raises:
        ValueError: the file is missing or not a TorchScript file, or the network in the file does not return one vector
            per image.
    """
    remedy = (
        "set metrics.sscd to sscd_disc_mixup.torchscript.pt of github.com/facebookresearch/sscd-copy-detection, or to "
        "null"
    )
    if not Path(path).is_file():
        raise ValueError(f"metrics.sscd: {path} does not exist; {remedy}.")
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
        with torch.no_grad():
            output = network(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device))
        if output.ndim != 2 or len(output) != 1:
            raise ValueError(f"the network returned a tensor of shape {list(output.shape)} for one image")
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"metrics.sscd: {path} does not contain SSCD ({shorten(str(error), 200)}); {remedy}."
        ) from None
    return Sscd(network).to(device)
