"""Synchronization with a device, so that measured times include all work queued on the device."""

from __future__ import annotations

import torch


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has finished all queued work. The CPU never has queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
