"""Detection of copied references, also if the copy is mirrored, shifted, recolored or blurred.

The distance of an image to a reference is the smallest distance to a transformed version of the reference. Distances
are divided by the mean distance between two real images of the concept, so that the distances of all concepts have one
scale. There are two distances: of shapes (deep feature maps of the evaluation classifier) and of layouts (a gray image
of 16 x 16 pixels). A generated image is a copy if, by one of the two distances, it is nearer to a reference than 95 %
of the other real images of all concepts are (:class:`CopyThreshold`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from experiments.evaluation.classifier import Classifier, classify_images
from experiments.evaluation.diversity import squared_distances
from experiments.evaluation.novelty import authentic_images, copy_paste_measure

COPY_SHARE = 0.05
"""Share of real images whose distance to other real images is below the threshold of copies."""
SHIFT = 1 / 16  # size of a shift, as a fraction of the side of the image
BLUR = 1 / 40  # standard deviation of the blur, as a fraction of the side of the image
HUE = 0.1  # change of the hue, as a fraction of the color circle
DEEP_STAGES = 3  # number of last stages of the classifier whose feature maps are compared
SHAPE_GRID = 2  # feature maps are averaged over a grid of 2 x 2 cells, so that shifts hardly change the vectors
LAYOUT_GRID = 16  # side of the gray images that are compared, in pixels
MIN_SCALE = 1e-6  # lower bound of the mean distance of real images, so that equal images have a scale
DISTANCES = ("shape", "layout")
"""Names of the distances by which an image can be a copy."""


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Shift images ``[N, 3, H, W]`` by a number of pixels; pixels of the border are repeated."""
    height, width = images.shape[-2:]
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    return images[..., rows, :][..., columns]


def recolored(images: Tensor) -> Tensor:
    """Return versions of images ``uint8 [N, 3, H, W]`` that count as the same image.

    Returns:
        ``uint8 [T, N, 3, H, W]``: the images, blurred images, two changes of the hue, and the mirror images of these.
    """
    std = BLUR * min(images.shape[-2:])
    blurred = transforms.gaussian_blur(images, 2 * max(1, round(2 * std)) + 1, std)
    versions = torch.stack([images, blurred, *(transforms.adjust_hue(images, shift) for shift in (HUE, -HUE))])
    return torch.cat([versions, versions.flip(-1)])


def shifted_versions(images: Tensor) -> Tensor:
    """Return versions of images ``uint8 [N, 3, H, W]`` that are shifted by up to ``SHIFT``, and their mirror images.

    Returns:
        ``uint8 [T, N, 3, H, W]``: the images with 25 shifts, and the mirror images of these.
    """
    height, width = images.shape[-2:]
    shifts = [SHIFT * k / 2 for k in (0, -2, -1, 1, 2)]
    versions = torch.stack([shifted(images, round(a * height), round(b * width)) for a in shifts for b in shifts])
    return torch.cat([versions, versions.flip(-1)])


@torch.no_grad()
def shape_vectors(classifier: Classifier, images: Tensor, batch_size: int = 64) -> Tensor:
    """Return vectors ``float32 [N, E]`` of the shapes in images ``uint8 [N, 3, H, W]``.

    The vectors are the feature maps of the last stages of ``classifier``, averaged over a grid. In each position the
    channel vector is normalized to unit length, and each stage has the same weight. Unlike the vectors of
    :func:`~experiments.evaluation.diversity.perceptual_vectors`, these vectors hardly depend on small shifts.
    """
    device = classifier.mean.device
    vectors = []
    for batch in images.split(batch_size):
        layers = classifier.feature_maps(batch.to(device).float() / 255)[-DEEP_STAGES:]
        pooled = [F.adaptive_avg_pool2d(F.normalize(maps), SHAPE_GRID) for maps in layers]
        vectors.append(torch.cat([maps.flatten(1) for maps in pooled], 1).cpu())
    return torch.cat(vectors)


