"""Detection of copied references, diversity of the images of a concept, and precision and recall of sets of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import seedselect
from experiments.evaluation.classifier import Classifier

COPY_QUANTILE = 0.05
"""The distance threshold of copies is this quantile of the distances between the real images of a concept.

A generated image counts as a copy if its distance to a reference is below the threshold.
"""
NUM_NEIGHBORS = 5
"""Default number of neighbors k in precision, recall, density and coverage (as recommended by Naeem et al. 2020)."""


@dataclass(frozen=True)
class CopyDetection:
    """Perceptual distances of the ``n`` generated images of one concept.

    Attributes:
        nearest: distance between each generated image and the reference that is nearest to the image, ``float64 [n]``.
        nearest_index: index of the reference that is nearest to each generated image, ``int64 [n]``.
        threshold: 5th percentile of the distances between the concept's real images; None if there are fewer than two
            real images.
        pairwise: mean distance between two generated images; None if there are fewer than two generated images.
    """

    nearest: Tensor
    nearest_index: Tensor
    threshold: float | None
    pairwise: float | None

    @property
    def copies(self) -> list[bool] | None:
        """Whether the distance of each generated image to a reference is below ``threshold``;

        None if ``threshold`` is None.
        """
        return None if self.threshold is None else (self.nearest < self.threshold).tolist()


@torch.no_grad()
def perceptual_vectors(classifier: Classifier, images: Tensor, batch_size: int = 64) -> Tensor:
    """Return perceptual vectors ``float32 [N, E]`` of images ``uint8 [N, 3, H, W]``.

    The squared Euclidean distance of two vectors is the
    :func:`~experiments.evaluation.metrics.perceptual_distance` of the images.
    """
    vectors = []
    device = classifier.mean.device
    for batch in images.split(batch_size):
        layers = [F.normalize(maps) for maps in classifier.feature_maps(batch.to(device).float() / 255)]
        flat = [maps.flatten(1) / (maps[0, 0].numel() * len(layers)) ** 0.5 for maps in layers]
        vectors.append(torch.cat(flat, 1).cpu())
    return torch.cat(vectors)


def detect_copies(images: Tensor, references: Tensor, real: Tensor) -> CopyDetection:
    """Compute the perceptual distances that tell which generated images of a concept are copies of references.

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

    The rounding error of the formula is much smaller than the distance of any two different images.
    """
    a = a.double()
    b = b.double()
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def _pairwise_distances(vectors: Tensor) -> Tensor:
    """Return the squared distances of all pairs of rows of ``vectors [n, E]``: ``float64 [n (n - 1) / 2]``."""
    rows, columns = torch.triu_indices(len(vectors), len(vectors), 1)
    return squared_distances(vectors, vectors)[rows, columns]


def vendi_score(features: Tensor) -> float:
    """Return the Vendi score (Friedman and Dieng 2023) of the image features ``features [n, D]``.

    The score is the effective number of different images, from 1 to n. The score is the exponential of the entropy of
    the eigenvalues of ``K / n``, where K is the matrix of the cosine similarities of the features.

    Raises:
        ValueError: ``features`` is empty.
    """
    if not len(features):
        raise ValueError("the Vendi score requires at least one image.")
    return seedselect.vendi_score(features).item()


def precision_recall(real: Tensor, generated: Tensor, neighbors: int = NUM_NEIGHBORS) -> dict[str, float | None]:
    """Return precision and recall (Kynkäänniemi et al. 2019), and density and coverage (Naeem et al. 2020).

    The four metrics are defined by balls around the feature vectors. The radius of the ball around a vector is the
    distance from the vector to its k-th nearest neighbor in the same set, where k is ``neighbors``.

    - precision: fraction of generated vectors that are inside the ball of a real vector
    - recall: fraction of real vectors that are inside the ball of a generated vector
    - density: mean number of balls of real vectors that contain a generated vector, divided by k
    - coverage: fraction of real vectors whose ball contains a generated vector

    All four metrics are None if one of the two sets has at most k vectors.

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
    """Return the distance of each point ``[N, D]`` to its k-th nearest neighbor: ``float64 [N]``."""
    distances = torch.cdist(points.double(), points.double())
    return distances.kthvalue(neighbors + 1, dim=1).values  # + 1, because the smallest distance is to the point itself
