"""Decoder inversion: latents that decode to the image more accurately than those of the VAE's encoder."""

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

    It lowers the VAE bound, the error that encoding and decoding add to every inversion. The learning rate rises
    linearly over ``warmup`` iterations and then decays as a cosine. Each image keeps its best latent, so none gets
    worse than its encoding. It is applied before an inversion method and is not a method of its own.

    Attributes:
        iterations: of Adam; 0 returns the encoder's latents.
        learning_rate: maximum; latents have about unit variance.
        warmup: iterations in which the learning rate rises.
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
