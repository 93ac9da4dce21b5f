"""Computes the metrics of the generated images (accuracy, distances to real images, diversity) as rows of the table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Protocol

from torch import Tensor

from experiments.data.concepts import BUCKETS, Concept
from experiments.evaluation.copy_detector import ImageScore
from experiments.evaluation.diversity import CopyDetection
from experiments.evaluation.generation_metrics import GeneratedSet
from experiments.evaluation.metrics import bootstrap_interval
from experiments.evaluation.registry import RARE_CONCEPTS

MAX_LISTED_CONCEPTS = 5  # the note on samples that are not finite lists at most this number of concepts


class ImageUnits(Protocol):
    """A store of the images of each concept, such as :class:`~experiments.cache.store.UnitStore`."""

    def read(self, unit: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensor ``images`` of a concept, and a record whose ``samples`` are the records of the samples."""


@dataclass(frozen=True, kw_only=True)
class ClassifiedImages:
    """The images (samples) of all concepts with one arm, and the predictions and scores of the evaluation networks.

    There are n samples per concept, in the order of the concepts. A sample with NaN or infinite pixels has no image and
    no prediction, and counts as misclassified.

    Attributes:
        units: store that contains the images.
        features: features of the M samples without NaN and infinity, ``float64 [M, D]``.
        predictions: predicted label of each sample; None for a sample that is not finite.
        second_predictions: predicted labels of the second evaluation classifier; None: there is no second classifier.
        concepts: concept of each sample.
        t_init: time in seconds to compute the initial seeds of each concept; None for real images.
        t_opt: time in seconds of the seed optimization of each concept, averaged over its samples.
        records: record of each sample, with its number of network evaluations and its loss.
        extractor: name of the network that computed ``features``.
        scores: novelty scores of each sample; None for a sample that is not finite.
        thresholds: distances below which each sample is a copy; None for a sample whose threshold is not known.
        copy_detections: perceptual distances between the images of each concept and its reference images; None for a
            concept without a finite image.
        similarities: SSCD similarity of each sample to its most similar reference; None for a sample without one.
    """

    units: ImageUnits
    features: Tensor
    predictions: list[str | None]
    second_predictions: list[str | None] | None = None
    concepts: list[Concept]
    t_init: list[float | None]
    t_opt: list[float | None]
    records: list[dict]
    extractor: str
    scores: list[ImageScore | None]
    thresholds: list[tuple[float, ...] | None]
    copy_detections: list[CopyDetection | None]
    similarities: Sequence[float | None] = ()

    def images(self, concept: Concept) -> list[Tensor | None]:
        """Read the samples of a concept from disk, ``uint8 [3, H, W]`` each. A sample that is not finite is None."""
        tensors, record = self.units.read(concept.key)
        images = iter(tensors["images"])
        return [next(images) if sample["finite"] else None for sample in record["samples"]]

    @property
    def lost(self) -> list[int]:
        """Indices of the samples that are not finite."""
        return [k for k, record in enumerate(self.records) if not record["finite"]]

    @cached_property
    def copies(self) -> list[bool | None]:
        """Whether each sample is a copy of a reference image.

        The value is None if the sample is not finite, or if there are too few real images to define a copy.
        """
        pairs = zip(self.scores, self.thresholds, strict=True)
        return [None if score is None else score.is_copy(threshold) for score, threshold in pairs]

    @cached_property
    def right_new(self) -> list[bool | None]:
        """Whether each sample is right and new: its label is predicted correctly, and it is not a copy.

        The value is None if the sample is correct and it is not known whether it is a copy.
        """
        pairs = zip(self.correct, self.copies, strict=True)
        return [None if correct and copy is None else correct and not copy for correct, copy in pairs]

    @property
    def features_by_concept(self) -> list[Tensor]:
        """Features ``float64 [m, D]`` of the m finite samples of each concept that has a finite sample."""
        names = [c.name for c, record in zip(self.concepts, self.records, strict=True) if record["finite"]]
        return [self.features[[name == other for other in names]] for name in dict.fromkeys(names)]

    @cached_property
    def correct(self) -> list[bool]:
        """Whether the predicted label of each sample is the name of the sample's concept."""
        return self._correct(self.predictions)

    @cached_property
    def second_correct(self) -> list[bool] | None:
        """Whether the second classifier predicts the name of the concept; None: there is no second classifier."""
        return None if self.second_predictions is None else self._correct(self.second_predictions)

    def _correct(self, predictions: Sequence[str | None]) -> list[bool]:
        return [prediction == concept.name for prediction, concept in zip(predictions, self.concepts, strict=True)]


