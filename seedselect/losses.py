"""SeedSelect's two losses (Samuel et al. 2024, "Generating images of rare concepts"), one value a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


def semantic_loss(
    latents: Sequence[Tensor],
    target: Tensor,
    weights: Sequence[float],
    decode: Callable[[Tensor], Tensor],
    features: Callable[[Tensor], Tensor],
) -> Tensor:
    """``sum_k w_k (1 - cos(features(decode(z_k)), target))``: ``[B]``.

    Args:
        latents: the last latents of sampling, ``[B, C, h, w]`` each, cleanest last.
        target: mean feature of the reference images, ``[B, D]``.
        weights: one for each of ``latents``.
        decode, features: latents to images, images to features of unit length.
    """
    unit = target / target.norm(dim=-1, keepdim=True)
    losses = [w * (1 - (features(decode(z)) * unit).sum(-1)) for w, z in zip(weights, latents, strict=True)]
    return sum(losses[1:], start=losses[0])


def appearance_loss(latent: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of the clean latent to the references' mean latent: ``[B]``."""
    return (latent - target).square().flatten(1).mean(1)
