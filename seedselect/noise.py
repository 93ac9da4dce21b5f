"""Pink noise: Gaussian noise with more power in low frequencies, for initial seeds that lead to diverse images."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat
from torch import Tensor


def pink_noise(noise: Tensor, exponent: NonNegativeFloat = 0.2) -> Tensor:
    """Convert white noise ``[...,h,w]`` to Gaussian noise with the power spectrum ``1 / f^exponent``.

    The amplitude of each 2D frequency f is multiplied by ``f^(-exponent / 2)``; the frequency 0 gets the factor of the
    lowest other frequency. The factors are scaled so that the expected variance stays 1. Images generated from pink
    noise differ more from each other than images from white noise (Harrington et al. 2026, arXiv 2601.00090, with
    exponent 0.2). Large exponents reduce the quality of the images, because the model was trained on white noise.
    ``exponent=0`` returns white noise.
    """
    height, width = noise.shape[-2:]
    rows = torch.fft.fftfreq(height, dtype=torch.float64)
    columns = torch.fft.fftfreq(width, dtype=torch.float64)
    frequency = (rows[:, None].square() + columns.square()).sqrt()
    frequency = frequency.clamp_min(1 / max(height, width))
    amplitude = frequency ** (-exponent / 2)
    amplitude = amplitude / amplitude.square().mean().sqrt()
    spectrum = torch.fft.fft2(noise.detach().cpu().double())
    return torch.fft.ifft2(spectrum * amplitude).real.to(noise.dtype).to(noise.device)
