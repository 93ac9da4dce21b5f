"""From finished units to the table: the judge sees every image once, when all of them are on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.classifier import Classifier
from experiments.data.concepts import BUCKETS, Concept
from experiments.metrics import bootstrap_interval, frechet_distance, kernel_distance


@dataclass(frozen=True)
class JudgedImages:
    """One arm's images of all concepts, ``n`` a concept in the concepts' order, and what the judge says of them."""

    images: Tensor  # uint8 [N, 3, H, W]
    features: Tensor  # float64 [N, D]
    predictions: list[str]
    concepts: list[Concept]  # one an image
    t_init: list[float]  # seconds, one a concept
    t_opt: list[float]
    records: list[dict]  # one an image

    @property
    def hits(self) -> list[bool]:
        return [prediction == concept.name for prediction, concept in zip(self.predictions, self.concepts, strict=True)]


def judge(classifier: Classifier, images: Tensor, batch_size: int = 128) -> tuple[Tensor, list[str]]:
    """Features ``float64 [N, D]`` and predicted labels of ``uint8`` images ``[N, 3, H, W]``."""
    features, labels = [], []
    with torch.no_grad():
        for batch in images.split(batch_size):
            found, logits = classifier.features_and_logits(batch.float() / 255)
            features.append(found.double())
            labels += [classifier.labels[k] for k in logits.argmax(-1).tolist()]
    return torch.cat(features), labels


def accuracy_rows(method: str, judged: JudgedImages, seed: int) -> list[dict]:
    """Accuracy a bucket and in all with 95 % intervals, from a bootstrap that draws whole concepts.

    Images of one concept are right or wrong together, so drawing single images would promise too much.
    """
    rows = []
    present = {concept.bucket for concept in judged.concepts}
    for bucket in [*(b for b in BUCKETS if b in present), "total"]:
        chosen = [k for k, c in enumerate(judged.concepts) if bucket in (c.bucket, "total")]
        hits = [float(judged.hits[k]) for k in chosen]
        low, high = bootstrap_interval(hits, groups=[judged.concepts[k].name for k in chosen], seed=seed)
        rows.append({
            "method": method, "bucket": bucket, "accuracy": sum(hits) / len(hits), "accuracy_low": low,
            "accuracy_high": high, "n": len(hits), "concepts": len({judged.concepts[k].name for k in chosen}),
        })  # fmt: skip
    return rows


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
