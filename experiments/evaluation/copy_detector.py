"""Detects generated images that are copies of reference images, even if mirrored, shifted, recolored or blurred.

The distance between an image and a reference is the smallest distance between the image and a transformed version of
the reference. Distances are divided by the mean distance between two real images of the concept, so that distances of
different concepts are comparable. Two distances are computed: the *shape* distance compares deep feature maps of the
evaluation classifier, and the *layout* distance compares gray images of 16 x 16 pixels. Each distance has a threshold,
which is the 5th percentile of this distance between real images of other concepts (:class:`CopyThreshold`). A generated
image is a copy if its shape distance or its layout distance to a reference is below the threshold.
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
"""The threshold for copies is this quantile of the distances between real images, see :class:`CopyThreshold`."""
SHIFT = 1 / 16  # size of a shift, as a fraction of the side of the image
BLUR = 1 / 40  # standard deviation of the blur, as a fraction of the side of the image
HUE = 0.1  # change of the hue, as a fraction of the color circle
DEEP_STAGES = 3  # the shape distance compares the feature maps of this number of last stages
SHAPE_GRID = 2  # feature maps are averaged over a grid of 2 x 2 cells, to be almost independent of shifts
LAYOUT_GRID = 16  # side of the gray images of the layout distance, in pixels
MIN_SCALE = 1e-6  # a smaller mean distance between real images is replaced by MIN_SCALE, to avoid division by 0
DISTANCES = ("shape", "layout")
"""Names of the two distances between an image and a reference.

An image is a copy if one of its two distances to a reference is below the threshold of this distance.
"""


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Shift images ``[N, 3, H, W]`` by ``down`` and ``right`` pixels.

    Pixels at the border are repeated to fill the image.
    """
    height, width = images.shape[-2:]
    rows = (torch.arange(height) - down).clamp(0, height - 1)
    columns = (torch.arange(width) - right).clamp(0, width - 1)
    return images[..., rows, :][..., columns]


def recolored(images: Tensor) -> Tensor:
    """Return blurred, recolored and mirrored versions of images ``uint8 [N, 3, H, W]``.

    Returns:
        ``uint8 [T, N, 3, H, W]``: T versions of each image: the image, the blurred image, two changes of the hue, and
            the mirror image of each of the four.
    """
    std = BLUR * min(images.shape[-2:])
    blurred = transforms.gaussian_blur(images, 2 * max(1, round(2 * std)) + 1, std)
    versions = torch.stack([images, blurred, *(transforms.adjust_hue(images, shift) for shift in (HUE, -HUE))])
    return torch.cat([versions, versions.flip(-1)])


def shifted_versions(images: Tensor) -> Tensor:
    """Return shifted and mirrored versions of images ``uint8 [N, 3, H, W]``.

    Returns:
        ``uint8 [T, N, 3, H, W]``: T versions of each image: 25 shifts by at most ``SHIFT``, and the mirror image of
            each shifted image.
    """
    height, width = images.shape[-2:]
    shifts = [SHIFT * k / 2 for k in (0, -2, -1, 1, 2)]
    versions = torch.stack([shifted(images, round(a * height), round(b * width)) for a in shifts for b in shifts])
    return torch.cat([versions, versions.flip(-1)])


@torch.no_grad()
def shape_vectors(classifier: Classifier, images: Tensor, batch_size: int = 64) -> Tensor:
    """Return vectors ``float32 [N, E]`` that describe the shapes in images ``uint8 [N, 3, H, W]``.

    A vector with E components contains the feature maps of the last stages of ``classifier``. The channel vector at
    each position is normalized to unit length, and the normalized maps are averaged over a grid. The vectors hardly
    change if an image is shifted by a few pixels, unlike :func:`~experiments.evaluation.diversity.perceptual_vectors`.
    """
    device = classifier.mean.device
    vectors = []
    for batch in images.split(batch_size):
        layers = classifier.feature_maps(batch.to(device).float() / 255)[-DEEP_STAGES:]
        pooled = [F.adaptive_avg_pool2d(F.normalize(maps), SHAPE_GRID) for maps in layers]
        vectors.append(torch.cat([maps.flatten(1) for maps in pooled], 1).cpu())
    return torch.cat(vectors)


def layout_vectors(images: Tensor) -> Tensor:
    """Return vectors ``float32 [N, E]`` that describe the layouts of images ``uint8 [N, 3, H, W]``.

    A vector contains the pixels of the image in gray and in low resolution. Each vector is normalized to mean 0 and
    unit length, so that it does not depend on brightness and contrast.
    """
    gray = F.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), LAYOUT_GRID).flatten(1)
    return F.normalize(gray - gray.mean(1, keepdim=True))


@dataclass(frozen=True)
class ImageScore:
    """Scores that compare one image with the references of its concept.

    A score is None if the concept has too few real images to compute the score.

    Attributes:
        distances: smallest distance between the image and a transformed version of a reference, divided by the mean
            distance between two real images of the concept. The tuple contains the shape distance and the layout
            distance.
        authentic: whether the image is farther from its nearest reference than this reference is from the nearest other
            real image (:func:`~experiments.evaluation.novelty.authentic_images`).
        m_cp: copy-paste measure (:func:`~experiments.evaluation.novelty.copy_paste_measure`), in [-1, 1].
    """

    distances: tuple[float, ...] | None = None
    authentic: bool | None = None
    m_cp: float | None = None

    def is_copy(self, threshold: Sequence[float] | None) -> bool | None:
        """Return whether the shape distance or the layout distance is below its threshold, so that the image is a copy.

        If the distances or the thresholds are None, return None.
        """
        if self.distances is None or threshold is None:
            return None
        return any(distance < limit for distance, limit in zip(self.distances, threshold, strict=True))


