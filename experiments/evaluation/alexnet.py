"""The timm classifier ``shift_tolerant_alexnet``: the convolutional layers of ST-LPIPS and a linear layer.

The network serves as a second evaluation classifier, because it is not related to the EfficientNet that is the first
evaluation classifier. Importing this module registers the network in timm, so that ``timm.create_model`` can create it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.evaluation.lpips import AlexNetTrunk, load_lpips

__all__ = ["ShiftTolerantAlexNet", "shift_tolerant_alexnet"]  # timm's register_model adds to this list

GRID = 2  # the last feature maps are averaged over a grid of GRID x GRID cells
DROPOUT = 0.3


class ShiftTolerantAlexNet(nn.Module):
    """A classifier of images ``[B, 3, H, W]`` in [0, 1] with the interface of timm's networks.

    Args:
        num_classes: number of logits.
    """

    pretrained_cfg: ClassVar[dict[str, Any]] = {
        "input_size": (3, 64, 64),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    """Settings of timm's preprocessing, which leave images unchanged, because the network itself normalizes images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.trunk = AlexNetTrunk()
        self.num_classes = num_classes
        self.num_features = GRID**2 * self.trunk.convolutions[-1].out_channels
        self.head = nn.Linear(self.num_features, num_classes)

    def forward_intermediates(self, images: Tensor, *, intermediates_only: bool) -> list[Tensor]:
        """Return the feature maps ``[B, C, h, w]`` of the five convolutional layers.

        ``intermediates_only`` must be true.
        """
        if not intermediates_only:
            raise ValueError("intermediates_only: must be true, got false.")
        return self.trunk.feature_maps(images)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the feature maps ``[B, C, h, w]`` of the last convolutional layer."""
        return self.trunk.feature_maps(images)[-1]

    def forward_head(self, maps: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return the logits ``[B, num_classes]``.

        If ``pre_logits`` is true, return the features ``[B, num_features]``.
        """
        features = F.adaptive_avg_pool2d(maps, GRID).flatten(1)
        return features if pre_logits else self.head(F.dropout(features, DROPOUT, self.training))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Linear:
        return self.head

    def load_trunk(self, path: str | Path) -> None:
        """Load the convolutional layers from the file ``alex_shift_tolerant.pth`` of the package stlpips-pytorch.

        Raises:
            ValueError: the file is missing or damaged, or contains the weights of another network.
        """
        published = load_lpips(path).state_dict()
        with torch.no_grad():
            self.trunk.load_state_dict({name: published[name] for name in self.trunk.state_dict()})


@register_model
def shift_tolerant_alexnet(pretrained: bool = False, num_classes: int = 1000, **_: Any) -> ShiftTolerantAlexNet:
    """Create the network for ``timm.create_model``. timm has no pretrained weights for this network.

    Raises:
        ValueError: ``pretrained`` is true.
    """
    if pretrained:
        raise ValueError("shift_tolerant_alexnet has no pretrained weights in timm; set task.init_from to a file")
    return ShiftTolerantAlexNet(num_classes)
