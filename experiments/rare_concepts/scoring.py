"""From finished units to the table: the judge sees every image once, when all of them are on disk."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, islice

import torch
from torch import Tensor

from experiments.cache.store import UnitStore
from experiments.data.concepts import BUCKETS, Concept
from experiments.evaluation.classifier import Classifier
from experiments.evaluation.diversity import CopyDetection, precision_recall, vendi_score
from experiments.evaluation.inception import Inception
from experiments.evaluation.metrics import bootstrap_interval, frechet_distance, kernel_distance
from experiments.reporting.finite import NonFiniteError, is_finite


@dataclass(frozen=True)
class ClassifiedImages:
    """What the judge says of one arm's images of all concepts, ``n`` a concept in the concepts' order.

    A sample that is not finite has no image and no prediction, which counts as a wrong one.
    """

    units: UnitStore
    features: Tensor  # float64 [M, D], of those with an image
    predictions: list[str | None]  # one a sample
    concepts: list[Concept]  # one a sample
    t_init: list[float]  # seconds, one a concept
    t_opt: list[float | None]
    records: list[dict]  # one a sample
    extractor: str = "judge"  # whose features they are
    resemblances: list[CopyDetection | None] = field(default_factory=list)  # one a concept, None without images

    def images(self, concept: Concept) -> list[Tensor | None]:
        """Of each sample ``uint8 [3, H, W]``, read from disk: those of all concepts together may not fit in memory."""
        tensors, record = self.units.read(concept.key)
        kept = iter(tensors["images"])
        return [next(kept) if sample["finite"] else None for sample in record["samples"]]

    @property
    def lost(self) -> list[int]:
        """Samples that are not finite."""
        return [k for k, record in enumerate(self.records) if not record["finite"]]

    @cached_property
    def copies(self) -> list[bool | None]:
        """Of each sample whether it is a copy of a reference; None where there is no image or no measure."""
        found, finite = [], [record["finite"] for record in self.records]
        count = len(finite) // max(len(self.resemblances), 1)
        for g, own in enumerate(self.resemblances):
            copied = iter((own.copies if own else None) or [])
            found += [next(copied, None) if fine else None for fine in finite[g * count : (g + 1) * count]]
        return found or [None] * len(finite)

    @property
    def features_by_concept(self) -> list[Tensor]:
        """Features of each concept's images that there are."""
        names = [c.name for c, record in zip(self.concepts, self.records, strict=True) if record["finite"]]
        return [self.features[[name == own for own in names]] for name in dict.fromkeys(names)]

    @cached_property
    def hits(self) -> list[bool]:
        return [prediction == concept.name for prediction, concept in zip(self.predictions, self.concepts, strict=True)]


def judge(
    classifier: Classifier, images: Iterable[Tensor], batch_size: int = 128, extractor: Inception | None = None
) -> tuple[Tensor, list[str]]:
    """Features ``float64 [N, D]`` and predicted labels of N images ``uint8 [3, H, W]``, which are read as they go.

    The features are those of ``extractor``, or of the classifier itself.
    """
    features, labels, device, rest = [], [], classifier.mean.device, iter(images)
    with torch.no_grad():
        while batch := list(islice(rest, batch_size)):
            pixels = torch.stack(batch).to(device)
            found, logits = classifier.features_and_logits(pixels.float() / 255)
            if extractor is not None:
                found = extractor(pixels)
            if not is_finite(logits).all():
                raise NonFiniteError(
                    "the judge's answers are not finite: its weights are damaged, name another classifier."
                )
            features.append(found.cpu().double())
            labels += [classifier.labels[k] for k in logits.argmax(-1).tolist()]
    width = (extractor or classifier).num_features
    return torch.cat(features) if features else torch.empty(0, width, dtype=torch.float64), labels


def ceilings(concepts: Sequence[Concept], classifier: Classifier) -> dict[str, float]:
    """The accuracy that a perfect sampler would score with a judge who errs, a bucket and in all.

    It is the judge's own on the references, which are real. Of a judge that learned from them it is too high.
    """
    images = (torch.from_numpy(concept.references[k]) for concept in concepts for k in range(len(concept.references)))
    shown = [concept for concept in concepts for _ in range(len(concept.references))]
    named = judge(classifier, images)[1]
    return {
        bucket: mean(named[k] == shown[k].name for k in chosen) for bucket, chosen in _members(shown).items() if chosen
    }


