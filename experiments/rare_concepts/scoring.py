"""Computes the metrics of the generated images (accuracy, distances to real images, diversity) as rows of the table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from experiments.cache.store import UnitStore
from experiments.data.concepts import BUCKETS, Concept
from experiments.evaluation.classifier import Classifier, classify_images
from experiments.evaluation.diversity import CopyDetection
from experiments.evaluation.generation_metrics import GeneratedSet
from experiments.evaluation.metrics import bootstrap_interval
from experiments.evaluation.registry import RARE_CONCEPTS

MAX_LISTED_CONCEPTS = 5  # the note on samples that are not finite lists at most this number of concepts


@dataclass(frozen=True)
class ClassifiedImages:
    """The generated images (samples) of all concepts with one arm, and the predictions of the evaluation classifier.

    There are n samples per concept, in the order of the concepts. A sample with NaN or infinite pixels has no image and
    no prediction, and counts as misclassified.

    Attributes:
        units: store that contains the images.
        features: features of the M samples without NaN and infinity, ``float64 [M, D]``.
        predictions: predicted label of each sample; None for a sample that is not finite.
        concepts: concept of each sample.
        t_init: time in seconds to compute the initial seeds of each concept.
        t_opt: time in seconds of the seed optimization of each concept, averaged over its samples.
        records: record of each sample, with its number of network evaluations and its loss.
        extractor: name of the network that computed ``features``.
        copy_detections: perceptual distances between the images of each concept and its reference images; None for a
            concept without a finite image.
    """

    units: UnitStore
    features: Tensor
    predictions: list[str | None]
    concepts: list[Concept]
    t_init: list[float]
    t_opt: list[float | None]
    records: list[dict]
    extractor: str = "classifier"
    copy_detections: list[CopyDetection | None] = field(default_factory=list)

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

        The value is None if the sample is not finite, or if its concept has too few real images to define a copy.
        """
        if not self.copy_detections:
            return [None] * len(self.records)
        samples = len(self.records) // len(self.copy_detections)
        copies: list[bool | None] = []
        for g, detection in enumerate(self.copy_detections):
            is_copy = iter((detection.copies if detection else None) or [])
            records = self.records[g * samples : (g + 1) * samples]
            copies += [next(is_copy, None) if record["finite"] else None for record in records]
        return copies

    @property
    def features_by_concept(self) -> list[Tensor]:
        """Features ``float64 [m, D]`` of the m finite samples of each concept that has a finite sample."""
        names = [c.name for c, record in zip(self.concepts, self.records, strict=True) if record["finite"]]
        return [self.features[[name == other for other in names]] for name in dict.fromkeys(names)]

    @cached_property
    def correct(self) -> list[bool]:
        """Whether the predicted label of each sample is the name of the sample's concept."""
        return [prediction == concept.name for prediction, concept in zip(self.predictions, self.concepts, strict=True)]


def classifier_ceiling(concepts: Sequence[Concept], classifier: Classifier) -> dict[str, float]:
    """Return the accuracy of the classifier on the reference images, per bucket and in total.

    A perfect generator of images would reach this accuracy. If the classifier was trained on the reference images, the
    returned accuracy is too high.
    """
    images = (torch.from_numpy(concept.references[k]) for concept in concepts for k in range(len(concept.references)))
    truth = [concept for concept in concepts for _ in range(len(concept.references))]
    labels = classify_images(classifier, images)[1]
    return {
        bucket: mean(labels[k] == truth[k].name for k in rows)
        for bucket, rows in _rows_by_bucket(truth).items()
        if rows
    }


def accuracy_rows(
    method: str, images: ClassifiedImages, seed: int, ceiling: Mapping[str, float] | None = None
) -> list[dict]:
    """Return accuracy and fraction of copies, with 95 % confidence intervals, per bucket and for all images.

    The bootstrap resamples whole concepts, because the predictions for images of one concept are correlated.
    ``ceiling`` is the result of :func:`classifier_ceiling`.
    """
    table = []
    for bucket, rows in _rows_by_bucket(images.concepts).items():
        correct = [float(images.correct[k]) for k in rows]
        names = [images.concepts[k].name for k in rows]
        row = {"method": method, "bucket": bucket, **_with_interval("accuracy", correct, names, seed)}
        indices = [k for k in rows if images.copies[k] is not None]
        if indices:
            copies = [float(bool(images.copies[k])) for k in indices]
            row |= _with_interval("copies", copies, [images.concepts[k].name for k in indices], seed)
        if ceiling is not None:
            row["ceiling"] = ceiling.get(bucket)
        table.append(row | {"n": len(correct), "concepts": len(set(names))})
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


def aggregate_metrics(images: ClassifiedImages, real: Tensor) -> dict[str, Any]:
    """Compute the metrics in :data:`~experiments.evaluation.registry.RARE_CONCEPTS` over all images of an arm.

    ``real`` is the features of N real images, ``float64 [N, D]``.
    """
    generated = GeneratedSet(
        real=real,
        features=images.features,
        features_by_concept=images.features_by_concept,
        copies=images.copies,
        copy_detections=images.copy_detections,
        records=images.records,
        t_init=images.t_init,
        t_opt=images.t_opt,
    )
    return RARE_CONCEPTS.compute(generated) | {"n_real": len(real), "extractor": images.extractor}


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