@dataclass(frozen=True)
class RealConcept:
    """Vectors of the M real images of one concept: first the R references, then other real images (held-out images).

    Images of one group, such as drawings by one designer, are not compared, because they can be versions of each other.

    Attributes:
        references: number R of references.
        versions: two tensors ``[T, A, E]``, the first for the shape distance and the second for the layout distance.
            They contain vectors (E components) of T transformed versions of A images. The A images are the R references
            and at most one held-out image. The versions are recolored for the shape distance, and shifted for the
            layout distance.
        real: two tensors ``[M, E]`` with the vectors of the real images, for the shape distance and for the layout
            distance.
        features: features of the classifier for the real images, ``[M, D]``.
        groups: group of each real image, such as the designer of a drawing.
    """

    references: int
    versions: Sequence[Tensor]
    real: Sequence[Tensor]
    features: Tensor
    groups: Sequence[str]

    def scales(self) -> Tensor | None:
        """Return the mean shape distance and the mean layout distance between two real images of different groups.

        A mean distance is at least ``MIN_SCALE``. None is returned if there are no two images of different groups.
        """
        compared = self.versions[0].shape[1]
        different = torch.tensor([[a != b for b in self.groups[:compared]] for a in self.groups])
        if not different.any():
            return None
        pairs = zip(self.real, self.versions, strict=True)
        scales = torch.stack([_nearest_version(real, versions)[different].mean() for real, versions in pairs])
        return scales.clamp_min(MIN_SCALE)

    def score(self, images: ImageVectors) -> list[ImageScore]:
        """Return the scores of each image: distances to the references, authenticity, and copy-paste measure.

        ``images`` contains the vectors of generated images. It may also contain the vectors of a reference, if this
        object does not contain the group of the reference.
        """
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
        """Return the scores of each reference, computed as if the reference were a generated image of the concept.

        A reference is compared with the references of other groups. If possible, a held-out image replaces a reference
        of its own group, so that a reference and a generated image are compared with the same number of images.
        """
        scores = []
        for k in range(self.references):
            image = ImageVectors([real[k, None] for real in self.real], self.features[k, None])
            scores += self._without_group(self.groups[k]).score(image)
        return scores

    def _without_group(self, group: str) -> RealConcept:
        """Return a copy of this object without the real images of ``group``.

        If ``versions`` contains a held-out image of another group, this image replaces a removed reference.
        """
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
    """Vectors of n images, which the copy detector compares with the vectors of real images.

    Attributes:
        vectors: two tensors ``[n, E]`` with the vectors for the shape distance and for the layout distance.
        features: features of the classifier, ``[n, D]``.
    """

    vectors: Sequence[Tensor]
    features: Tensor


def image_vectors(classifier: Classifier, images: Tensor) -> ImageVectors:
    """Compute the vectors by which the copy detector compares images ``uint8 [n, 3, H, W]``, where n > 0."""
    vectors = [shape_vectors(classifier, images), layout_vectors(images)]
    return ImageVectors(vectors, classify_images(classifier, images)[0])


def real_concept(
    classifier: Classifier, references: Tensor, others: Tensor, groups: Sequence[str] | None = None
) -> RealConcept:
    """Compute the vectors of the real images of a concept for the copy detector.

    Args:
        classifier: evaluation classifier that computes the vectors and features.
        references: the R references, ``uint8 [R, 3, H, W]``, where R > 0.
        others: other real images of the concept, ``uint8 [N, 3, H, W]``, where N may be 0.
        groups: group of each reference and then of each other image. Images of one group, such as drawings by one
            designer, are not compared, because they can be versions of each other. If ``groups`` is None, each image is
            its own group.
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
    """Threshold for copies: an image is a copy if its distance to a reference is below the threshold.

    The threshold for the images of a concept is computed from the references of the *other* concepts. It is the 5th
    percentile of the distances between each of these references and the other references of its concept. The threshold
    does not depend on the real images of the concept itself, so that these real images can be tested in the same way.

    Attributes:
        scores: scores of the references of each concept (:meth:`RealConcept.score_references`), by the name of the
            concept.
    """

    scores: Mapping[str, Sequence[ImageScore]]

    def of(self, concept: str) -> tuple[float, ...] | None:
        """Return the thresholds of the shape distance and of the layout distance for the images of ``concept``.

        If there are no other concepts, return None.
        """
        others = [scores for name, scores in self.scores.items() if name != concept]
        distances = [score.distances for scores in others for score in scores if score.distances is not None]
        if not distances:
            return None
        return tuple(torch.tensor(distances, dtype=torch.float64).quantile(COPY_SHARE, dim=0).tolist())


def _nearest_version(vectors: Tensor, versions: Tensor) -> Tensor:
    """Return the distances between n images and A other images, of which T transformed versions are given.

    The distance to one of the A images is the smallest distance to its T versions.

    Args:
        vectors: vectors of the n images, ``[n, E]``.
        versions: vectors of the T versions of each of the A images, ``[T, A, E]``.

    Returns:
        Distances, ``float64 [n, A]``.
    """
    distances = squared_distances(vectors, versions.flatten(0, 1))
    return distances.unflatten(1, versions.shape[:2]).amin(1)
