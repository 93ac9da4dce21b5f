"""Decoder inversion: optimizes a latent so that the VAE's decoder reproduces the image as accurately as possible."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from rnri.validation import dataclass

if TYPE_CHECKING:
    from rnri.models.diffusion import LatentDiffusion


@dataclass(frozen=True)
class DecoderInversion:
    """Minimizes ``||D(z) - x||^2`` with Adam, starting from ``z = E(x)`` (Hong et al. 2024, arXiv 2311.18387).

    ``x`` is the image, ``E`` is the VAE's encoder, ``D`` is the VAE's decoder, and ``z`` is the optimized latent.
    Decoder inversion reduces the VAE bound, which is the error that encoding and decoding add to every inversion. The
    learning rate rises linearly over ``warmup`` iterations and then decays like a cosine to 0. For each image, the
    iterate with the smallest loss is returned, so that the loss is never larger than the loss of the encoder's latent.
    Decoder inversion computes a latent, not a seed; an inversion method then inverts this latent.

    Attributes:
        iterations: number of Adam iterations; with 0 the encoder's latents are returned.
        learning_rate: maximum learning rate; the default is meant for latents of about unit variance.
        warmup: number of iterations in which the learning rate rises to its maximum.
    """

    iterations: NonNegativeInt = 100
    learning_rate: PositiveFloat = 0.1
    warmup: NonNegativeInt = 10

    def __call__(self, model: LatentDiffusion, images: Tensor) -> Tensor:
        """Return the latents ``[B,C,h,w]``, float32, of ``images [B,3,H,W]`` in [0, 1]."""
        with torch.no_grad():
            z = model.encode(images)
        if self.iterations == 0:
            return z
        with torch.enable_grad():
            z.requires_grad_()
            optimizer = torch.optim.Adam([z], lr=self.learning_rate)
            lr_schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
            best = z.detach().clone()
            best_loss = torch.full((len(z),), math.inf, device=z.device)
            for k in range(self.iterations + 1):
                loss = (model.decode(z, clamp=False) - images.to(z.device)).square().flatten(1).mean(1)
                better = loss.detach() < best_loss
                best[better] = z.detach()[better]
                best_loss[better] = loss.detach()[better]
                if k == self.iterations:
                    break
                optimizer.zero_grad()
                loss.sum().backward()
                optimizer.step()
                lr_schedule.step()
        return best

    def _lr_factor(self, k: int) -> float:
        if k < self.warmup:
            return (k + 1) / self.warmup
        return (1 + math.cos(math.pi * (k - self.warmup) / max(1, self.iterations - self.warmup))) / 2
