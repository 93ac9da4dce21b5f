"""Places emoji drawings on colored backgrounds, to create the images of the emoji corpus.

A drawing is a square RGBA image with straight (not premultiplied) alpha. An integer, the *augmentation seed*,
determines the background color of the image and the size, position and mirroring of the drawing. The same drawing and
augmentation seed always produce the same image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "blue": (200, 222, 245),
    "green": (205, 236, 207),
    "pink": (250, 213, 222),
    "yellow": (252, 241, 199),
    "purple": (226, 214, 244),
}
AUGMENTATIONS = 48  # number of augmentation seeds; each of the six backgrounds belongs to eight seeds
SCALES = (0.84, 0.98)  # smallest and largest side of the drawing, as a fraction of the side of the image


@dataclass(frozen=True)
class Augmentation:
    """The background color of an image, and the size, position and mirroring of the drawing in the image.

    Attributes:
        background: name of the background color, a key of ``BACKGROUNDS``.
        scale: side of the drawing as a fraction of the side of the image.
        left, top: position of the upper left corner of the drawing as a fraction of the side of the image.
        mirrored: whether the drawing is flipped horizontally.
    """

    background: str
    scale: float
    left: float
    top: float
    mirrored: bool

    @classmethod
    def from_seed(cls, seed: int) -> Augmentation:
        """Return the augmentation for the augmentation seed ``seed``. Consecutive seeds give different backgrounds.

        Raises:
            ValueError: ``seed`` is not an integer from 0 to ``AUGMENTATIONS - 1``.
        """
        if not 0 <= seed < AUGMENTATIONS:
            raise ValueError(f"augmentation seed {seed} does not exist: choose a seed from 0 to {AUGMENTATIONS - 1}.")
        scale, left, top, mirror = np.random.default_rng(seed).random(4)
        scale = SCALES[0] + (SCALES[1] - SCALES[0]) * scale
        return cls(
            background=list(BACKGROUNDS)[seed % len(BACKGROUNDS)],
            scale=float(scale),
            left=float((1 - scale) * left),
            top=float((1 - scale) * top),
            mirrored=bool(mirror < 0.5),
        )


def no_augmentation(background: str = "white") -> Augmentation:
    """Return the fixed augmentation that centers a drawing on ``background``, for reference images and for FID."""
    scale = sum(SCALES) / 2
    return Augmentation(background, scale, (1 - scale) / 2, (1 - scale) / 2, mirrored=False)


def composite(drawing: Image.Image, augmentation: Augmentation) -> Image.Image:
    """Return ``drawing`` on the background of ``augmentation``, as an RGB image of the same size as the drawing.

    The drawing is composited with the background color before it is resized, because resizing an RGBA image with
    straight (not premultiplied) alpha darkens its edges.
    """
    color = BACKGROUNDS[augmentation.background]
    side = drawing.width
    flat = Image.new("RGBA", drawing.size, (*color, 255))
    flat.alpha_composite(drawing.convert("RGBA"))
    if augmentation.mirrored:
        flat = flat.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    inner = round(side * augmentation.scale)
    image = Image.new("RGB", drawing.size, color)
    corner = (round(side * augmentation.left), round(side * augmentation.top))
    image.paste(flat.convert("RGB").resize((inner, inner), Image.Resampling.LANCZOS), corner)
    return image


def to_array(image: Image.Image) -> np.ndarray:
    """Return an RGB image as an array ``uint8 [3, H, W]``."""
    return np.array(image, dtype=np.uint8).transpose(2, 0, 1)
