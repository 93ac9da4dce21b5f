"""Features and measured values of a set of generated images, from which the metrics of one table row are computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from experiments.evaluation.copy_detector import ImageScore
from experiments.evaluation.diversity import CopyDetection, precision_recall, vendi_score
from experiments.evaluation.metrics import frechet_distance, kernel_distance
from experiments.evaluation.novelty import copy_statistic
from experiments.evaluation.sscd import SSCD_COPY


@dataclass(frozen=True, eq=False)
class GeneratedSet:
    """Features and measured values of the generated images of several concepts.

    Attributes:
        real: features of real images, float64 ``[M, D]``.
        features: features of the generated images without NaN or infinity, float64 ``[N, D]``.
        features_by_concept: the same features as ``features``, with one tensor per concept.
        copies: for each generated image, whether the image copies a reference; None if there are too few real images to
            detect copies.
        scores: scores that compare each generated image with the references; None for an image with NaN or infinity.
        real_scores: scores that compare each reference with the other references, as if the reference were a generated
            image.
        copy_detections: perceptual distances between the images and the references of each concept; None for a concept
            without images.
        similarities: SSCD similarity of each image to its most similar reference, at most 1 (the same image); None if
            SSCD is not computed.
        records: one dict of measured values per generated image.
        t_init: time in seconds that the initialization of the seeds of each concept takes; None for real images.
        t_opt: time in seconds that the optimization of the seeds of each concept takes; None if seeds are not
            optimized.
    """

    real: Tensor
    features: Tensor
    features_by_concept: Sequence[Tensor]
    copies: Sequence[bool | None]
    scores: Sequence[ImageScore | None]
    real_scores: Sequence[ImageScore]
    copy_detections: Sequence[CopyDetection | None]
    similarities: Sequence[float | None]
    records: Sequence[Mapping[str, Any]]
    t_init: Sequence[float | None]
    t_opt: Sequence[float | None]

    @property
    def num_not_finite(self) -> int:
        """Number of generated images with NaN or infinite pixels."""
        return sum(not record["finite"] for record in self.records)

    @cached_property
    def feature_distances(self) -> dict[str, float | None]:
        """FID and KID between the real and the generated images.

        FID and KID are None if a generated image has NaN or infinite pixels, or if there are fewer than two real or
        fewer than two generated images. If a feature is NaN or infinite, FID and KID are None and a warning is printed.
        """
        if self.num_not_finite or min(len(self.real), len(self.features)) < 2:
            return {"fid": None, "kid": None}
        try:
            fid = frechet_distance(self.real, self.features)
            return {"fid": fid, "kid": kernel_distance(self.real, self.features)}
        except ValueError as error:
            warnings.warn(f"FID and KID are not available: {error}", stacklevel=2)
            return {"fid": None, "kid": None}

    @cached_property
    def coverage(self) -> dict[str, float | None]:
        """Precision, recall, density and coverage of the generated images (:func:`precision_recall`)."""
        return precision_recall(self.real, self.features)

    @property
    def concept_copies(self) -> list[bool]:
        """For each image, whether it is a copy, with a threshold that is computed from the real images of its concept.

        An image is a copy if its perceptual distance to a reference is smaller than 95 % of the distances between two
        real images of the concept.
        """
        return [copy for each in self.copy_detections if each is not None for copy in each.copies or ()]

    @property
    def authentic(self) -> list[bool | None]:
        """For each image, whether it is authentic as defined for AuthPct, the percentage of authentic images.

        An image is authentic if it is farther from its nearest reference than this reference is from the nearest other
        real image. The value is None if there are too few real images. Images with NaN or infinite pixels are omitted.
        """
        return [score.authentic for score in self.scores if score is not None]

    @property
    def m_cp(self) -> list[float | None]:
        """Copy-paste measure M_CP of each image, from -1 (equal to a held-out image) to 1 (equal to a reference).

        The measure is None if there are too few real images. Images with NaN or infinite pixels are omitted.
        """
        return [score.m_cp for score in self.scores if score is not None]

    @property
    def c_t(self) -> float | None:
        """Statistic C_T: a z-score that compares two sets of distances to the nearest reference.

        The two sets are the distances of the generated images and of the real images. A negative C_T means that the
        generated images are nearer to the references than the real images are. The distance is the shape distance
        (:mod:`experiments.evaluation.copy_detector`).
        """
        generated = [score.distances[0] for score in self.scores if score is not None and score.distances]
        return copy_statistic(generated, [score.distances[0] for score in self.real_scores if score.distances])

    @property
    def sscd_copies(self) -> list[bool | None]:
        """For each image, whether its SSCD similarity to a reference is above ``SSCD_COPY``, so that it is a copy.

        The value is None if SSCD is not computed.
        """
        return [None if value is None else value > SSCD_COPY for value in self.similarities]

    @property
    def nearest_distances(self) -> list[float]:
        """Perceptual distance between each generated image and its nearest reference."""
        return [value for each in self.copy_detections if each is not None for value in each.nearest.tolist()]

    @property
    def pairwise_distances(self) -> list[float | None]:
        """For each concept, the mean perceptual distance between two of its generated images."""
        return [each.pairwise for each in self.copy_detections if each is not None]

    @property
    def vendi_scores(self) -> list[float]:
        """For each concept, the Vendi score (effective number of different images) of its generated images."""
        return [vendi_score(features) for features in self.features_by_concept]

    def recorded(self, name: str) -> list[float]:
        """Return the recorded value ``name`` of each generated image that has such a value."""
        return [record[name] for record in self.records if name in record]


def mean_available(values: Iterable[float | None]) -> float:
    """Return the mean of the values that are not None, or NaN if all values are None."""
    available = [value for value in values if value is not None]
    return sum(available) / len(available) if available else math.nan


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None, or None if all values are None or the mean is NaN."""
    mean = mean_available(values)
    return None if math.isnan(mean) else mean
