"""Figures of merit: intervals, Fréchet and kernel distances of features, image similarity."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

DRAWN = 1_000_000
"""Groups that a bootstrap draws at once: of 100,000 groups all draws would take gigabytes."""


def bootstrap_interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int, draws: int = 2_000
) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values``.

    With ``groups`` whole groups are drawn, for values that are alike inside a group. If all values are equal the
    interval is a point: the sample holds no sign of spread.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("a bootstrap interval needs at least one value.")
    names, members = np.unique(groups if groups is not None else np.arange(len(values)), return_inverse=True)
    sums, counts = np.bincount(members, values), np.bincount(members)
    generator, means = np.random.default_rng(seed), []
    together = max(1, DRAWN // len(names))
    for first in range(0, draws, together):
        drawn = generator.integers(len(names), size=(min(together, draws - first), len(names)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    means = np.concatenate(means)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


# Features are all in one process; the others are not asked for theirs, which torchmetrics would wait for.
_ALONE = {"distributed_available_fn": lambda: False}


class _Given(nn.Module):
    """A "feature extractor" for torchmetrics that passes on features which were computed before."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


LARGEST_FEATURE = 1e30
"""Beyond it the products of covariances overflow, which LAPACK answers with a crash of the process."""


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance of two sets of features ``[N, D]``, in float64 and never below 0 (FID if they are Inception's).

    With fewer samples than features the covariance is of low rank: compare only sets of equal size.

    Raises:
        ValueError: a set has fewer than two samples, or holds NaN, infinity or values beyond 1e30.
    """
    _check_features(real, generated)
    metric = FrechetInceptionDistance(_Given(real.shape[1]), normalize=True, **_ALONE).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return max(0.0, metric.compute().item())  # rounding takes equal sets below


def kernel_distance(real: Tensor, generated: Tensor, subset: int = 100, seed: int = 0) -> float:
    """Mean squared MMD with KID's cubic kernel over subsets of two sets of features ``[N, D]``.

    The estimate is unbiased, and therefore falls below 0 for some sets that are alike; cut off there it would not be.

    Raises:
        ValueError: as :func:`frechet_distance`.
    """
    _check_features(real, generated)
    subset = min(subset, len(real), len(generated))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all extracted features")
        metric = KernelInceptionDistance(
            _Given(real.shape[1]), subsets=50, subset_size=subset, normalize=True, **_ALONE
        )
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws its subsets from the global generator
        torch.manual_seed(seed)
        return metric.compute()[0].item()


def _check_features(real: Tensor, generated: Tensor) -> None:
    for name, features in (("real", real), ("generated", generated)):
        if len(features) < 2:
            raise ValueError(f"a distance of features needs two {name} images at least, not {len(features)}.")
        bad = ~(features.abs() <= LARGEST_FEATURE).all(1)  # True for NaN, too
        if bad.any():
            raise ValueError(
                f"the features of {int(bad.sum())} of {len(features)} {name} images are not finite, the first those of "
                f"image {int(bad.nonzero()[0])}: leave these images out, or run the judge in single precision."
            )


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """PSNR in dB of each image ``[B, 3, H, W]`` in [0, 1]: ``[B]`` (the paper averages over images)."""
    return peak_signal_noise_ratio(images, targets, data_range=1.0, dim=(1, 2, 3), reduction="none")


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each image ``[B, 3, H, W]`` in [0, 1]: ``[B]``, at most 1."""
    return structural_similarity_index_measure(images, targets, data_range=1.0, reduction="none").view(-1)


def perceptual_distance(classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """LPIPS without learned weights, on ``classifier.feature_maps``: ``[B]``, 0 for equal images.

    The squared distance of channel vectors of unit length, averaged over places, then over layers (Zhang et al. 2018).
    It ranks as LPIPS does; its values are not LPIPS's, whose network and weights are others.
    """
    layers = zip(classifier.feature_maps(images), classifier.feature_maps(targets), strict=True)
    distances = [(F.normalize(a) - F.normalize(b)).square().sum(1).mean((1, 2)) for a, b in layers]
    return torch.stack(distances).mean(0)


def roc_auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Chance that a positive has the larger value than a negative, ties by half: the area under the ROC curve."""
    if not len(positives) or not len(negatives):
        raise ValueError("a ROC curve needs positives and negatives.")
    a, b = np.asarray(positives, dtype=np.float64), np.sort(np.asarray(negatives, dtype=np.float64))
    below, not_above = (np.searchsorted(b, a, side=side) for side in ("left", "right"))
    return float((below + not_above).sum() / (2 * len(a) * len(b)))
