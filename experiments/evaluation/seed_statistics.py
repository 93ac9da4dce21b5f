"""Statistics of inverted seeds: tests of white noise, errors in plain and textured areas, straightness."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from scipy.stats import kstest
from torch import Tensor
from torch.nn import functional as F

from rnri.models.schedule import Schedule

PATCH_SIDE = 2
"""Side of the patches of :func:`patch_correlation`, in components of a seed."""
PLAIN_DIFFERENCE = 0.025
"""Maximum difference between a plain pixel and its neighbors, for pixels in [0, 1]."""


def normality(seeds: Tensor) -> Tensor:
    """Return the p-value of a Kolmogorov-Smirnov test for each of ``seeds [B,C,h,w]``, float64 ``[B]`` in [0, 1].

    The null hypothesis is that the components of the seed are samples of N(0, 1). A p-value near 0 shows that the
    components have another distribution. The p-value of a seed with NaN is NaN.
    """
    values = seeds.detach().cpu().double().flatten(1).numpy()
    return torch.tensor([float(kstest(seed, "norm").pvalue) for seed in values], dtype=torch.float64)


def patch_correlation(seeds: Tensor, side: int = PATCH_SIDE) -> Tensor:
    """Return the mean correlation of two components in a patch for each of ``seeds [B,C,h,w]``, float64 ``[B]``.

    Each channel is divided into patches of ``side`` x ``side`` components; incomplete patches are left out. The
    correlation is the mean product of all pairs of different components in a patch, divided by the mean square of the
    components. The mean of the components is not subtracted, because the components of noise have the mean 0. The
    expected value is 0 for white noise, and the value is 1 if the components of every patch are equal. The value is NaN
    if all components are 0 or no patch is complete.
    """
    batch_size, channels, *size = seeds.shape
    rows, columns = (length // side for length in size)
    complete = seeds.detach().cpu().double()[..., : rows * side, : columns * side]
    patches = complete.reshape(batch_size, channels, rows, side, columns, side)
    squares = patches.square().sum((3, 5))
    products = patches.sum((3, 5)).square() - squares  # sum over ordered pairs of different components
    return products.flatten(1).sum(1) / ((side**2 - 1) * squares.flatten(1).sum(1))


def plain_areas(images: Tensor, size: Sequence[int]) -> Tensor:
    """Return a mask of the plain positions of the latents of ``images [B,3,H,W]`` in [0, 1], bool ``[B,h,w]``.

    A pixel is plain if, in every channel, the mean of its absolute differences to the pixel below and to the pixel on
    the right is less than :data:`PLAIN_DIFFERENCE`. A difference to a pixel outside of the image is 0. This definition
    is from luk-st/taba@22f916f, ``taba/exp_pipelines/plain_masks.py`` (arXiv 2410.23530). A position of the latent is
    plain if all of its pixels are plain. Pixels with NaN are not plain.

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
    """Return ``sum_i ||v_i - v_(i-1)|| / sqrt(d)`` of inversion trajectories, float64 ``[B]``; 0 is a straight line.

    ``v_i`` is the prediction with which the sampler's step leads from the noisier to the cleaner latent of step ``i``:
    the noise, or the velocity for flow matching. ``v_i`` is computed from the latents, without the network. ``d`` is
    the number of components of a latent. A straight line is a trajectory on which all predictions are equal.

    Args:
        latents: the clean latents and the latents after each inversion step, ``[B,C,h,w]`` each. If their number is not
            the number of steps plus one, the result is NaN.
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
