"""Numerical settings (precision, device) of a run, device synchronization, and peak memory."""

from __future__ import annotations

import resource
import sys

import torch

from rnri.device import synchronize

__all__ = ["numerics", "peak_memory", "synchronize"]


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


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes of the GPU ``device``, or of this process if the device is a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux reports kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
