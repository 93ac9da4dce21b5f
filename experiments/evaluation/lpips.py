"""ST-LPIPS, a perceptual distance: LPIPS with the shift-tolerant AlexNet of Ghildyal and Liu (ECCV 2022).

The weights are not part of this project. The package ``stlpips-pytorch`` 0.0.2 (license BSD-2) contains the weights in
the file ``weights/vST0.0/alex_shift_tolerant.pth``.

ST-LPIPS is computed from five layers, as LPIPS (Zhang et al. 2018) is. In each layer, the channel vectors of both
images are normalized to unit length. The squared differences between the normalized vectors are multiplied by learned
weights of the channels, summed over the channels and averaged over positions. ST-LPIPS is the sum of the results of the
five layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnri.loading import read_weights

CONVOLUTIONS = {  # layer in the weight file: (output channels, input channels, kernel size, padding)
    "slice1.0": (64, 3, 11, 2),
    "slice2.5": (192, 64, 5, 2),
    "slice3.9": (384, 192, 3, 1),
    "slice4.11": (256, 384, 3, 1),
    "slice5.13": (256, 256, 3, 1),
}
MIN_SIDE = 32  # minimum height and width of images, in pixels
POOLED_LAYERS = (1, 2)  # indices of the convolutions whose inputs are max-pooled and downsampled
REMEDY = "unpack stlpips-pytorch 0.0.2 and use its weights/vST0.0/alex_shift_tolerant.pth"


def blur_and_downsample(maps: Tensor) -> Tensor:
    """Convolve feature maps ``[B, C, h, w]`` with a 3 x 3 binomial filter, stride 2 and reflection padding of 2."""
    weights = maps.new_tensor([0.25, 0.5, 0.25])
    filters = torch.outer(weights, weights).expand(maps.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(maps, (2, 2, 2, 2), mode="reflect"), filters, stride=2, groups=maps.shape[1])


class ShiftTolerantLpips(nn.Module):
    """ST-LPIPS distance between images ``[B, 3, H, W]`` in [0, 1], where H and W are at least ``MIN_SIDE`` pixels."""

    shift: Tensor  # [1,3,1,1]
    scale: Tensor  # [1,3,1,1]

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel_size, padding=padding)
            for outputs, inputs, kernel_size, padding in CONVOLUTIONS.values()
        )
        self.weights = nn.ParameterList(torch.ones(outputs) for outputs, *_ in CONVOLUTIONS.values())
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps ``[B, C, h, w]`` of the five layers for images ``[B, 3, H, W]`` in [0, 1]."""
        x = (2 * images - 1 - self.shift) / self.scale
        maps = []
        for k, convolution in enumerate(self.convolutions):
            if k in POOLED_LAYERS:
                x = blur_and_downsample(F.max_pool2d(x, 3, stride=1))
            x = convolution(x)
            x = F.relu(blur_and_downsample(x) if k == 0 else x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the ST-LPIPS distances ``[B]`` between ``images`` and ``targets``.

        Equal images have the distance 0.
        """
        layers = zip(self.feature_maps(images), self.feature_maps(targets), self.weights, strict=True)
        return sum(_layer_distance(a, b, weight) for a, b, weight in layers)


def _layer_distance(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    difference = (F.normalize(a, eps=1e-10) - F.normalize(b, eps=1e-10)).square()
    return (difference * weight.view(1, -1, 1, 1)).sum(1).mean((1, 2))


def load_lpips(path: str | Path, device: str | torch.device = "cpu") -> ShiftTolerantLpips:
    """Load ST-LPIPS with the weights in the file ``path``, in evaluation mode.

    Raises:
        ValueError: the file is missing or damaged, or contains the weights of another network.
    """
    try:
        state = read_weights(path)
    except ValueError as error:
        raise ValueError(f"{error}: {REMEDY}.") from None
    network = ShiftTolerantLpips()
    network.load_state_dict(_rename_weights(path, state, network))
    return network.eval().requires_grad_(False).to(device)


def _rename_weights(path: str | Path, state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename and reshape the weights ``state``, which were read from the file ``path``, so that ``network`` loads them.

    Raises:
        ValueError: the file lacks a weight of ``network``, or a weight in the file has another shape.
    """
    names = {"shift": "scaling_layer.shift", "scale": "scaling_layer.scale"}
    for k, layer in enumerate(CONVOLUTIONS):
        names |= {f"convolutions.{k}.{kind}": f"net.{layer}.{kind}" for kind in ("weight", "bias")}
        names[f"weights.{k}"] = f"lin{k}.model.1.weight"
    expected = network.state_dict()
    for name, tensor in expected.items():
        stored = state.get(names[name])
        shape = (1, len(tensor), 1, 1) if name.startswith("weights.") else tuple(tensor.shape)
        if stored is None or tuple(stored.shape) != shape:
            raise ValueError(f"{path} has no {names[name]} of shape {list(shape)}: {REMEDY}.")
    return {name: state[names[name]].reshape(tensor.shape) for name, tensor in expected.items()}
