"""Threshold-free measures of the distance between generated images and their references.

The measures compare the distances of generated images with the distances of real images: AuthPct, the copy-paste
measure M_CP and the statistic C_T.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.evaluation.diversity import squared_distances
from experiments.evaluation.metrics import roc_auc

MIN_ANGLE = 1e-6
"""Lower bound of the angle between two real images in :func:`copy_paste_measure`, in radians."""


def authentic_images(images: Tensor, references: Tensor, real: Tensor) -> Tensor:
    """Return which images are authentic by the definition of Alaa et al. 2022 (AuthPct), bool ``[n]``.

    An image is authentic if its distance to the nearest reference is larger than the distance of this reference to the
    nearest other real image.

    Args:
        images: vectors of n generated images, ``[n, E]``.
        references: vectors of the R references, ``[R, E]``.
        real: vectors of all real images, of which the first R are the references, ``[M, E]``, where M > 1.
    """
    nearest = squared_distances(images, references).min(1)
    between_real = squared_distances(references, real)
    between_real.fill_diagonal_(torch.inf)  # not the distance of a reference to itself
    return nearest.values > between_real.min(1).values[nearest.indices]


def copy_paste_measure(images: Tensor, references: Tensor, others: Tensor) -> Tensor:
    """Return the copy-paste measure M_CP of WithAnyone (ICLR 2026) for each image, float64 ``[n]`` in [-1, 1].

    For a generated image g, its nearest reference r and a held-out real image t, M_CP is
    ``(angle(g, t) - angle(g, r)) / angle(t, r)``, averaged over the held-out images. M_CP is 1 if g equals the
    reference, and -1 if g equals the held-out image.

    Args:
        images: features of n generated images, ``[n, D]``.
        references: features of the references, ``[R, D]``.
        others: features of real images that are not references, ``[H, D]``, where H > 0.
    """
    nearest = angles(images, references).min(1)
    differences = angles(images, others) - nearest.values[:, None]
    between_real = angles(references, others)[nearest.indices]
    return (differences / between_real.clamp_min(MIN_ANGLE)).mean(1)


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles in radians between the rows of ``a [n, D]`` and ``b [m, D]``: float64 ``[n, m]``.

    The formula is exact for small angles too, unlike the arc cosine of the scalar product.
    """
    a, b = F.normalize(a.double()), F.normalize(b.double())
    return 2 * torch.atan2(torch.cdist(a, b), torch.cdist(a, -b))


def copy_statistic(generated: Sequence[float], real: Sequence[float]) -> float | None:
    """Return the statistic C_T of Meehan et al. 2020: the z-score of a Mann-Whitney test of distances to references.

    C_T is below 0 if generated images are nearer to the references than real images are (copies). C_T is above 0 if
    generated images are farther away. If both sets have the same distribution, C_T has mean 0 and standard deviation 1.
    The z-score grows with the number of images.

    Args:
        generated: distances between generated images and their nearest references.
        real: distances between other real images and their nearest references.

    Returns:
        C_T; None if a set is empty or all distances are equal.
    """
    n, m = len(generated), len(real)
    if not n or not m:
        return None
    _, ties = np.unique([*generated, *real], return_counts=True)
    total = n + m
    correction = (ties**3 - ties).sum() / (total * (total - 1))
    variance = n * m / 12 * (total + 1 - correction)
    if variance <= 0:
        return None
    return float(n * m * (roc_auc(generated, real) - 0.5) / variance**0.5)
