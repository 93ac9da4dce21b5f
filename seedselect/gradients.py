"""What may be done to a gradient before a seed follows it: functions ``(gradient, seeds) -> gradient``, by sample.

All take and give ``[B, C, h, w]``; norms are taken in float64 on the CPU, for some devices have none.
"""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor


def _norm(values: Tensor) -> Tensor:
    return values.detach().cpu().double().flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def unchanged(gradient: Tensor, seeds: Tensor) -> Tensor:
    """The gradient as it is."""
    return gradient


def clipped(gradient: Tensor, seeds: Tensor, most: PositiveFloat = 0.1) -> Tensor:
    """Shortened to the norm ``most`` where it is longer (ReNO, Eyring et al. 2024: 0.1)."""
    factor = (most / _norm(gradient)).clamp_max(1)
    return gradient * factor.to(gradient.dtype).to(gradient.device)


def on_sphere(gradient: Tensor, seeds: Tensor) -> Tensor:
    """Without its part along the seed, so that a small step leaves the seed's norm alone (none of a zero seed)."""
    g, z = (values.detach().cpu().double().flatten(1) for values in (gradient, seeds))
    square = z.square().sum(1, keepdim=True)
    share = (g * z).sum(1, keepdim=True) / torch.where(square > 0, square, torch.ones_like(square))
    return (g - share * z).view_as(gradient).to(gradient.dtype).to(gradient.device)


def white(gradient: Tensor, seeds: Tensor, blocks: PositiveInt = 4) -> Tensor:
    """With the spectrum of white noise: every ring of frequencies of every channel has the same power an element.

    The frequencies of each channel are parted into ``blocks`` rings of equal width; each is scaled to the mean power of
    the whole gradient, whose norm stays. A ring without power stays without. It is gradient preconditioning in the
    manner of arXiv 2602.08646.
    """
    values = gradient.detach().cpu().double()
    spectrum = torch.fft.fft2(values, norm="ortho")
    rings = _rings(*values.shape[-2:], blocks)
    power = spectrum.abs().square()
    mean = power.mean((1, 2, 3))[:, None]
    found = torch.zeros_like(spectrum)
    for ring in range(blocks):
        inside = rings == ring
        if inside.any():
            own = power[..., inside].mean(-1)
            scale = torch.where(own > 0, (mean / torch.where(own > 0, own, torch.ones_like(own))).sqrt(), own)
            found[..., inside] = spectrum[..., inside] * scale[..., None]
    result = torch.fft.ifft2(found, norm="ortho").real
    length = _norm(result)
    result = result * _norm(values) / torch.where(length > 0, length, torch.ones_like(length))
    return result.to(gradient.dtype).to(gradient.device)


def _rings(height: int, width: int, blocks: int) -> Tensor:
    """The ring ``[height, width]`` of each frequency, 0 the lowest."""
    rows, columns = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.fftfreq(width, dtype=torch.float64)
    radius = (rows[:, None].square() + columns.square()).sqrt()
    return (radius / radius.max().clamp_min(1e-12) * blocks).long().clamp_max(blocks - 1)
