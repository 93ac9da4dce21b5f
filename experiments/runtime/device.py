"""Numerical settings (precision, device) of a run, and device synchronization."""

from __future__ import annotations

import torch

from rnri.device import synchronize

__all__ = ["numerics", "synchronize"]


def numerics(precision: str, device: torch.device) -> dict[str, str]:
    """Return the numerical settings that change the output of a network and are therefore part of every cache key.

    Rounding errors depend on the device type, and even more on the precision. Rounding errors also depend on the other
    images in the batch. The batch is not part of a cache key, because a resumed run may divide the images into other
    batches.
    """
    properties = {"precision": precision, "device": device.type, "matmul": torch.get_float32_matmul_precision()}
    if device.type == "cuda":
        properties["convolutions"] = "tf32" if torch.backends.cudnn.allow_tf32 else "highest"
    return properties
