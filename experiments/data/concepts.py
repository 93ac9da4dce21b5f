"""Concepts: what an experiment asks the model for, with reference images and frequency in the training corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from experiments.counting.frequency import assign_buckets
from experiments.counting.matcher import count_mentions
from experiments.data.augment import BACKGROUNDS, plain
from experiments.data.emoji import Drawings, read_table

BUCKETS = ("head", "medium", "tail")


@dataclass(frozen=True)
class Concept:
    """One class of images.

    Attributes:
        name: the label that the classifier knows it by.
        prompt: what the model is asked for.
        frequency: captions of the training corpus that mention it.
        bucket: ``head``, ``medium`` or ``tail``.
        references: ``uint8 [R, 3, H, W]``, real images that the model has not seen.
    """

    name: str
    prompt: str
    frequency: int
    bucket: str
    references: np.ndarray

    @property
    def key(self) -> str:
        """Name, prompt and reference images: what an experiment computes for the concept depends on all three."""
        content = hashlib.sha256(self.references.tobytes()).hexdigest()
        return f"{self.name}\n{self.prompt}\n{content}"


class ConceptSource(Protocol):
    """Where concepts and the real images for FID come from."""

    def concepts(self) -> list[Concept]: ...

    def real_images(self) -> Iterator[np.ndarray]:
        """``uint8 [3, H, W]`` for FID and KID, one after the other, disjoint from all references.

        ValueError at the call, not at the first image, where there are none.
        """
        ...

    def held_out(self) -> dict[str, np.ndarray]:
        """The real images that show a known concept, ``uint8 [N, 3, H, W]``, by its name."""
        ...


@dataclass(frozen=True)
class EmojiConcepts:
    """The embedded corpus as a source of concepts.

    Frequencies are counted in the captions. References are drawings of the ``reference`` split, real images for FID
    those of the ``fid`` split; both stand on ``background``, which ``prompt`` asks for too.

    Args:
        folder: the built corpus.
        prompt: with ``{phrase}`` for the concept with its article and ``{background}``.
        head, tail: a concept with more captions than ``head`` is frequent, one with fewer than ``tail`` rare.
        by: ``threshold`` for that, or ``rank`` for buckets of the sizes in ``ranks``.
        ranks: sizes of head, medium and tail, which add up to all concepts.
    """

    folder: str
    prompt: str
    background: str
    head: int
    tail: int
    by: str = "threshold"
    ranks: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"data.background={self.background!r} is unknown: choose one of {', '.join(BACKGROUNDS)}.")

    def concepts(self) -> list[Concept]:
        drawings = Drawings(self.folder, ["reference"])
        phrases = {row["concept"]: row["phrase"] for row in drawings.rows}
        captions = read_table(Path(self.folder) / "captions.parquet").data.column("caption").combine_chunks()
        frequencies = count_mentions({name: [name] for name in phrases}, captions)
        buckets = assign_buckets(frequencies, self.by, head=self.head, tail=self.tail, ranks=self.ranks)
        pictures = self._pictures(drawings)
        return [
            Concept(
                name=name,
                prompt=self.prompt.format(phrase=phrase, background=self.background),
                frequency=frequencies[name],
                bucket=buckets[name],
                references=pictures[name],
            )
            for name, phrase in phrases.items()
        ]

    def real_images(self) -> Iterator[np.ndarray]:
        drawings = Drawings(self.folder, ["fid"])
        return (drawings.picture(image_id, plain(self.background)) for image_id in drawings.image_ids)

    def held_out(self) -> dict[str, np.ndarray]:
        return self._pictures(Drawings(self.folder, ["fid"]))

    def _pictures(self, drawings: Drawings) -> dict[str, np.ndarray]:
        """All drawings on the background, ``uint8 [N, 3, H, W]`` by concept."""
        pictures: dict[str, list[np.ndarray]] = {}
        for row in drawings.rows:
            picture = drawings.picture(row["image_id"], plain(self.background))
            pictures.setdefault(row["concept"], []).append(picture)
        return {name: np.stack(own) for name, own in pictures.items()}


def choose(
    concepts: Sequence[Concept], wanted: int | str | Sequence[str], buckets: Sequence[str], seed: int
) -> list[Concept]:
    """The concepts of an experiment: ``wanted`` is a number a bucket, ``"all"``, or names. Prints how many of how many.

    A number draws without regard to frequency inside a bucket; the draw depends on ``seed`` alone, and a larger
    number contains a smaller one's concepts.

    Raises:
        ValueError: an unknown name or bucket, or a number below 1.
    """
    unknown = set(buckets) - set(BUCKETS)
    if unknown:
        raise ValueError(f"data.buckets names {', '.join(sorted(unknown))}: choose from {', '.join(BUCKETS)}.")
    chosen = _choose(concepts, wanted, buckets, seed)
    counts = (f"{b} {sum(c.bucket == b for c in chosen)} of {sum(c.bucket == b for c in concepts)}" for b in BUCKETS)
    rank_zero_only(print)(f"Concepts: {', '.join(counts)}")
    return chosen


def _choose(
    concepts: Sequence[Concept], wanted: int | str | Sequence[str], buckets: Sequence[str], seed: int
) -> list[Concept]:
    candidates = [concept for concept in concepts if concept.bucket in buckets]
    if wanted == "all":
        return candidates
    if isinstance(wanted, int):
        if wanted < 1:
            raise ValueError(f"data.concepts={wanted}: ask for at least 1 concept a bucket, for names, or for 'all'.")
        order = np.random.default_rng(seed).permutation(len(concepts))
        rank = {concepts[k].name: place for place, k in enumerate(order)}
        drawn = [sorted((c for c in candidates if c.bucket == b), key=lambda c: rank[c.name])[:wanted] for b in buckets]
        return [concept for bucket in drawn for concept in bucket]
    return _by_name(concepts, [wanted] if isinstance(wanted, str) else wanted)


def _by_name(concepts: Sequence[Concept], names: Sequence[str]) -> list[Concept]:
    known = {concept.name: concept for concept in concepts}
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, cutoff=0.0)
            raise ValueError(
                f"data.concepts names {name!r}, which the data does not hold; nearest: {', '.join(close)}."
            )
    return [known[name] for name in names]
