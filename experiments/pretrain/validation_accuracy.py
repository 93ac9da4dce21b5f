"""What the judge says of the samples of a trained model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import PositiveInt
from torch import Tensor

from experiments.data.concepts import BUCKETS, Concept, ConceptSource
from experiments.evaluation.classifier import load_classifier
from experiments.evaluation.metrics import bootstrap_interval
from rnri.validation import NonEmptyStr, dataclass

Draw = Callable[[list[str], Tensor], Tensor]
"""From prompts and seeds ``[B, 4, h, w]`` to images ``[B, 3, H, W]`` in [0, 1]."""


@dataclass
class AccuracyProbe:
    """Names samples of all concepts.

    Args:
        source: of the concepts and their prompts.
        classifier: folder of the judge.
        samples: of each concept; sample k of a concept has the same seed for every sampler.
    """

    source: ConceptSource
    classifier: NonEmptyStr
    samples: PositiveInt

    def prepare(self) -> None:
        """ValueError unless there are a judge and concepts."""
        self.network = load_classifier(self.classifier)
        self.concepts: list[Concept] = [concept for concept in self.source.concepts() for _ in range(self.samples)]

    @torch.no_grad()
    def row(self, draw: Draw, shape: tuple[int, ...], batch_size: int = 64, **told: object) -> dict:
        """Accuracy in % by bucket with 95 % intervals (whole concepts are drawn), beside what is ``told``.

        ``shape`` is that of a seed.
        """
        hits: list[float] = []
        for start in range(0, len(self.concepts), batch_size):
            batch = self.concepts[start : start + batch_size]
            seeds = [_seed(start + k, shape) for k in range(len(batch))]
            answers = self.network(draw([concept.prompt for concept in batch], torch.stack(seeds))).argmax(-1)
            hits += [self.network.labels[k] == c.name for k, c in zip(answers.tolist(), batch, strict=True)]
        return told | {bucket: self._accuracy(hits, bucket) for bucket in BUCKETS}

    def _accuracy(self, hits: list[float], bucket: str) -> dict[str, float]:
        own = [(hit, c.name) for hit, c in zip(hits, self.concepts, strict=True) if c.bucket == bucket]
        if not own:
            return {"n": 0}
        values, names = zip(*own, strict=True)
        low, high = bootstrap_interval(values, names, seed=0)
        share = sum(values) / len(values)
        return {name: round(100 * x, 1) for name, x in (("accuracy", share), ("low", low), ("high", high))} | {
            "n": len(own)
        }


def _seed(number: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))
