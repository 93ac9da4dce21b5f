"""Measures without a threshold for whether generated images copy their references.

The measures AuthPct, M_CP and C_T compare the distances of generated images to the references with distances of real
images.
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
"""Minimum angle in radians between two real images in :func:`copy_paste_measure`, to avoid division by 0."""


def authentic_images(images: Tensor, references: Tensor, real: Tensor) -> Tensor:
    """Return whether each image is authentic as defined by Alaa et al. 2022, bool ``[n]``.

    AuthPct is the percentage of authentic images; a higher AuthPct means fewer copies.

    An image is authentic if it is farther from its nearest reference than this reference is from the nearest other real
    image.

    Args:
        images: vectors of n generated images, ``[n, E]``.
        references: vectors of the R references, ``[R, E]``.
        real: vectors of all M > 1 real images, ``[M, E]``. The first R real images are the references.
    """
    nearest = squared_distances(images, references).min(1)
    between_real = squared_distances(references, real)
    between_real.fill_diagonal_(torch.inf)  # ignore the distance between a reference and itself
    return nearest.values > between_real.min(1).values[nearest.indices]


def copy_paste_measure(images: Tensor, references: Tensor, others: Tensor) -> Tensor:
    """Return the copy-paste measure M_CP of the paper WithAnyone (ICLR 2026), float64 ``[n]`` in [-1, 1].

    M_CP is the mean of ``(angle(g, t) - angle(g, r)) / angle(t, r)`` over all held-out real images t, where g is the
    generated image, r is its nearest reference, and ``angle(a, b)`` is the angle between the features of a and b. A
    higher M_CP means that the image is more similar to its nearest reference than to other real images. M_CP is 1 if g
    equals r, and -1 if g equals the only held-out image.

    Args:
        images: features of n generated images, ``[n, D]``.
        references: features of the references, ``[R, D]``.
        others: features of held-out real images, which are not references, ``[H, D]``, where H > 0.
    """
    nearest = angles(images, references).min(1)
    differences = angles(images, others) - nearest.values[:, None]
    between_real = angles(references, others)[nearest.indices]
    return (differences / between_real.clamp_min(MIN_ANGLE)).mean(1)


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles in radians between the rows of ``a [n, D]`` and ``b [m, D]``, float64 ``[n, m]``.

    The angle is computed with ``atan2``, because the arc cosine of the scalar product is inaccurate for small angles.
    """
    a, b = F.normalize(a.double()), F.normalize(b.double())
    return 2 * torch.atan2(torch.cdist(a, b), torch.cdist(a, -b))


def copy_statistic(generated: Sequence[float], real: Sequence[float]) -> float | None:
    """Return C_T of Meehan et al. 2020: the z-score of a Mann-Whitney test that compares distances to references.

    C_T is negative if generated images are nearer to the references than other real images are, and positive if
    generated images are farther away. If generated and real images have the same distribution of distances, C_T has
    mean 0 and standard deviation 1. The absolute value of C_T grows with the number of images.

    Args:
        generated: distances between generated images and their nearest references.
        real: distances between other real images and their nearest references.

    Returns:
        C_T, or None if ``generated`` or ``real`` is empty or all distances are equal.
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
