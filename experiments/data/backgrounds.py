"""Drawings on colored backgrounds: the image of one row of the caption corpus.

A drawing is a straight-alpha RGBA square. An *augmentation seed* determines background color, size, position and
mirroring, so that a pair (drawing, seed) always gives the same image.
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
AUGMENTATIONS = 48  # number of seeds: every background eight times
SCALES = (0.84, 0.98)  # smallest and largest side of the drawing, as a fraction of the image side


@dataclass(frozen=True)
class Augmentation:
    """Parameters of one augmentation seed; lengths are fractions of the image side."""

    background: str
    scale: float
    left: float
    top: float
    mirrored: bool

    @classmethod
    def from_seed(cls, seed: int) -> Augmentation:
        """The augmentation of ``seed`` in ``[0, AUGMENTATIONS)``; backgrounds alternate."""
        if not 0 <= seed < AUGMENTATIONS:
            raise ValueError(f"augmentation seed {seed} is outside [0, {AUGMENTATIONS}): choose a seed in that range.")
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
    """The drawing centered on ``background``, as in references and real images for FID."""
    scale = sum(SCALES) / 2
    return Augmentation(background, scale, (1 - scale) / 2, (1 - scale) / 2, mirrored=False)


def composite(drawing: Image.Image, augmentation: Augmentation) -> Image.Image:
    """Composites a drawing onto its background: an RGB image of the size of the drawing.

    The drawing is composited before it is resized, because resizing straight alpha darkens edges.
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
    """``uint8 [3, H, W]`` of an RGB image."""
    return np.array(image, dtype=np.uint8).transpose(2, 0, 1)
