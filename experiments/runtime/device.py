"""Numerical settings (precision, device) of a run, and device synchronization."""

from __future__ import annotations

import torch

from rnri.device import synchronize

__all__ = ["numerics", "synchronize"]


def numerics(precision: str, device: torch.device) -> dict[str, str]:
    """Return the numerical settings that change the output of a network. They are part of every cache key.

    Rounding errors differ between device types, and far more between precisions. They also differ between batches, but
    the batch is not part of a cache key, because a resumed run may group its units into other batches.
    """
    properties = {"precision": precision, "device": device.type, "matmul": torch.get_float32_matmul_precision()}
    if device.type == "cuda":
        properties["convolutions"] = "tf32" if torch.backends.cudnn.allow_tf32 else "highest"
    return properties
