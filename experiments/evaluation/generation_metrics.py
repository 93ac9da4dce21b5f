"""What the metrics of a set of generated images are computed from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from experiments.evaluation.diversity import CopyDetection, precision_recall, vendi_score
from experiments.evaluation.metrics import frechet_distance, kernel_distance


@dataclass(frozen=True, eq=False)
class GeneratedSet:
    """Generated images of all concepts, by their features.

    Attributes:
        real: features of real images, float64 ``[M, D]``.
        features: of the finite generated images, float64 ``[N, D]``.
        features_by_concept: the same, one tensor per concept.
        copies: per sample, whether it copies a reference; None if unknown.
        copy_detections: one per concept; None without images.
        records: measured values, one mapping per sample.
        t_init, t_opt: seconds of seed initialization and optimization, one per concept.
    """

    real: Tensor
    features: Tensor
    features_by_concept: Sequence[Tensor]
    copies: Sequence[bool | None]
    copy_detections: Sequence[CopyDetection | None]
    records: Sequence[Mapping[str, Any]]
    t_init: Sequence[float]
    t_opt: Sequence[float | None]

    @property
    def num_not_finite(self) -> int:
        return sum(not record["finite"] for record in self.records)

    @cached_property
    def feature_distances(self) -> dict[str, float | None]:
        """FID and KID. None if a sample is not finite, a set has fewer than two images, or features are not finite; the
        last gives a warning."""
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
        """Precision, recall, density and coverage."""
        return precision_recall(self.real, self.features)

    @property
    def nearest_distances(self) -> list[float]:
        """Distance of each image to its nearest reference."""
        return [value for each in self.copy_detections if each is not None for value in each.nearest.tolist()]

    @property
    def pairwise_distances(self) -> list[float | None]:
        """Mean distance between two images of each concept."""
        return [each.pairwise for each in self.copy_detections if each is not None]

    @property
    def vendi_scores(self) -> list[float]:
        """One per concept."""
        return [vendi_score(features) for features in self.features_by_concept]

    def recorded(self, name: str) -> list[float]:
        """Recorded values of the samples that have them."""
        return [record[name] for record in self.records if name in record]


def mean_available(values: Iterable[float | None]) -> float:
    """Mean of the values that are not None; NaN without any."""
    available = [value for value in values if value is not None]
    return sum(available) / len(available) if available else math.nan


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None without any."""
    mean = mean_available(values)
    return None if math.isnan(mean) else mean
