"""From finished units to the table: the judge sees every image once, when all of them are on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice

import torch
from torch import Tensor

from experiments.data.concepts import BUCKETS, Concept
from experiments.judges.classifier import Classifier
from experiments.judges.metrics import bootstrap_interval, frechet_distance, kernel_distance
from experiments.results.store import UnitStore


@dataclass(frozen=True)
class JudgedImages:
    """What the judge says of one arm's images of all concepts, ``n`` a concept in the concepts' order."""

    units: UnitStore
    features: Tensor  # float64 [N, D]
    predictions: list[str]
    concepts: list[Concept]  # one an image
    t_init: list[float]  # seconds, one a concept
    t_opt: list[float]
    records: list[dict]  # one an image

    def images(self, concept: Concept) -> Tensor:
        """``uint8 [n, 3, H, W]``, read from disk: those of all concepts together may not fit into memory."""
        return self.units.read(concept.key)[0]["images"]

    @cached_property
    def hits(self) -> list[bool]:
        return [prediction == concept.name for prediction, concept in zip(self.predictions, self.concepts, strict=True)]


def judge(classifier: Classifier, images: Iterable[Tensor], batch_size: int = 128) -> tuple[Tensor, list[str]]:
    """Features ``float64 [N, D]`` and predicted labels of N images ``uint8 [3, H, W]``, which are read as they go."""
    features, labels, device, rest = [], [], classifier.mean.device, iter(images)
    with torch.no_grad():
        while batch := list(islice(rest, batch_size)):
            found, logits = classifier.features_and_logits(torch.stack(batch).to(device).float() / 255)
            features.append(found.cpu().double())
            labels += [classifier.labels[k] for k in logits.argmax(-1).tolist()]
    return torch.cat(features), labels


def accuracy_rows(method: str, judged: JudgedImages, seed: int) -> list[dict]:
    """Accuracy a bucket and in all with 95 % intervals, from a bootstrap that draws whole concepts.

    Images of one concept are right or wrong together, so drawing single images would promise too much.
    """
    rows = []
    for bucket, chosen in _members(judged.concepts).items():
        hits, names = [float(judged.hits[k]) for k in chosen], [judged.concepts[k].name for k in chosen]
        accuracy = _with_interval("accuracy", hits, names, seed)
        rows.append({"method": method, "bucket": bucket, **accuracy, "n": len(hits), "concepts": len(set(names))})
    return rows


def pair_rows(arms: Mapping[str, JudgedImages], seed: int) -> list[dict]:
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


def add_totals(row: dict, judged: JudgedImages, real: Tensor) -> None:
    """FID, KID, times and, of optimised seeds, iterations and the share that converged, into the row of totals."""
    row |= {
        "fid": frechet_distance(real, judged.features),
        "kid": kernel_distance(real, judged.features),
        "n_real": len(real),
        "t_init": mean(judged.t_init),
        "t_opt": mean(judged.t_opt),
    }
    for name in ("iterations", "converged"):
        values = [record[name] for record in judged.records if name in record]
        if values:
            row[name] = mean(values)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
