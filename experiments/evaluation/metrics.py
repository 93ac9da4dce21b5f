"""Metrics: confidence intervals, Fréchet and kernel distances of features, image similarity, ROC AUC."""

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
"""Group indices that a bootstrap draws at once. All draws of 100,000 groups together would take gigabytes."""


def bootstrap_interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, *, seed: int, draws: int = 2_000
) -> tuple[float, float]:
    """95 % percentile bootstrap interval ``(low, high)`` of the mean of ``values``.

    With ``groups``, one per value, the bootstrap resamples whole groups: use it when values within a group are
    correlated. If all values are equal, the interval is that single value.

    Raises:
        ValueError: ``values`` is empty.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("a bootstrap interval needs at least one value.")
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
"""One process holds all features. Without this option, torchmetrics would wait for the other ranks."""


class _PrecomputedFeatures(nn.Module):
    """A feature extractor for torchmetrics whose inputs are the features themselves."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


MAX_FEATURE = 1e30
"""Above this magnitude, products of covariances overflow and LAPACK crashes the process."""


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Fréchet distance of two sets of features ``[N, D]``, at least 0; it is FID for Inception features.

    Computed in float64. With fewer samples than features the covariance is singular: compare only sets of equal size.

    Raises:
        ValueError: a set has fewer than two samples, or contains NaN, infinity or magnitudes above 1e30.
    """
    _check_features(real, generated)
    metric = FrechetInceptionDistance(_PrecomputedFeatures(real.shape[1]), normalize=True, **_SINGLE_PROCESS).set_dtype(
        torch.float64
    )
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return max(0.0, metric.compute().item())  # rounding may make it negative for equal sets


def kernel_distance(real: Tensor, generated: Tensor, subset: int = 100, seed: int = 0) -> float:
    """Kernel Inception distance (KID): mean squared MMD with a cubic kernel over 50 subsets of features ``[N, D]``.

    The estimate is unbiased, so it may be negative for similar sets. Clamping it to 0 would add a bias.

    Raises:
        ValueError: as :func:`frechet_distance`.
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
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws subsets from the global generator
        torch.manual_seed(seed)
        return metric.compute()[0].item()


def _check_features(real: Tensor, generated: Tensor) -> None:
    for name, features in (("real", real), ("generated", generated)):
        if len(features) < 2:
            raise ValueError(f"a feature distance needs at least two {name} images, got {len(features)}.")
        bad = ~(features.abs() <= MAX_FEATURE).all(1)  # also True for NaN
        if bad.any():
            raise ValueError(
                f"the features of {int(bad.sum())} of {len(features)} {name} images are not finite, first at index "
                f"{int(bad.nonzero()[0])}: exclude these images, or run the classifier in float32."
            )


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """PSNR of each image ``[B, 3, H, W]`` in [0, 1]: ``[B]``, in dB."""
    return peak_signal_noise_ratio(images, targets, data_range=1.0, dim=(1, 2, 3), reduction="none")


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity (SSIM) of each image ``[B, 3, H, W]`` in [0, 1]: ``[B]``, at most 1."""
    return structural_similarity_index_measure(images, targets, data_range=1.0, reduction="none").view(-1)


def perceptual_distance(classifier: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Perceptual distance of images ``[B, 3, H, W]`` in ``classifier.feature_maps``: ``[B]``, 0 for equal images.

    It is LPIPS (Zhang et al. 2018) without learned weights: the squared distance of unit-length channel vectors,
    averaged over positions, then over layers. The network is not that of LPIPS, so values of the two are comparable in
    rank, not in size.
    """
    layers = zip(classifier.feature_maps(images), classifier.feature_maps(targets), strict=True)
    distances = [(F.normalize(a) - F.normalize(b)).square().sum(1).mean((1, 2)) for a, b in layers]
    return torch.stack(distances).mean(0)


def roc_auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative; ties count one half."""
    if not len(positives) or not len(negatives):
        raise ValueError("ROC AUC needs at least one positive and one negative.")
    scores = np.asarray(positives, dtype=np.float64)
    thresholds = np.sort(np.asarray(negatives, dtype=np.float64))
    below = np.searchsorted(thresholds, scores, side="left")
    not_above = np.searchsorted(thresholds, scores, side="right")
    return float((below + not_above).sum() / (2 * len(scores) * len(thresholds)))
