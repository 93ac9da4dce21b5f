"""The two losses of SeedSelect (Samuel et al. 2024, "Generating images of rare concepts"), one value per sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


def semantic_loss(
    latents: Sequence[Tensor],
    target: Tensor,
    weights: Sequence[float],
    *,
    decode: Callable[[Tensor], Tensor],
    features: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return the semantic loss ``[B]``, ``sum_k w_k (1 - cos(features(decode(z_k)), target))``.

    The semantic loss is a weighted sum, over the latents ``z_k`` of the last sampling steps, of the cosine distances
    between the image features and ``target``.

    Args:
        latents: the latents ``z_k`` after the last sampling steps, each ``[B,C,h,w]``; the last entry is the clean
            latent.
        target: mean feature of the reference images, ``[B,D]``.
        weights: the weights ``w_k``, one per entry of ``latents``.
        decode: function that maps latents to images.
        features: function that maps images to unit-length features.
    """
    unit = target / target.norm(dim=-1, keepdim=True)
    losses = [w * (1 - (features(decode(z)) * unit).sum(-1)) for w, z in zip(weights, latents, strict=True)]
    return sum(losses[1:], start=losses[0])


def appearance_loss(latent: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error between the clean latents and the mean latents of the reference images, ``[B]``."""
    return (latent - target).square().flatten(1).mean(1)