def layout_vectors(images: Tensor) -> Tensor:
    """Return vectors ``float32 [N, E]`` of the layouts of images ``uint8 [N, 3, H, W]``.

    A vector is the image in gray and in low resolution, with mean 0 and unit length, so that the vectors do not depend
    on brightness and contrast.
    """
    gray = F.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), LAYOUT_GRID).flatten(1)
    return F.normalize(gray - gray.mean(1, keepdim=True))


@dataclass(frozen=True)
class ImageScore:
    """Scores of one image of a concept, which compare the image with the references of the concept.

    A score is None if the concept has too few real images for it.

    Attributes:
        distances: smallest distance between the image and a transformed version of a reference, divided by the mean
            distance between two real images of the concept, for each entry of ``DISTANCES``.
        authentic: whether the image is farther from its nearest reference than this reference is from the nearest other
            real image (:func:`~experiments.evaluation.novelty.authentic_images`).
        m_cp: copy-paste measure (:func:`~experiments.evaluation.novelty.copy_paste_measure`), in [-1, 1].
    """

    distances: tuple[float, ...] | None = None
    authentic: bool | None = None
    m_cp: float | None = None

    def is_copy(self, threshold: Sequence[float] | None) -> bool | None:
        """Return whether one of the distances is below its threshold; None if the distances or thresholds are None."""
        if self.distances is None or threshold is None:
            return None
        return any(distance < limit for distance, limit in zip(self.distances, threshold, strict=True))


@dataclass(frozen=True)
class RealConcept:
    """Vectors of the M real images of one concept: first the R references, then the held-out real images.

    Images of one group, such as drawings by one designer, can be versions of each other and are not compared.

    Attributes:
        references: number R of references.
        versions: for each entry of ``DISTANCES``, vectors of T versions of the references and of at most one held-out
            image, ``[T, A, E]``, where A is R or R + 1. The shape is compared with recolored and the layout with
            shifted versions.
        real: for each entry of ``DISTANCES``, vectors of the real images, ``[M, E]``.
        features: features of the classifier for the real images, ``[M, D]``.
        groups: group of each real image.
    """

    references: int
    versions: Sequence[Tensor]
    real: Sequence[Tensor]
    features: Tensor
    groups: Sequence[str]

    def scales(self) -> Tensor | None:
        """Return the mean distances between two real images of different groups, ``[2]``.

        A scale is at least ``MIN_SCALE``. The scales are None if there are no such images.
        """
        compared = self.versions[0].shape[1]
        different = torch.tensor([[a != b for b in self.groups[:compared]] for a in self.groups])
        if not different.any():
            return None
        pairs = zip(self.real, self.versions, strict=True)
        scales = torch.stack([_nearest_version(real, versions)[different].mean() for real, versions in pairs])
        return scales.clamp_min(MIN_SCALE)

    def score(self, images: ImageVectors) -> list[ImageScore]:
        """Score n images that are not among the real images."""
        count = self.references
        if not count:
            return [ImageScore()] * len(images.features)
        shapes, others = self.real[0], self.features[count:]
        scores: dict[str, Sequence] = {}
        scales = self.scales()
        if scales is not None:
            pairs = zip(images.vectors, self.versions, strict=True)
            nearest = [_nearest_version(vectors, versions[:, :count]).amin(1) for vectors, versions in pairs]
            scores["distances"] = [tuple(row) for row in (torch.stack(nearest, 1) / scales).tolist()]
        if len(shapes) > 1:
            scores["authentic"] = authentic_images(images.vectors[0], shapes[:count], shapes).tolist()
        if len(others):
            scores["m_cp"] = copy_paste_measure(images.features, self.features[:count], others).tolist()
        return [ImageScore(**{name: v[k] for name, v in scores.items()}) for k in range(len(images.features))]

    def score_references(self) -> list[ImageScore]:
        """Score each reference as if it were a generated image of the concept.

        A reference is compared with the other references and, instead of itself and of images of its own group, with
        held-out real images, so that it is compared with as many images as a generated image, if possible.
        """
        scores = []
        for k in range(self.references):
            image = ImageVectors([real[k, None] for real in self.real], self.features[k, None])
            scores += self._without_group(self.groups[k]).score(image)
        return scores

    def _without_group(self, group: str) -> RealConcept:
        """Return the concept without the real images of a group; held-out images replace references."""
        rows = [k for k, other in enumerate(self.groups) if other != group]
        compared = [k for k in rows if k < self.versions[0].shape[1]]
        return RealConcept(
            references=min(self.references, len(compared)),
            versions=[versions[:, compared] for versions in self.versions],
            real=[real[rows] for real in self.real],
            features=self.features[rows],
            groups=[self.groups[k] for k in rows],
        )


