"""Computation of the metrics of generated images, such as accuracy and diversity, as rows of the table of results."""

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

MAX_LISTED_CONCEPTS = 5  # maximum number of concepts in the note on samples with NaN or infinite pixels


class ImageUnits(Protocol):
    """A store of the images of each concept, such as :class:`~experiments.cache.store.UnitStore`."""

    def read(self, unit: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensor ``images`` of a concept, and a record whose list ``samples`` has one entry per sample."""


@dataclass(frozen=True, kw_only=True)
class ClassifiedImages:
    """Images that one arm (pipeline) generated, with the predictions and scores of the evaluation networks.

    Every concept has the same number of images (samples). A sample with NaN or infinite pixels has no image and no
    prediction, and counts as misclassified.

    Attributes:
        units: store that contains the images.
        features: features of the M samples without NaN and infinity, ``float64 [M, D]``.
        predictions: predicted label of each sample; None for a sample with NaN or infinite pixels.
        second_predictions: predicted labels of the second evaluation classifier; None if there is no second classifier.
        concepts: concept of each sample.
        t_init: time in seconds to invert the reference images of each concept and to compute its initial seeds; None
            for real images.
        t_opt: time in seconds to optimize a seed of each concept, averaged over its samples; None for real images.
        records: number of network evaluations and loss of each sample.
        extractor: name of the network that computed ``features``.
        scores: distances of each sample to real images; None for a sample with NaN or infinite pixels.
        thresholds: distances below which each sample is a copy; None if there are too few real images to compute them.
        copy_detections: perceptual distances between the images of each concept and its reference images; None for a
            concept whose images all contain NaN or infinite pixels.
        similarities: SSCD similarity of each sample to its most similar reference image; None if it was not measured.
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
        """Read the samples of a concept, ``uint8 [3, H, W]``; a sample with NaN or infinite pixels is None."""
        tensors, record = self.units.read(concept.key)
        images = iter(tensors["images"])
        return [next(images) if sample["finite"] else None for sample in record["samples"]]

    @property
    def lost(self) -> list[int]:
        """Indices of the samples with NaN or infinite pixels."""
        return [k for k, record in enumerate(self.records) if not record["finite"]]

    @cached_property
    def copies(self) -> list[bool | None]:
        """Whether each sample is a copy of a reference image.

        The value is None for a sample with NaN or infinite pixels, or if there are too few real images for a threshold.
        """
        pairs = zip(self.scores, self.thresholds, strict=True)
        return [None if score is None else score.is_copy(threshold) for score, threshold in pairs]

    @cached_property
    def right_new(self) -> list[bool | None]:
        """Whether the classifier recognizes the concept in each sample, and the sample is not a copy of a reference.

        The value is None if the classifier recognizes the concept, but it is not known whether the sample is a copy.
        """
        return self._new(self.correct)

    @property
    def right_new_second(self) -> list[bool | None] | None:
        """Whether the second classifier recognizes the concept in each sample, and the sample is not a copy.

        The property is None if there is no second classifier. The value of a sample is None if the second classifier
        recognizes the concept, but it is not known whether the sample is a copy.
        """
        return None if self.second_correct is None else self._new(self.second_correct)

    def _new(self, correct: Sequence[bool]) -> list[bool | None]:
        """Return whether each sample is correct and not a copy.

        The value is None if the sample is correct, but it is not known whether the sample is a copy.
        """
        pairs = zip(correct, self.copies, strict=True)
        return [None if right and copy is None else right and not copy for right, copy in pairs]

    @property
    def features_by_concept(self) -> list[Tensor]:
        """For each concept, the features ``float64 [m, D]`` of its m samples without NaN and infinity.

        Concepts without such samples are omitted.
        """
        names = [c.name for c, record in zip(self.concepts, self.records, strict=True) if record["finite"]]
        return [self.features[[name == other for other in names]] for name in dict.fromkeys(names)]

    @cached_property
    def correct(self) -> list[bool]:
        """Whether the predicted label of each sample is the name of the sample's concept."""
        return self._correct(self.predictions)

    @cached_property
    def second_correct(self) -> list[bool] | None:
        """Whether the second classifier predicts the name of the concept; None if there is no second classifier."""
        return None if self.second_predictions is None else self._correct(self.second_predictions)

    def _correct(self, predictions: Sequence[str | None]) -> list[bool]:
        return [prediction == concept.name for prediction, concept in zip(predictions, self.concepts, strict=True)]


def accuracy_rows(method: str, images: ClassifiedImages, seed: int, real: ClassifiedImages | None = None) -> list[dict]:
    """Return accuracy and share of copies with 95 % confidence intervals, per bucket (group of concepts) and in total.

    The bootstrap resamples whole concepts, because the predictions for images of one concept are correlated.

    Args:
        method: name of the method in the rows.
        images: the generated images of the method.
        seed: random seed of the bootstrap.
        real: the reference images, scored as if they were generated images. The accuracy on the reference images is the
            column ``ceiling``, an estimate of the accuracy of a perfect generator. The estimate is too high if the
            classifier was trained on the reference images.
    """
    shares = {
        "right_new": images.right_new,
        "accuracy": images.correct,
        "accuracy_second": images.second_correct,
        "right_new_second": images.right_new_second,
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
    """Return the difference in accuracy between each pair of arms (pipelines), per group of concepts and in total.

    The baseline of a pair of arms is the arm that comes first in the table. The difference is the accuracy of the other
    arm minus the accuracy of the baseline. The bootstrap of the 95 % confidence interval resamples the same concepts
    for both arms. The interval is therefore not wider if some concepts are more difficult than others.
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
    """Return the mean of ``values`` and its 95 % confidence interval.

    The keys of the returned dict are ``NAME``, ``NAME_low`` and ``NAME_high``, where NAME is the argument ``name``.
    """
    low, high = bootstrap_interval(values, groups, seed=seed)
    return {name: mean(values), f"{name}_low": low, f"{name}_high": high}


def _rows_by_bucket(concepts: Sequence[Concept]) -> dict[str, list[int]]:
    """Return a dict from each bucket (group of concepts) to the indices of its images.

    The additional key ``total`` contains the indices of all images.
    """
    present = {concept.bucket for concept in concepts}
    buckets = {b: [k for k, concept in enumerate(concepts) if concept.bucket == b] for b in BUCKETS if b in present}
    return buckets | {"total": list(range(len(concepts)))}


def aggregate_metrics(images: ClassifiedImages, real_features: Tensor, real: ClassifiedImages) -> dict[str, Any]:
    """Compute the metrics in :data:`~experiments.evaluation.registry.RARE_CONCEPTS` over all images of a method.

    Args:
        images: the generated images of the method.
        real_features: features of N real images for FID and KID, ``float64 [N, D]``.
        real: the reference images, scored as if they were generated images.
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
    """Return one line per arm (pipeline) that generated samples with NaN or infinite pixels, or an empty string."""
    notes = []
    for name, images in arms.items():
        if images.lost:
            concepts = list(dict.fromkeys(images.concepts[k].name for k in images.lost))
            listed = ", ".join(concepts[:MAX_LISTED_CONCEPTS])
            rest = len(concepts) - MAX_LISTED_CONCEPTS
            more = f" and {rest} more concepts" if rest > 0 else ""
            notes.append(
                f"{name}: {len(images.lost)} of {len(images.records)} samples are not finite ({listed}{more}). "
                "These samples count as wrong, and FID and KID are not computed."
            )
    return "\n".join(notes)


def mean(values: Iterable[float | None]) -> float:
    """Return the mean of the values that are not None, or NaN if there are no such values."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else math.nan
