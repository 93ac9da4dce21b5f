"""Drawings on colored backgrounds: the picture that one row of the caption corpus shows.

A drawing is a straight-alpha RGBA square. An *augmentation seed* names a background color, a size, a place
and a mirror image, so that (drawing, seed) is one picture, always the same one.
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
AUGMENTATIONS = 48  # distinct seeds: every background eight times
SCALES = (0.84, 0.98)  # share of the picture's side that the drawing takes


@dataclass(frozen=True)
class Augmentation:
    """What one augmentation seed stands for; lengths are shares of the picture's side."""

    background: str
    scale: float
    left: float
    top: float
    mirrored: bool

    @classmethod
    def from_seed(cls, seed: int) -> Augmentation:
        """The augmentation of ``seed`` in ``[0, AUGMENTATIONS)``; backgrounds take turns."""
        if not 0 <= seed < AUGMENTATIONS:
            raise ValueError(f"augmentation seed {seed} is outside [0, {AUGMENTATIONS}): use a seed of that range.")
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
    """The drawing in the middle of ``background``, as references and real images for FID are shown."""
    scale = sum(SCALES) / 2
    return Augmentation(background, scale, (1 - scale) / 2, (1 - scale) / 2, mirrored=False)


def composite(drawing: Image.Image, augmentation: Augmentation) -> Image.Image:
    """RGB picture of the drawing's size with the drawing placed as ``augmentation`` says.

    The drawing is laid on the background before it is resized: resizing straight alpha darkens edges.
    """
    color = BACKGROUNDS[augmentation.background]
    side = drawing.width
    flat = Image.new("RGBA", drawing.size, (*color, 255))
    flat.alpha_composite(drawing.convert("RGBA"))
    if augmentation.mirrored:
        flat = flat.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    inner = round(side * augmentation.scale)
    picture = Image.new("RGB", drawing.size, color)
    corner = (round(side * augmentation.left), round(side * augmentation.top))
    picture.paste(flat.convert("RGB").resize((inner, inner), Image.Resampling.LANCZOS), corner)
    return picture


def to_array(image: Image.Image) -> np.ndarray:
    """``uint8 [3, H, W]`` of an RGB image."""
    return np.array(image, dtype=np.uint8).transpose(2, 0, 1)
