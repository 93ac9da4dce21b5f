"""Statistics of inverted seeds and trajectories: tests for white noise, errors in plain areas, and straightness."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from scipy.stats import kstest
from torch import Tensor
from torch.nn import functional as F

from rnri.models.schedule import Schedule

PATCH_SIDE = 2
"""Height and width of the patches of :func:`patch_correlation`, in components of a seed."""
PLAIN_DIFFERENCE = 0.025
"""Upper bound for the mean difference between a plain pixel and its neighbors, for pixel values in [0, 1]."""


def normality(seeds: Tensor) -> Tensor:
    """Return, for each of ``seeds [B,C,h,w]``, the p-value of a Kolmogorov-Smirnov test, float64 ``[B]`` in [0, 1].

    The null hypothesis is that the components of a seed are samples of the normal distribution N(0, 1). A p-value near
    0 shows that the components have another distribution. The p-value of a seed with NaN is NaN.
    """
    values = seeds.detach().cpu().double().flatten(1).numpy()
    return torch.tensor([float(kstest(seed, "norm").pvalue) for seed in values], dtype=torch.float64)


def patch_correlation(seeds: Tensor, side: int = PATCH_SIDE) -> Tensor:
    """Return, for each of ``seeds [B,C,h,w]``, the mean correlation between two components of the same patch.

    Each channel is divided into patches of ``side`` x ``side`` components. Incomplete patches at the border are
    ignored. The correlation is the mean product of two different components of the same patch, divided by the mean
    square of the components. The mean of the components is not subtracted, because the components of noise have mean 0.
    The expected correlation of white noise is 0. The correlation is 1 if all components of each patch are equal. The
    correlation is NaN if all components are 0 or no patch is complete.
    """
    batch_size, channels, *size = seeds.shape
    rows, columns = (length // side for length in size)
    complete = seeds.detach().cpu().double()[..., : rows * side, : columns * side]
    patches = complete.reshape(batch_size, channels, rows, side, columns, side)
    squares = patches.square().sum((3, 5))
    products = patches.sum((3, 5)).square() - squares  # sum over ordered pairs of different components
    return products.flatten(1).sum(1) / ((side**2 - 1) * squares.flatten(1).sum(1))


def plain_areas(images: Tensor, size: Sequence[int]) -> Tensor:
    """Return a mask of latent positions in plain (nearly constant) areas of ``images [B,3,H,W]``, bool ``[B,h,w]``.

    A pixel is plain if, in every channel, the mean of its absolute differences to the pixel below and to the pixel on
    the right is less than :data:`PLAIN_DIFFERENCE`. The difference to a pixel outside the image is 0, and a NaN pixel
    is not plain. Plain pixels are defined as in ``taba/exp_pipelines/plain_masks.py`` of luk-st/taba@22f916f (arXiv
    2410.23530). A position of the latent is plain if all pixels that it covers are plain.

    Args:
        size: height and width ``(h, w)`` of the latents.
    """
    below = F.pad((images[:, :, 1:] - images[:, :, :-1]).abs(), (0, 0, 0, 1))
    right = F.pad((images[..., 1:] - images[..., :-1]).abs(), (0, 1))
    textured = ~((below + right) / 2 < PLAIN_DIFFERENCE).all(1)
    return F.adaptive_max_pool2d(textured.float(), tuple(size)) == 0


def area_errors(errors: Tensor, area: Tensor) -> Tensor:
    """Return the mean of ``errors [B,h,w]`` over the positions in ``area`` (bool ``[B,h,w]``), float64 ``[B]``.

    The mean is NaN if the area is empty, and infinite if an error in the area is not finite.
    """
    errors = errors.double().nan_to_num(nan=torch.inf, posinf=torch.inf)
    return torch.where(area, errors, 0.0).flatten(1).sum(1) / area.flatten(1).sum(1)


def straightness(latents: Sequence[Tensor], schedule: Schedule) -> Tensor:
    """Return ``sum_i ||v_i - v_(i-1)|| / sqrt(d)`` for each inversion trajectory, float64 ``[B]``; 0 means straight.

    ``v_i`` is the noise (for flow matching: the velocity) with which the sampler's step ``i`` leads from the noisier to
    the cleaner latent. ``v_i`` is computed from the two latents, without the network. ``d`` is the number of components
    of a latent. The sum is 0 if all ``v_i`` of a trajectory are equal.

    Args:
        latents: the clean latents and the latents after each inversion step, each ``[B,C,h,w]``. If the number of
            tensors is not the number of steps plus one, the result is NaN.
        schedule: the schedule of the inversion.
    """
    if len(latents) != len(schedule) + 1:
        return torch.full((len(latents[0]),), torch.nan, dtype=torch.float64)
    total = torch.zeros(len(latents[0]), dtype=torch.float64)
    previous: Tensor | None = None
    for k, (cleaner, noisier) in enumerate(pairwise(latents)):
        a, b = schedule.coefficients(len(schedule) - 1 - k)
        velocity = ((noisier - a * cleaner) / b).flatten(1).cpu().double()
        if previous is not None:
            total += (velocity - previous).norm(dim=1) / velocity.shape[1] ** 0.5
        previous = velocity
    return total
