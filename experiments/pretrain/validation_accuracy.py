"""Measurement of the accuracy of an evaluation classifier on images that a trained model generates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import PositiveInt
from torch import Tensor

from experiments.data.concepts import BUCKETS, Concept, ConceptSource
from experiments.evaluation.classifier import load_classifier
from experiments.evaluation.metrics import bootstrap_interval
from rnri.validation import NonEmptyStr, dataclass

Sampler = Callable[[list[str], Tensor], Tensor]
"""A function that generates images ``[B, 3, H, W]`` in [0, 1] from B prompts and initial noise ``[B, 4, h, w]``."""


@dataclass
class AccuracyProbe:
    """Measures the share of generated images for which an evaluation classifier predicts the concept in the prompt.

    Args:
        source: data source of the concepts and their prompts.
        classifier: folder of the evaluation classifier.
        samples: number of images per concept. Image k is generated from the same seed with every sampler.
    """

    source: ConceptSource
    classifier: NonEmptyStr
    samples: PositiveInt

    def prepare(self) -> None:
        """Load the classifier and the concepts; raise a ValueError if the classifier or the data is invalid."""
        self.network = load_classifier(self.classifier)
        self.concepts: list[Concept] = [concept for concept in self.source.concepts() for _ in range(self.samples)]

    @torch.no_grad()
    def row(self, sampler: Sampler, shape: tuple[int, ...], batch_size: int = 64, **labels: object) -> dict:
        """Return the accuracy in % on each bucket (group of concepts by frequency), with 95 % confidence intervals.

        The returned dictionary maps the name of each bucket to a dictionary with the accuracy, the ends of the
        confidence interval (``low``, ``high``) and the number of images (``n``). The confidence intervals are computed
        by a bootstrap over concepts.

        Args:
            sampler: function that generates images.
            shape: shape of one seed (initial noise latent), ``(C, h, w)``.
            batch_size: number of images that are generated at once.
            labels: additional entries at the beginning of the returned dictionary.
        """
        correct: list[float] = []
        for start in range(0, len(self.concepts), batch_size):
            batch = self.concepts[start : start + batch_size]
            seeds = torch.stack([_seed(start + k, shape) for k in range(len(batch))])
            images = sampler([concept.prompt for concept in batch], seeds)
            predictions = self.network(images).argmax(-1).tolist()
            correct += [self.network.labels[k] == c.name for k, c in zip(predictions, batch, strict=True)]
        return labels | {bucket: self._accuracy(correct, bucket) for bucket in BUCKETS}

    def _accuracy(self, correct: list[float], bucket: str) -> dict[str, float]:
        pairs = [(value, c.name) for value, c in zip(correct, self.concepts, strict=True) if c.bucket == bucket]
        if not pairs:
            return {"n": 0}
        values, names = zip(*pairs, strict=True)
        low, high = bootstrap_interval(values, names, seed=0)
        statistics = {"accuracy": sum(values) / len(values), "low": low, "high": high}
        return {name: round(100 * value, 1) for name, value in statistics.items()} | {"n": len(pairs)}


def _seed(index: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(index))
