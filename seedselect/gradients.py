"""Gradient transforms ``(gradient, seeds) -> gradient``, applied to each sample before the optimizer's update.

All tensors have the shape ``[B,C,h,w]``. Norms are computed in float64 on the CPU, because some devices do not support
float64.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor


def _norm(values: Tensor) -> Tensor:
    """Return the Euclidean norm of each sample, float64 ``[B,1,1,1]``."""
    return values.detach().cpu().double().flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def identity(gradient: Tensor, seeds: Tensor) -> Tensor:
    """Return the gradient unchanged; the default gradient transform of SeedSelect."""
    return gradient


def clip_norm(gradient: Tensor, seeds: Tensor, max_norm: PositiveFloat = 0.1) -> Tensor:
    """Scale down each sample's gradient so that its norm is at most ``max_norm``.

    ReNO (Eyring et al. 2024) uses a maximum norm of 0.1.
    """
    factor = (max_norm / _norm(gradient)).clamp_max(1)
    return gradient * factor.to(gradient.dtype).to(gradient.device)


def project_to_tangent(gradient: Tensor, seeds: Tensor) -> Tensor:
    """Remove the component of the gradient along the seed, so that a small update preserves the norm of the seed.

    The gradient of a zero seed is returned unchanged.
    """
    g, z = (values.detach().cpu().double().flatten(1) for values in (gradient, seeds))
    square = z.square().sum(1, keepdim=True)
    coefficient = (g * z).sum(1, keepdim=True) / torch.where(square > 0, square, torch.ones_like(square))
    return (g - coefficient * z).view_as(gradient).to(gradient.dtype).to(gradient.device)


def whiten(gradient: Tensor, seeds: Tensor, blocks: PositiveInt = 4) -> Tensor:
    """Flatten the power spectrum of the gradient: every frequency band of every channel gets the same mean power.

    The frequency bands are ``blocks`` rings of equal width in the plane of the 2D frequencies. In each channel, the
    frequencies of a ring are scaled so that the mean power of the ring equals the mean power of the whole gradient. A
    ring without power stays zero. The norm of the gradient does not change. A similar preconditioning of the gradient
    is described in arXiv 2602.08646.
    """
    values = gradient.detach().cpu().double()
    spectrum = torch.fft.fft2(values, norm="ortho")
    ring_of_frequency = _rings(values.shape[-2], values.shape[-1], blocks)
    power = spectrum.abs().square()
    mean_power = power.mean((1, 2, 3))[:, None]
    whitened = torch.zeros_like(spectrum)
    for ring in range(blocks):
        mask = ring_of_frequency == ring
        if mask.any():
            ring_power = power[..., mask].mean(-1)
            nonzero = ring_power > 0
            ratio = mean_power / torch.where(nonzero, ring_power, torch.ones_like(ring_power))
            scale = torch.where(nonzero, ratio.sqrt(), ring_power)
            whitened[..., mask] = spectrum[..., mask] * scale[..., None]
    result = torch.fft.ifft2(whitened, norm="ortho").real
    length = _norm(result)
    result = result * _norm(values) / torch.where(length > 0, length, torch.ones_like(length))
    return result.to(gradient.dtype).to(gradient.device)


def _rings(height: int, width: int, blocks: int) -> Tensor:
    """Return the ring index of each 2D frequency, int64 ``[height,width]``; ring 0 has the lowest frequencies."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64)
    columns = torch.fft.fftfreq(width, dtype=torch.float64)
    radius = (rows[:, None].square() + columns.square()).sqrt()
    return (radius / radius.max().clamp_min(1e-12) * blocks).long().clamp_max(blocks - 1)
