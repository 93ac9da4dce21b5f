"""Copies of references, diversity within a concept, and precision and recall of generated sets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.evaluation.classifier import Classifier

COPY_QUANTILE = 0.05
"""An image is a copy if it is closer to a reference than this quantile of the distances among real images."""
NUM_NEIGHBORS = 5
"""Of precision, recall, density and coverage, as their authors recommend."""


@dataclass(frozen=True)
class CopyDetection:
    """Perceptual distances of one concept's generated images.

    Attributes:
        nearest: distance of each image to its nearest reference, ``float64 [n]``.
        threshold: 5th percentile of the distances among the concept's real images; None with fewer than two.
        pairwise: mean distance between two generated images; None with fewer than two.
    """

    nearest: Tensor
    threshold: float | None
    pairwise: float | None

    @property
    def copies(self) -> list[bool] | None:
        """Whether each image is closer to a reference than ``threshold``; None without a threshold."""
        return None if self.threshold is None else (self.nearest < self.threshold).tolist()


@torch.no_grad()
def perceptual_vectors(classifier: Classifier, images: Tensor, batch_size: int = 64) -> Tensor:
    """Vectors ``float32 [N, E]`` of images ``uint8 [N, 3, H, W]``.

    Their squared distance is :func:`~experiments.evaluation.metrics.perceptual_distance`.
    """
    vectors = []
    device = classifier.mean.device
    for batch in images.split(batch_size):
        layers = [F.normalize(maps) for maps in classifier.feature_maps(batch.to(device).float() / 255)]
        flat = [maps.flatten(1) / (maps[0, 0].numel() * len(layers)) ** 0.5 for maps in layers]
        vectors.append(torch.cat(flat, 1).cpu())
    return torch.cat(vectors)


def detect_copies(images: Tensor, references: Tensor, real: Tensor) -> CopyDetection:
    """Copies among a concept's generated images, from perceptual vectors.

    Args:
        images: of the generated images, ``[n, E]``.
        references: of the references, ``[R, E]``.
        real: of all real images of the concept, references included, ``[M, E]``.
    """
    real_distances = _pairwise_distances(real)
    image_distances = _pairwise_distances(images)
    return CopyDetection(
        nearest=_distances(images, references).min(1).values,
        threshold=torch.quantile(real_distances, COPY_QUANTILE).item() if len(real_distances) else None,
        pairwise=image_distances.mean().item() if len(image_distances) else None,
    )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances ``float64 [n, m]``. The rounding error is far below the distance of any two images."""
    a = a.double()
    b = b.double()
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def _pairwise_distances(vectors: Tensor) -> Tensor:
    """Squared distances of all pairs: ``float64 [n (n - 1) / 2]``."""
    rows, columns = torch.triu_indices(len(vectors), len(vectors), 1)
    return _distances(vectors, vectors)[rows, columns]


def vendi_score(features: Tensor) -> float:
    """Vendi score (Friedman and Dieng 2023) of ``features [n, D]``: the effective number of different images, 1 to n.

    It is the exponential of the entropy of the eigenvalues of ``K / n``, where K holds the cosine similarities.

    Raises:
        ValueError: ``features`` is empty.
    """
    if not len(features):
        raise ValueError("a Vendi score needs at least one image.")
    unit = F.normalize(features.double(), dim=1)
    eigenvalues = torch.linalg.eigvalsh(unit @ unit.T / len(unit)).clamp_min(0)
    return torch.special.entr(eigenvalues).sum().exp().item()


def precision_recall(real: Tensor, generated: Tensor, neighbors: int = NUM_NEIGHBORS) -> dict[str, float | None]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of features ``[N, D]``.

    Each point has a ball that reaches to its k-th nearest neighbor in the same set.

    - precision: fraction of generated points inside a real ball
    - recall: fraction of real points inside a generated ball
    - density: mean number of real balls around a generated point, divided by k
    - coverage: fraction of real balls that contain a generated point

    All are None if a set has at most ``neighbors`` points.
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
    """Distance of each point to its k-th nearest neighbor: ``float64 [N]``."""
    return (
        torch.cdist(points.double(), points.double()).kthvalue(neighbors + 1, dim=1).values
    )  # the nearest is the point itself
