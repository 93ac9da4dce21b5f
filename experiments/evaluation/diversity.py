"""How much images are like their references and like one another: copies, variety, and what both sets cover."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.evaluation.classifier import Classifier

COPY = 0.05  # quantile of the distances among real images below which an image counts as a copy
NEIGHBOURS = 5  # of precision, recall, density and coverage: what their authors recommend


@dataclass(frozen=True)
class CopyDetection:
    """Of one concept's images, in perceptual distances.

    Attributes:
        nearest: ``float64 [n]``, to the nearest reference.
        threshold: the 5th percentile of the distances among the concept's real images; None of fewer than two.
        pairwise: mean distance of two of the images; None of fewer than two.
    """

    nearest: Tensor
    threshold: float | None
    pairwise: float | None

    @property
    def copies(self) -> list[bool] | None:
        """Whether each image is nearer to a reference than real images are to one another."""
        return None if self.threshold is None else (self.nearest < self.threshold).tolist()


@torch.no_grad()
def perceptual_vectors(classifier: Classifier, images: Tensor, batch_size: int = 64) -> Tensor:
    """Vectors ``float32 [N, E]`` whose squared distance is :func:`~experiments.evaluation.metrics.perceptual_distance`.

    ``images`` are ``uint8 [N, 3, H, W]``.
    """
    made, device = [], classifier.mean.device
    for batch in images.split(batch_size):
        layers = [F.normalize(maps) for maps in classifier.feature_maps(batch.to(device).float() / 255)]
        flat = [maps.flatten(1) / (maps[0, 0].numel() * len(layers)) ** 0.5 for maps in layers]
        made.append(torch.cat(flat, 1).cpu())
    return torch.cat(made)


def resemblance(images: Tensor, references: Tensor, real: Tensor) -> CopyDetection:
    """From perceptual vectors ``[n, E]``, ``[R, E]`` and ``[M, E]`` of a concept's images, references and real images,
    the references among them."""
    among, own = _pairs(real), _pairs(images)
    return CopyDetection(
        nearest=_distances(images, references).min(1).values,
        threshold=torch.quantile(among, COPY).item() if len(among) else None,
        pairwise=own.mean().item() if len(own) else None,
    )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances ``float64 [n, m]``, whose rounding is far below any distance of two images."""
    a, b = a.double(), b.double()
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def _pairs(vectors: Tensor) -> Tensor:
    """Squared distances of every two: ``float64 [n (n - 1) / 2]``."""
    rows, columns = torch.triu_indices(len(vectors), len(vectors), 1)
    return _distances(vectors, vectors)[rows, columns]


def vendi_score(features: Tensor) -> float:
    """How many different images there are in effect, from 1 to n: the exponential of the entropy of the eigenvalues of
    ``K / n``, where K are the cosines of ``features [n, D]`` (Friedman and Dieng 2023).

    Raises:
        ValueError: no features.
    """
    if not len(features):
        raise ValueError("a Vendi score needs at least one image.")
    unit = F.normalize(features.double(), dim=1)
    eigenvalues = torch.linalg.eigvalsh(unit @ unit.T / len(unit)).clamp_min(0)
    return torch.special.entr(eigenvalues).sum().exp().item()


def precision_recall(real: Tensor, generated: Tensor, neighbors: int = NEIGHBOURS) -> dict[str, float | None]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of ``float [N, D]``.

    A set's balls reach to each point's k-th nearest neighbor in it. Precision is the share of generated points in a
    real ball, recall of real ones in a generated ball, density the mean number of real balls round a generated point
    over k, coverage the share of real balls that hold a generated point. All None where a set has no k neighbors.
    """
    if min(len(real), len(generated)) <= neighbors:
        return dict.fromkeys(("precision", "recall", "density", "coverage"))
    between = torch.cdist(real.double(), generated.double())
    real_balls, made_balls = (_reach(points, neighbors) for points in (real, generated))
    inside = between < real_balls[:, None]
    return {
        "precision": inside.any(0).double().mean().item(),
        "recall": (between < made_balls[None]).any(1).double().mean().item(),
        "density": inside.double().sum(0).mean().item() / neighbors,
        "coverage": (between.min(1).values < real_balls).double().mean().item(),
    }


def _reach(points: Tensor, neighbors: int) -> Tensor:
    """Distance of each point to its k-th nearest neighbor: ``float64 [N]``."""
    return torch.cdist(points.double(), points.double()).kthvalue(neighbors + 1, dim=1).values  # the first is itself
