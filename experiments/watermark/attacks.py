"""Attacks on watermarked images: changes of an image, such as JPEG compression, that may destroy its watermark."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from PIL import Image
from pydantic import PositiveFloat
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from rnri import LatentDiffusion
from rnri.models.noise import noise_for_samples
from rnri.validation import HalfOpenUnitInterval, dataclass

NO_ATTACK = "none"
"""Name for images without an attack in the list of attacks and in the column ``attack`` of the results."""


class Attack(ABC):
    """Base class of attacks, which change watermarked images."""

    @abstractmethod
    def __call__(self, images: Tensor, names: Sequence[str], model: LatentDiffusion) -> Tensor:
        """Return the changed images ``[B,3,H,W]``.

        Pixel values may exceed [0, 1], because the caller clamps the images.

        Args:
            images: images ``[B,3,H,W]`` in [0, 1].
            names: name of each image. For an attack with random numbers, the name of an image determines the seed of
                the random generator.
            model: the model that generated the images.
        """


@dataclass(frozen=True)
class JpegAttack(Attack):
    """Compresses the images with JPEG, with a ``quality`` from 1 to 95."""

    quality: Annotated[int, Ge(1), Le(95)] = 25

    def __call__(self, images: Tensor, names: Sequence[str], model: LatentDiffusion) -> Tensor:
        return torch.stack([self._compress(image) for image in images.cpu()]).to(images.device)

    def _compress(self, image: Tensor) -> Tensor:
        data = io.BytesIO()
        pixels = np.ascontiguousarray((image * 255).round().byte().permute(1, 2, 0).numpy())
        Image.fromarray(pixels).save(data, "JPEG", quality=self.quality)
        return F.to_dtype(F.pil_to_tensor(Image.open(data)), torch.float32, scale=True)


@dataclass(frozen=True)
class BlurAttack(Attack):
    """Blurs images with a Gaussian whose standard deviation is ``sigma`` times the smaller side of the images."""

    sigma: PositiveFloat = 0.01

    def __call__(self, images: Tensor, names: Sequence[str], model: LatentDiffusion) -> Tensor:
        sigma = self.sigma * min(images.shape[-2:])
        return F.gaussian_blur(images, [2 * round(3 * sigma) + 1] * 2, [sigma] * 2)


@dataclass(frozen=True)
class NoiseAttack(Attack):
    """Adds Gaussian noise with the standard deviation ``std`` to pixel values in [0, 1]."""

    std: PositiveFloat = 0.05

    def __call__(self, images: Tensor, names: Sequence[str], model: LatentDiffusion) -> Tensor:
        noise = noise_for_samples([f"attack\n{name}" for name in names], 0, tuple(images.shape[1:]))
        return images + self.std * noise.to(images.device)


@dataclass(frozen=True)
class BrightnessAttack(Attack):
    """Multiplies the brightness of the images by ``factor``."""

    factor: PositiveFloat = 2.0

    def __call__(self, images: Tensor, names: Sequence[str], model: LatentDiffusion) -> Tensor:
        return F.adjust_brightness(images, self.factor)


@dataclass(frozen=True)
class CropAttack(Attack):
    """Crops the images to the central part, which has ``side`` times the height and width, and resizes the crop."""

    side: HalfOpenUnitInterval = 0.9

    def __call__(self, images: Tensor, names: Sequence[str], model: LatentDiffusion) -> Tensor:
        height, width = images.shape[-2:]
        cropped = F.center_crop(images, [round(self.side * height), round(self.side * width)])
        return F.resize(cropped, [height, width], antialias=True)


@dataclass(frozen=True)
class RotationAttack(Attack):
    """Rotates the images by ``degrees`` about their center, and fills the corners with white."""

    degrees: Annotated[float, Gt(-180), Le(180)] = 10.0

    def __call__(self, images: Tensor, names: Sequence[str], model: LatentDiffusion) -> Tensor:
        return F.rotate(images, self.degrees, v2.InterpolationMode.BILINEAR, fill=[1.0, 1.0, 1.0])


@dataclass(frozen=True)
class VaeAttack(Attack):
    """Encodes and decodes the images with the VAE of the model."""

    def __call__(self, images: Tensor, names: Sequence[str], model: LatentDiffusion) -> Tensor:
        with torch.no_grad():
            return model.decode(model.encode(images))


def publish(images: Tensor) -> Tensor:
    """Return ``images [B,3,H,W]`` in [0, 1], rounded to 8 bits per color, as if they were saved to an image file."""
    return (images.clamp(0, 1) * 255).round() / 255
