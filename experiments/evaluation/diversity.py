"""Metrics of sets of images: perceptual distances to detect copies, Vendi score, precision and recall."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import seedselect
from experiments.evaluation.classifier import Classifier

COPY_QUANTILE = 0.05
"""Quantile of the distances between the real images of a concept, which is used as the threshold for copies.

A generated image counts as a copy if its distance to a reference is below the threshold.
"""
NUM_NEIGHBORS = 5
"""Default number of nearest neighbors for precision, recall, density and coverage (Naeem et al. 2020 recommend 5)."""


@dataclass(frozen=True)
class CopyDetection:
    """Perceptual distances of the ``n`` generated images of one concept.

    Attributes:
        nearest: distance between each generated image and its nearest reference, ``float64 [n]``.
        nearest_index: index of the nearest reference of each generated image, ``int64 [n]``.
        threshold: 5th percentile of the distances between the concept's real images; None if there are fewer than two
            real images.
        pairwise: mean distance over all pairs of generated images; None if there are fewer than two generated images.
    """

    nearest: Tensor
    nearest_index: Tensor
    threshold: float | None
    pairwise: float | None

    @property
    def copies(self) -> list[bool] | None:
        """For each generated image, whether its distance to a reference is below ``threshold``.

        The property is None if ``threshold`` is None.
        """
        return None if self.threshold is None else (self.nearest < self.threshold).tolist()


@torch.no_grad()
def perceptual_vectors(classifier: Classifier, images: Tensor, batch_size: int = 64) -> Tensor:
    """Return vectors ``float32 [N, E]``, one per image, from which perceptual distances are computed.

    ``images`` is a tensor ``uint8 [N, 3, H, W]``.

    The squared Euclidean distance between the vectors of two images is their
    :func:`~experiments.evaluation.metrics.perceptual_distance`.
    """
    vectors = []
    device = classifier.mean.device
    for batch in images.split(batch_size):
        layers = [F.normalize(maps) for maps in classifier.feature_maps(batch.to(device).float() / 255)]
        flat = [maps.flatten(1) / (maps[0, 0].numel() * len(layers)) ** 0.5 for maps in layers]
        vectors.append(torch.cat(flat, 1).cpu())
    return torch.cat(vectors)


def detect_copies(images: Tensor, references: Tensor, real: Tensor) -> CopyDetection:
    """Compute the perceptual distances by which generated images of a concept are classified as copies of references.

    Args:
        images: perceptual vectors of the generated images, ``[n, E]``.
        references: perceptual vectors of the references, ``[R, E]``.
        real: perceptual vectors of all real images of the concept, including the references, ``[M, E]``.
    """
    real_distances = _pairwise_distances(real)
    image_distances = _pairwise_distances(images)
    nearest = squared_distances(images, references).min(1)
    return CopyDetection(
        nearest=nearest.values,
        nearest_index=nearest.indices,
        threshold=torch.quantile(real_distances, COPY_QUANTILE).item() if len(real_distances) else None,
        pairwise=image_distances.mean().item() if len(image_distances) else None,
    )


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distances ``float64 [n, m]`` between the rows of ``a [n, E]`` and ``b [m, E]``.

    The rounding errors are much smaller than the distance between any two different images.
    """
    a = a.double()
    b = b.double()
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def _pairwise_distances(vectors: Tensor) -> Tensor:
    """Return the squared distances between all pairs of rows of ``vectors [n, E]``, ``float64 [n (n - 1) / 2]``."""
    rows, columns = torch.triu_indices(len(vectors), len(vectors), 1)
    return squared_distances(vectors, vectors)[rows, columns]


def vendi_score(features: Tensor) -> float:
    """Return the Vendi score (Friedman and Dieng 2023) of the features ``[n, D]`` of n images.

    The Vendi score is the effective number of different images: 1 if all images have equal features, n if the features
    are orthogonal. The score is the exponential of the entropy of the eigenvalues of ``K / n``, where ``K [n, n]`` is
    the matrix of the cosine similarities of the features.

    Raises:
        ValueError: ``features`` is empty.
    """
    if not len(features):
        raise ValueError("the Vendi score requires at least one image.")
    return seedselect.vendi_score(features).item()


def precision_recall(real: Tensor, generated: Tensor, neighbors: int = NUM_NEIGHBORS) -> dict[str, float | None]:
    """Return precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Precision, recall, density and coverage are defined by balls around the feature vectors. The radius of the ball
    around a vector is the distance from the vector to its k-th nearest neighbor in the same set, where k is
    ``neighbors``.

    - precision: fraction of generated vectors that are inside the ball of a real vector
    - recall: fraction of real vectors that are inside the ball of a generated vector
    - density: mean number of balls of real vectors that contain a generated vector, divided by k
    - coverage: fraction of real vectors whose ball contains a generated vector

    All four metrics are None if there are at most k real vectors or at most k generated vectors.

    Args:
        real: features of real images, ``[M, D]``.
        generated: features of generated images, ``[N, D]``.
        neighbors: number of neighbors k.
    """
    if min(len(real), len(generated)) <= neighbors:
        return dict.fromkeys(("precision", "recall", "density", "coverage"))
    between = torch.cdist(real.double(), generated.double())
    real_radius = _knn_radius(real, neighbors)
    generated_radius = _knn_radius(generated, neighbors)
    inside = between < real_radius[:, None]
    return {
        "precision": inside.any(0).double().mean().item(),
        "recall": (between < generated_radius[None]).any(1).double().mean().item(),
        "density": inside.double().sum(0).mean().item() / neighbors,
        "coverage": (between.min(1).values < real_radius).double().mean().item(),
    }


def _knn_radius(points: Tensor, neighbors: int) -> Tensor:
    """Return the distance between each of ``points [N, D]`` and its k-th nearest neighbor, ``float64 [N]``.

    The number k is ``neighbors``. A point is not a neighbor of itself.
    """
    distances = torch.cdist(points.double(), points.double())
    return distances.kthvalue(neighbors + 1, dim=1).values  # + 1, because each point is its own nearest neighbor
