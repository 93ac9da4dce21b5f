"""LPIPS with real weights: the shift-tolerant AlexNet of Ghildyal and Liu (ECCV 2022), read from a file of theirs.

The weights are those of the package ``stlpips-pytorch`` 0.0.2 (BSD-2), ``weights/vST0.0/alex_shift_tolerant.pth``,
which this project does not hold; the network is written from the names and shapes in that file. Its five layers are
compared as LPIPS does (Zhang et al. 2018): channel vectors of unit length, squared differences under learned weights,
means over places, summed over layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS = {  # name in the file: outputs, inputs, side, padding
    "slice1.0": (64, 3, 11, 2),
    "slice2.5": (192, 64, 5, 2),
    "slice3.9": (384, 192, 3, 1),
    "slice4.11": (256, 384, 3, 1),
    "slice5.13": (256, 256, 3, 1),
}
SMALLEST = 32  # pixels a side
SHRUNK = (1, 2)  # layers before which the maps are pooled and shrunk
REMEDY = "unpack stlpips-pytorch 0.0.2 and name its weights/vST0.0/alex_shift_tolerant.pth"


def halve(maps: Tensor) -> Tensor:
    """Maps ``[B, C, h, w]``, mirrored by two at the edges, under the 3 x 3 binomial filter, at every second place."""
    line = maps.new_tensor([0.25, 0.5, 0.25])
    filters = torch.outer(line, line).expand(maps.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(maps, (2, 2, 2, 2), mode="reflect"), filters, stride=2, groups=maps.shape[1])


class ShiftTolerantLpips(nn.Module):
    """Distances of images ``[B, 3, H, W]`` in [0, 1], at least ``SMALLEST`` pixels a side; see :func:`load_lpips`."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, side, padding=padding)
            for outputs, inputs, side, padding in CONVOLUTIONS.values()
        )
        self.weights = nn.ParameterList(torch.ones(outputs) for outputs, *_ in CONVOLUTIONS.values())
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The five layers ``[B, C, h, w]``."""
        x, maps = (2 * images - 1 - self.shift) / self.scale, []
        for k, convolution in enumerate(self.convolutions):
            if k in SHRUNK:
                x = halve(F.max_pool2d(x, 3, stride=1))
            x = convolution(x)
            x = F.relu(halve(x) if k == 0 else x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """``[B]``, 0 for equal images."""
        layers = zip(self.feature_maps(images), self.feature_maps(targets), self.weights, strict=True)
        return sum(_layer(a, b, weight) for a, b, weight in layers)


def _layer(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    difference = (F.normalize(a, eps=1e-10) - F.normalize(b, eps=1e-10)).square()
    return (difference * weight.view(1, -1, 1, 1)).sum(1).mean((1, 2))


def load_lpips(path: str | Path, device: str | torch.device = "cpu") -> ShiftTolerantLpips:
    """The distance whose weights are in ``path``, in evaluation mode.

    Raises:
        ValueError: the file is missing, damaged, or of another network.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # of files, of pickle and of zip archives
        raise ValueError(f"{path} cannot be read as weights ({str(error).splitlines()[0]}): {REMEDY}.") from None
    network = ShiftTolerantLpips()
    network.load_state_dict(_renamed(path, state, network))
    return network.eval().requires_grad_(False).to(device)


def _renamed(path: str | Path, state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    names = {"shift": "scaling_layer.shift", "scale": "scaling_layer.scale"}
    for k, part in enumerate(CONVOLUTIONS):
        names |= {f"convolutions.{k}.{what}": f"net.{part}.{what}" for what in ("weight", "bias")}
        names[f"weights.{k}"] = f"lin{k}.model.1.weight"
    for own, tensor in network.state_dict().items():
        given = state.get(names[own])
        if given is None or given.numel() != tensor.numel():
            raise ValueError(f"{path} has no {names[own]} of {tensor.numel()} numbers: {REMEDY}.")
    return {own: state[name].reshape(network.state_dict()[own].shape) for own, name in names.items()}