@dataclass(frozen=True)
class ImageVectors:
    """Vectors of n images.

    Attributes:
        vectors: for each entry of ``DISTANCES``, the vectors ``[n, E]``.
        features: features of the classifier, ``[n, D]``.
    """

    vectors: Sequence[Tensor]
    features: Tensor


def image_vectors(classifier: Classifier, images: Tensor) -> ImageVectors:
    """Compute the vectors of images ``uint8 [n, 3, H, W]``, where n > 0."""
    vectors = [shape_vectors(classifier, images), layout_vectors(images)]
    return ImageVectors(vectors, classify_images(classifier, images)[0])


def real_concept(
    classifier: Classifier, references: Tensor, others: Tensor, groups: Sequence[str] | None = None
) -> RealConcept:
    """Compute the vectors of the real images of a concept.

    Args:
        classifier: evaluation classifier that computes the vectors and features.
        references: the R references, ``uint8 [R, 3, H, W]``, where R > 0.
        others: other real images of the concept, ``uint8 [H, 3, H, W]``; the tensor may be empty.
        groups: group of each reference, then of each held-out image. Images of one group, such as drawings by one
            designer, can be versions of each other and are not compared. None: each image is a group.
    """
    images = torch.cat([references, others])
    real = image_vectors(classifier, images)
    compared = images[: len(references) + 1]
    recolorings, shifts = recolored(compared), shifted_versions(compared)
    shapes = shape_vectors(classifier, recolorings.flatten(0, 1)).unflatten(0, recolorings.shape[:2])
    layouts = layout_vectors(shifts.flatten(0, 1)).unflatten(0, shifts.shape[:2])
    return RealConcept(
        references=len(references),
        versions=[shapes, layouts],
        real=real.vectors,
        features=real.features,
        groups=groups or [str(k) for k in range(len(images))],
    )


@dataclass(frozen=True)
class CopyThreshold:
    """Threshold of the distances of copies, from the distances of the real images of all concepts.

    The threshold of a concept is the 5th percentile of the distances of the real images of the *other* concepts, so
    that the real images of the concept are scored with a threshold that does not depend on them.

    Attributes:
        scores: scores of the references of each concept (:meth:`RealConcept.score_references`), by the name of the
            concept.
    """

    scores: Mapping[str, Sequence[ImageScore]]

    def of(self, concept: str) -> tuple[float, ...] | None:
        """Return the threshold of a concept for each entry of ``DISTANCES``; None if there are no other concepts."""
        others = [scores for name, scores in self.scores.items() if name != concept]
        distances = [score.distances for scores in others for score in scores if score.distances is not None]
        if not distances:
            return None
        return tuple(torch.tensor(distances, dtype=torch.float64).quantile(COPY_SHARE, dim=0).tolist())


def _nearest_version(vectors: Tensor, versions: Tensor) -> Tensor:
    """Return the distance of each of n images to the nearest of the T versions of A images: ``float64 [n, A]``.

    Args:
        vectors: vectors of the n images, ``[n, E]``.
        versions: vectors of the versions, ``[T, A, E]``.
    """
    distances = squared_distances(vectors, versions.flatten(0, 1))
    return distances.unflatten(1, versions.shape[:2]).amin(1)
