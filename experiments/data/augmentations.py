"""Random augmentations that do not change the class of an image. Each image in a batch is augmented differently."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur


def jitter(images: Tensor, color: float = 0.4, blur: float = 0.5) -> Tensor:
    """Return ``images [B, 3, H, W]`` in [0, 1] after random affine maps, color jitter and Gaussian blur.

    Args:
        images: batch of images.
        color: strength of the color jitter, see :func:`color_jitter`.
        blur: fraction of the images to which Gaussian blur is applied.
    """
    images = color_jitter(random_affine(images), color)
    blurred = gaussian_blur(images, [5, 5], [1.0, 1.0])
    selected = (torch.rand(len(images), 1, 1, 1) < blur).to(images)
    return (images + selected * torch.rand_like(selected) * (blurred - images)).clamp(0, 1)


def random_affine(images: Tensor) -> Tensor:
    """Return ``images [B, 3, H, W]`` after a random rotation (at most 20 degrees), scaling, shear and translation.

    Each image has a different random transformation. Areas outside of the original image are filled with the nearest
    pixels at its border.
    """
    rows = len(images)
    angle = (torch.rand(rows) * 2 - 1) * math.radians(20)
    scale = torch.exp((torch.rand(rows, 2) * 2 - 1) * 0.2)
    shear = (torch.rand(rows) * 2 - 1) * 0.2
    cos = angle.cos()
    sin = angle.sin()
    matrix = torch.zeros(rows, 2, 3)
    matrix[:, 0, 0] = cos * scale[:, 0]
    matrix[:, 0, 1] = -sin * scale[:, 0] + shear
    matrix[:, 1, 0] = sin * scale[:, 1]
    matrix[:, 1, 1] = cos * scale[:, 1]
    matrix[:, :, 2] = (torch.rand(rows, 2) * 2 - 1) * 0.15
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False).to(images)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def color_jitter(images: Tensor, strength: float) -> Tensor:
    """Return ``images [B, 3, H, W]`` in [0, 1] with random changes of colors, contrast and brightness.

    The size of the random changes is proportional to ``strength``. The RGB vector of each pixel is multiplied by a
    random 3 x 3 matrix near the identity matrix. Each image is converted to gray with probability 0.1, also if
    ``strength`` is 0.
    """
    rows = len(images)
    matrix = torch.eye(3) + (torch.rand(rows, 3, 3) * 2 - 1) * strength * 0.5
    gray = (torch.rand(rows, 1, 1) < 0.1).float()
    matrix = gray * torch.full((3, 3), 1 / 3) + (1 - gray) * matrix / matrix.sum(-1, keepdim=True).clamp_min(0.3)
    images = torch.einsum("bij,bjhw->bihw", matrix.to(images), images)
    contrast = (1 + (torch.rand(rows, 1, 1, 1) * 2 - 1) * strength).to(images)
    brightness = ((torch.rand(rows, 1, 1, 1) * 2 - 1) * strength * 0.5).to(images)
    return ((images - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)
