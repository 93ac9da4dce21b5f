"""Reproducible seeds: the noise of each sample is drawn from its own random generator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def noise_for_samples(sample_ids: Sequence[int | str], seed: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise ``[B, *shape]``, float32 on the CPU, with one row per sample id.

    The noise of a sample depends only on the random seed ``seed`` and on the sample id as a string, not on the batch or
    the number of processes.
    """
    return torch.stack([_noise(sample_id, seed, shape) for sample_id in sample_ids])


def _noise(sample_id: int | str, seed: int, shape: tuple[int, ...]) -> Tensor:
    digest = hashlib.sha256(f"{seed}\n{sample_id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(shape, generator=generator)
