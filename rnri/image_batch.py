"""Converts the ``images`` argument of ``rnri.invert`` to a batch of tensors of the model's image size."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from rnri.images import on_white, to_rgba

ImageInput = str | Path | Image.Image | np.ndarray | Tensor
Images = ImageInput | Sequence[ImageInput]
Fit = Literal["crop", "pad", "stretch", "exact"]

EFFECTS = {
    "crop": "The edges are cut off; fit='pad' keeps the whole image, and fit='exact' keeps the size.",
    "pad": "White borders are added; fit='exact' keeps the size.",
    "stretch": "The aspect ratio changes; fit='pad' keeps the aspect ratio, and fit='exact' keeps the size.",
}
"""How each value of ``fit`` changes an image of another size, for the message to the user."""

logger = logging.getLogger(__name__)


def as_images(images: Images, image_size: tuple[int, int] | None, fit: Fit = "crop") -> Tensor:
    """Convert images to a float32 tensor ``[B,3,H,W]`` in [0, 1].

    Args:
        images: one image, a list of images, or a batch of arrays or tensors; see :func:`rnri.api.invert`.
        image_size: height and width of the model's images in pixels; None for ``fit="exact"``, which ignores
            ``image_size``.
        fit: how an image is resized if its size is not ``image_size``; see :func:`rnri.api.invert`.

    Raises:
        ValueError: an image is damaged, has an unsupported type or shape, or has values outside [0, 1]; the gray level
            of white is unknown in a gray image with more than 8 bits per pixel; or ``fit`` is ``exact`` and the images
            have different sizes.
        FileNotFoundError: an image file does not exist.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"fit: must be one of {', '.join(get_args(Fit))}, got {fit!r}.")
    tensors = [tensor for image in _as_list(images) for tensor in _to_tensors(image)]
    if not tensors:
        raise ValueError("images: must contain at least one image.")
    if image_size is not None and fit != "exact":
        other = [tensor for tensor in tensors if tensor.shape[1:] != image_size]
        if other:
            height, width = other[0].shape[1:]
            logger.warning(
                f"images: {len(other)} of {len(tensors)} images resized by fit={fit!r} to the image size of the "
                f"model, {image_size[1]}x{image_size[0]} pixels (for example from {width}x{height}). {EFFECTS[fit]}"
            )
        tensors = [_resize(tensor, image_size, fit) for tensor in tensors]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) != 1:
        raise ValueError(
            f"images: must have the same shape with fit='exact', got {', '.join(map(str, sorted(shapes)))}."
        )
    return torch.stack(tensors)


def to_uint8(images: Tensor) -> Tensor:
    """Round ``images`` with values in [0, 1] to uint8 on the CPU."""
    return (images.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def check_image_file(path: Path) -> None:
    """Decode an image file.

    Raises:
        ValueError: the file is damaged, or is not an image.
        FileNotFoundError: the file does not exist.
    """
    _pil_to_tensor(_open(path), str(path))


def _as_list(images: Images) -> list[ImageInput]:
    if isinstance(images, list | tuple):
        return list(images)
    return [images]  # type: ignore[list-item]


def _to_tensors(image: ImageInput) -> list[Tensor]:
    """Convert one image, or one batch of arrays or tensors, to a list of float32 tensors ``[3,H,W]`` in [0, 1]."""
    if isinstance(image, str | Path):
        return [_pil_to_tensor(_open(image), str(image))]
    if isinstance(image, Image.Image):
        return [_pil_to_tensor(image)]
    if isinstance(image, np.ndarray):
        image = _array_to_tensor(image)
    if not isinstance(image, Tensor):
        raise ValueError(f"images: must be paths, PIL images, arrays or tensors, got {type(image).__name__}.")
    batch = image if image.ndim == 4 else image[None]
    if batch.ndim != 4 or batch.shape[1] != 3:
        raise ValueError(f"images: tensors must have shape [3,H,W] or [B,3,H,W], got {tuple(image.shape)}.")
    if not batch.numel():
        raise ValueError(f"images: must have at least one pixel, got the shape {tuple(image.shape)}.")
    if batch.is_floating_point() and not batch.isfinite().all():
        raise ValueError("images: must be finite, got NaN or infinity; replace these values.")
    if not batch.is_floating_point() or not ((batch >= 0) & (batch <= 1)).all():
        raise ValueError("images: tensors must be floating point with values in [0, 1]; divide uint8 images by 255.")
    return list(batch.float())


def _open(path: str | Path) -> Image.Image:
    if "://" in str(path):
        raise ValueError(f"images: URLs are not downloaded, got {path}; download the image and pass the path.")
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"images: {path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"images: {path} cannot be read as an image ({error}).") from None


def _pil_to_tensor(image: Image.Image, name: str | None = None) -> Tensor:
    name = name or f"a PIL image of mode {image.mode}"
    try:
        rgba = to_rgba(image)
    except Exception as error:  # Pillow's decoders raise many types of errors for damaged files
        raise ValueError(f"images: {name} cannot be converted ({error}); replace the image.") from None
    if np.asarray(rgba)[..., 3].min() < 255:
        logger.warning("images: the transparent background of an image is replaced by white.")
        rgba = on_white(rgba)
    return torch.from_numpy(np.asarray(rgba)[..., :3].astype(np.float32) / 255).permute(2, 0, 1)


def _array_to_tensor(array: np.ndarray) -> Tensor:
    """Return an array ``[H,W,3]`` or ``[B,H,W,3]`` (uint8, or float in [0, 1]) as a float tensor ``[...,3,H,W]``."""
    if array.ndim not in (3, 4) or array.shape[-1] != 3:
        raise ValueError(f"images: arrays must have shape [H,W,3] or [B,H,W,3], got {array.shape}.")
    if array.dtype.kind not in "buif" or not array.dtype.isnative:
        raise ValueError(f"images: arrays must have a numeric dtype in native byte order, got {array.dtype}.")
    tensor = torch.from_numpy(np.array(array, order="C")).movedim(-1, -3)
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor


def _resize(image: Tensor, size: tuple[int, int], fit: Fit) -> Tensor:
    """Crop, pad or stretch ``image [3,H,W]``, according to ``fit``, to ``size`` = ``(height, width)`` in pixels.

    An image that already has the size ``size`` is returned unchanged.
    """
    if image.shape[1:] == size:
        return image
    height, width = size
    pil = to_pil_image(to_uint8(image))
    if fit == "crop":
        pil = ImageOps.fit(pil, (width, height), Image.Resampling.LANCZOS)
    elif fit == "pad":
        pil = ImageOps.pad(pil, (width, height), Image.Resampling.LANCZOS, color="white")
    else:
        pil = pil.resize((width, height), Image.Resampling.LANCZOS)
    return _pil_to_tensor(pil)
