"""Decoder inversion: the latent whose decoding is the image, which the encoder only approximates."""

from __future__ import annotations

import math

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from rnri.models.diffusion import LatentDiffusion
from rnri.validation import dataclass


@dataclass(frozen=True)
class DecoderInversion:
    """Minimizes ``||D(z) - x||^2`` from ``z = E(x)`` with Adam (Hong et al. 2024, arXiv 2311.18387).

    Moves the ceiling that the VAE sets to every inversion. The rate rises linearly over ``warmup`` iterations and
    falls as a cosine; each image keeps its best latent, so that none gets worse than its encoding.

    Attributes:
        iterations: 0 leaves the encoder's latents.
        learning_rate: on latents of about unit variance.
    """

    iterations: NonNegativeInt = 100
    learning_rate: PositiveFloat = 0.1
    warmup: NonNegativeInt = 10

    def __call__(self, model: LatentDiffusion, images: Tensor) -> Tensor:
        """Latents ``[B,C,h,w]``, float32, of ``images [B,3,H,W]`` in [0, 1]."""
        with torch.no_grad():
            z = model.encode(images)
        if self.iterations == 0:
            return z
        with torch.enable_grad():
            z.requires_grad_()
            optimizer = torch.optim.Adam([z], lr=self.learning_rate)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
            best, best_loss = z.detach().clone(), torch.full((len(z),), math.inf, device=z.device)
            for k in range(self.iterations + 1):
                loss = (model.decode(z, clamp=False) - images.to(z.device)).square().flatten(1).mean(1)
                better = loss.detach() < best_loss
                best[better], best_loss[better] = z.detach()[better], loss.detach()[better]
                if k == self.iterations:
                    break
                optimizer.zero_grad()
                loss.sum().backward()
                optimizer.step()
                schedule.step()
        return best

    def _rate(self, k: int) -> float:
        if k < self.warmup:
            return (k + 1) / self.warmup
        return (1 + math.cos(math.pi * (k - self.warmup) / max(1, self.iterations - self.warmup))) / 2
