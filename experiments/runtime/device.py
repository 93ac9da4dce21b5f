"""Device and precision of a run."""

from __future__ import annotations

import torch


def numerics(precision: str, device: torch.device) -> dict[str, str]:
    """Return the properties of trainer and machine that change a network's output; they are part of every cache key.

    Rounding differs between kinds of device, and far more between precisions. It also differs between batches, but a
    resumed run groups its units differently, so the batch is not part of a key.
    """
    properties = {"precision": precision, "device": device.type, "matmul": torch.get_float32_matmul_precision()}
    if device.type == "cuda":
        properties["convolutions"] = "tf32" if torch.backends.cudnn.allow_tf32 else "highest"
    return properties


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a time measured afterwards includes its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
