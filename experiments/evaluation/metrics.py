"""Functions that compute FID, KID, PSNR, SSIM, a perceptual distance, ROC AUC, and bootstrap confidence intervals."""

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

MAX_INDICES_PER_CHUNK = 1_000_000
"""Maximum number of random indices that the bootstrap draws at once, to limit the memory consumption.

Without a limit, a bootstrap of 100,000 groups would take gigabytes of memory.
"""


def bootstrap_interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int, draws: int = 2_000
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval ``(low, high)`` of the mean of ``values``.

    If all values are equal, both bounds of the interval are equal to the values.

    Args:
        groups: group of each value. If ``groups`` is not None, the bootstrap resamples groups instead of single values,
            which is necessary if the values of a group are correlated.
        seed: random seed of the resampling.
        draws: number of bootstrap samples.

    Raises:
        ValueError: ``values`` is empty.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("a bootstrap interval requires at least one value.")
    names, index = np.unique(groups if groups is not None else np.arange(len(values)), return_inverse=True)
    sums = np.bincount(index, values)
    counts = np.bincount(index)
    generator = np.random.default_rng(seed)
    chunk = max(1, MAX_INDICES_PER_CHUNK // len(names))
    means = []
    for start in range(0, draws, chunk):
        rows = generator.integers(len(names), size=(min(chunk, draws - start), len(names)))
        means.append(sums[rows].sum(1) / counts[rows].sum(1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


_SINGLE_PROCESS = {"distributed_available_fn": lambda: False}
"""Options with which torchmetrics computes a metric in one process, without synchronization with other ranks."""


class _PrecomputedFeatures(nn.Module):
    """A feature extractor for torchmetrics that returns its inputs, because the inputs are already features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


MAX_FEATURE = 1e30
"""Maximum absolute value of a feature.

With larger features, FID would fail, because products of covariances overflow.
"""


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Return the Fréchet distance between two sets of features, ``[M, D]`` and ``[N, D]``.

    For features of Inception-v3, the distance is the FID. The distance is computed in float64 and is at least 0. If a
    set has fewer samples than feature dimensions, the covariance of the set is singular and the distance depends on the
    number of samples. In this case, compare two distances only if they are computed from the same numbers of samples.

    Raises:
        ValueError: a set has fewer than two samples, or contains NaN or a value whose magnitude is above 1e30.
    """
    _check_features(real, generated)
    metric = FrechetInceptionDistance(_PrecomputedFeatures(real.shape[1]), normalize=True, **_SINGLE_PROCESS).set_dtype(
        torch.float64
    )
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return max(0.0, metric.compute().item())  # because of rounding, the distance of equal sets may be negative


def kernel_distance(real: Tensor, generated: Tensor, subset: int = 100, seed: int = 0) -> float:
    """Return the kernel Inception distance (KID) between two sets of features.

    KID is the squared maximum mean discrepancy (MMD) with a cubic kernel, averaged over 50 random subsets. The estimate
    is unbiased, so that KID of similar sets can be negative. Negative values are not replaced by 0, because the
    estimate would then be biased.

    Args:
        real: features of real images, ``[M, D]``.
        generated: features of generated images, ``[N, D]``.
        subset: maximum number of samples per random subset.
        seed: random seed of the subsets.

    Raises:
        ValueError: a set has fewer than two samples, or contains NaN or a value whose magnitude is above 1e30.
    """
    _check_features(real, generated)
    subset = min(subset, len(real), len(generated))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all extracted features")
        metric = KernelInceptionDistance(
            _PrecomputedFeatures(real.shape[1]), subsets=50, subset_size=subset, normalize=True, **_SINGLE_PROCESS
        )
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets with the global random number generator
        torch.manual_seed(seed)
        return metric.compute()[0].item()


def _check_features(real: Tensor, generated: Tensor) -> None:
    for name, features in (("real", real), ("generated", generated)):
        if len(features) < 2:
            raise ValueError(f"FID and KID require at least two {name} images, got {len(features)}.")
        bad = ~(features.abs() <= MAX_FEATURE).all(1)  # also True if a feature is NaN
        if bad.any():
            raise ValueError(
                f"the features of {int(bad.sum())} of {len(features)} {name} images are not finite, first at index "
                f"{int(bad.nonzero()[0])}: exclude these images, or run the classifier in float32."
            )


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Return the PSNR ``[B]`` in dB between ``images`` and ``targets``, both ``[B, 3, H, W]`` in [0, 1]."""
    return peak_signal_noise_ratio(images, targets, data_range=1.0, dim=(1, 2, 3), reduction="none")


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Return the SSIM ``[B]`` between ``images`` and ``targets``, both ``[B, 3, H, W]`` in [0, 1]."""
    return structural_similarity_index_measure(images, targets, data_range=1.0, reduction="none").view(-1)


def perceptual_distance(classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the perceptual distance ``[B]`` between ``images`` and ``targets``, both ``[B, 3, H, W]`` in [0, 1].

    The distance is computed from the feature maps of ``classifier`` in the same way as LPIPS (Zhang et al. 2018), but
    without learned weights. Channel vectors are normalized to unit length, and the squared distances between the
    vectors of both images are averaged over positions and then over layers. Values of this distance cannot be compared
    with values of the published LPIPS, which uses other networks than ``classifier``.
    """
    layers = zip(classifier.feature_maps(images), classifier.feature_maps(targets), strict=True)
    distances = [(F.normalize(a) - F.normalize(b)).square().sum(1).mean((1, 2)) for a, b in layers]
    return torch.stack(distances).mean(0)


def roc_auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Return the area under the ROC curve for the given scores of positive and negative examples.

    The area under the ROC curve is the probability that a positive example has a higher score than a negative example,
    where equal scores count as one half.
    """
    if not len(positives) or not len(negatives):
        raise ValueError("ROC AUC requires at least one positive and one negative example.")
    scores = np.asarray(positives, dtype=np.float64)
    thresholds = np.sort(np.asarray(negatives, dtype=np.float64))
    below = np.searchsorted(thresholds, scores, side="left")
    not_above = np.searchsorted(thresholds, scores, side="right")
    return float((below + not_above).sum() / (2 * len(scores) * len(thresholds)))