def accuracy_rows(method: str, images: ClassifiedImages, seed: int, real: ClassifiedImages | None = None) -> list[dict]:
    """Return the shares of right and new, right, and copied images, with 95 % intervals, per bucket and for all images.

    The bootstrap resamples whole concepts, because the predictions for images of one concept are correlated.

    Args:
        method: name of the method in the rows.
        seed: random seed of the bootstrap.
        real: the references, scored as if they were generated. Their accuracy is the column ``ceiling``: a perfect
            generator of images would reach this accuracy. If the classifier was trained on the references, it is too
            high.
    """
    shares = {
        "right_new": images.right_new,
        "accuracy": images.correct,
        "accuracy_second": images.second_correct,
        "copies": images.copies,
    }
    table = []
    for bucket, rows in _rows_by_bucket(images.concepts).items():
        names = [images.concepts[k].name for k in rows]
        row: dict[str, Any] = {"method": method, "bucket": bucket}
        for name, values in shares.items():
            present = [k for k in rows if values is not None and values[k] is not None]
            if present:
                groups = [images.concepts[k].name for k in present]
                row |= _with_interval(name, [float(values[k]) for k in present], groups, seed)
        if real is not None:
            row["ceiling"] = mean(real.correct[k] for k in _rows_by_bucket(real.concepts)[bucket])
        table.append(row | {"n": len(rows), "concepts": len(set(names))})
    return table


def paired_differences(arms: Mapping[str, ClassifiedImages], seed: int) -> list[dict]:
    """Return the difference in accuracy between each pair of arms, per bucket and in total.

    The baseline of a pair of arms is the arm that comes first in the table. The bootstrap of the 95 % confidence
    interval resamples the same concepts for both arms, so that the varying difficulty of the concepts does not widen
    the interval.
    """
    table = []
    for (baseline, reference), (method, images) in combinations(arms.items(), 2):
        gains = [float(a) - float(b) for a, b in zip(images.correct, reference.correct, strict=True)]
        for bucket, rows in _rows_by_bucket(images.concepts).items():
            names = [images.concepts[k].name for k in rows]
            difference = _with_interval("difference", [gains[k] for k in rows], names, seed)
            table.append({"method": method, "baseline": baseline, "bucket": bucket, **difference})
    return table


def _with_interval(name: str, values: Sequence[float], groups: Sequence[str], seed: int) -> dict[str, float]:
    """Return the mean of ``values`` as ``NAME``, and its 95 % confidence interval as ``NAME_low`` and ``NAME_high``."""
    low, high = bootstrap_interval(values, groups, seed=seed)
    return {name: mean(values), f"{name}_low": low, f"{name}_high": high}


def _rows_by_bucket(concepts: Sequence[Concept]) -> dict[str, list[int]]:
    """Return the indices of the images of each bucket, and the indices of all images under the key ``total``."""
    present = {concept.bucket for concept in concepts}
    buckets = {b: [k for k, concept in enumerate(concepts) if concept.bucket == b] for b in BUCKETS if b in present}
    return buckets | {"total": list(range(len(concepts)))}


def aggregate_metrics(images: ClassifiedImages, real_features: Tensor, real: ClassifiedImages) -> dict[str, Any]:
    """Compute the metrics in :data:`~experiments.evaluation.registry.RARE_CONCEPTS` over all images of an arm.

    Args:
        real_features: features of N real images for FID and KID, ``float64 [N, D]``.
        real: the references, scored as if they were generated.
    """
    generated = GeneratedSet(
        real=real_features,
        features=images.features,
        features_by_concept=images.features_by_concept,
        copies=images.copies,
        scores=images.scores,
        real_scores=[score for score in real.scores if score is not None],
        copy_detections=images.copy_detections,
        similarities=images.similarities,
        records=images.records,
        t_init=images.t_init,
        t_opt=images.t_opt,
    )
    return RARE_CONCEPTS.compute(generated) | {"n_real": len(real_features), "extractor": images.extractor}


def lost_samples(arms: Mapping[str, ClassifiedImages]) -> str:
    """Return the notes below the table: one note per arm that has samples with NaN or infinite pixels."""
    notes = []
    for name, images in arms.items():
        if images.lost:
            concepts = list(dict.fromkeys(images.concepts[k].name for k in images.lost))
            listed = ", ".join(concepts[:MAX_LISTED_CONCEPTS])
            rest = len(concepts) - MAX_LISTED_CONCEPTS
            more = f" and {rest} more concepts" if rest > 0 else ""
            notes.append(
                f"{name}: {len(images.lost)} of {len(images.records)} samples are not finite ({listed}{more}). "
                "They count as wrong, and FID and KID are not computed."
            )
    return "\n".join(notes)


def mean(values: Iterable[float | None]) -> float:
    """Return the mean of the values that are not None, or NaN if all values are None."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else math.nan