def accuracy_rows(
    method: str, judged: ClassifiedImages, seed: int, ceiling: Mapping[str, float] | None = None
) -> list[dict]:
    """Accuracy a bucket and in all with 95 % intervals, from a bootstrap that draws whole concepts.

    Images of one concept are right or wrong together, so drawing single images would promise too much. ``ceiling`` is
    of :func:`ceilings`.
    """
    rows = []
    for bucket, chosen in _members(judged.concepts).items():
        hits, names = [float(judged.hits[k]) for k in chosen], [judged.concepts[k].name for k in chosen]
        accuracy = _with_interval("accuracy", hits, names, seed)
        most = {} if ceiling is None else {"ceiling": ceiling.get(bucket)}
        own = {"method": method, "bucket": bucket, **accuracy, **most}
        rows.append(own | {"n": len(hits), "concepts": len(set(names))})
    return rows


def paired_differences(arms: Mapping[str, ClassifiedImages], seed: int) -> list[dict]:
    """What each method's accuracy exceeds that of each method before it by, a bucket and in all, with 95 % intervals.

    The bootstrap draws the same concepts for both, so that what is easy or hard for both does not widen an interval.
    """
    rows = []
    for (than, less), (method, judged) in combinations(arms.items(), 2):
        gains = [float(hit) - float(other) for hit, other in zip(judged.hits, less.hits, strict=True)]
        for bucket, chosen in _members(judged.concepts).items():
            own, names = [gains[k] for k in chosen], [judged.concepts[k].name for k in chosen]
            difference = _with_interval("difference", own, names, seed)
            rows.append({"method": method, "than": than, "bucket": bucket, **difference})
    return rows


def _with_interval(name: str, values: Sequence[float], groups: Sequence[str], seed: int) -> dict[str, float]:
    """The mean of ``values`` as ``name``, and its interval."""
    low, high = bootstrap_interval(values, groups, seed=seed)
    return {name: mean(values), f"{name}_low": low, f"{name}_high": high}


def _members(concepts: Sequence[Concept]) -> dict[str, list[int]]:
    """Indices of each bucket's images, and of all: ``total``."""
    present = {concept.bucket for concept in concepts}
    buckets = {b: [k for k, concept in enumerate(concepts) if concept.bucket == b] for b in BUCKETS if b in present}
    return buckets | {"total": list(range(len(concepts)))}


def aggregate_metrics(row: dict, judged: ClassifiedImages, real: Tensor) -> None:
    """FID, KID, copies, variety, cost and, of optimized seeds, iterations and the share that converged, into the row of
    totals."""
    row |= {
        **distances(real, judged),
        **variety(real, judged),
        "nfe": mean(record.get("nfe") for record in judged.records),
        "n_real": len(real),
        "extractor": judged.extractor,
        "not_finite": len(judged.lost),
        "t_init": mean(judged.t_init),
        "t_opt": mean(judged.t_opt),
    }
    for name in ("iterations", "converged"):
        values = [record[name] for record in judged.records if name in record]
        if values:
            row[name] = mean(values)


def distances(real: Tensor, judged: ClassifiedImages) -> dict[str, float | None]:
    """FID and KID; None where they cannot be had: a sample was lost, a set has fewer than two images, or the judge's
    features are not finite, which is said in a warning."""
    if judged.lost or min(len(real), len(judged.features)) < 2:
        return {"fid": None, "kid": None}
    try:
        return {"fid": frechet_distance(real, judged.features), "kid": kernel_distance(real, judged.features)}
    except ValueError as error:
        warnings.warn(f"no FID and KID: {error}", stacklevel=2)
        return {"fid": None, "kid": None}


def variety(real: Tensor, judged: ClassifiedImages) -> dict[str, float | None]:
    """Copies, distances to the nearest reference and of two images of a concept, Vendi scores, all as means; precision,
    recall, density and coverage."""
    known = [own for own in judged.resemblances if own is not None]
    found = {
        "copies": mean(judged.copies),
        "nearest": mean(value for own in known for value in own.nearest.tolist()),
        "pairwise": mean(own.pairwise for own in known),
        "vendi": mean(vendi_score(features) for features in judged.features_by_concept),
    }
    return {name: None if math.isnan(v) else v for name, v in found.items()} | precision_recall(real, judged.features)


def lost_samples(arms: Mapping[str, ClassifiedImages]) -> str:
    """A note below the table on the samples that are not finite, of every arm that has some."""
    notes = []
    for name, judged in arms.items():
        if judged.lost:
            concepts = list(dict.fromkeys(judged.concepts[k].name for k in judged.lost))
            more = f" and {len(concepts) - 5} more concepts" if len(concepts) > 5 else ""
            notes.append(
                f"{name}: {len(judged.lost)} of {len(judged.records)} samples are not finite "
                f"({', '.join(concepts[:5])}{more}). They count as wrong, and there is no FID and KID.\n"
            )
    return "\n".join(notes)


def mean(values: Iterable[float | None]) -> float:
    """Of the values that there are; NaN of none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
