"""Concepts: classes of images with a prompt, reference images and their frequency in the training corpus."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property, partial
from string import Formatter
from typing import Annotated, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from annotated_types import MinLen
from lightning.pytorch.utilities import rank_zero_only
from pydantic import Field, NonNegativeInt, PositiveInt

from experiments.counting.buckets import assign_buckets
from experiments.data.backgrounds import BACKGROUNDS, Augmentation, no_augmentation
from experiments.data.emoji import EmojiImages, read_caption_counts
from experiments.data.images import Images, check_images
from experiments.naming import normalize_name, unique_names
from rnri.validation import ConfigError, NonEmptyStr, dataclass, unique_items

Bucket = Literal["head", "medium", "tail"]
BUCKETS = get_args(Bucket)
Buckets = Annotated[
    Sequence[Bucket],
    MinLen(1),
    unique_items,
    Field(description=f"a list of {', '.join(BUCKETS)}, such as [tail]"),
]
ConceptSelection = Annotated[
    PositiveInt | NonEmptyStr | Annotated[Sequence[NonEmptyStr | NonNegativeInt], MinLen(1), unique_items],
    Field(description="a number of concepts per bucket, all, or a list of unique names"),
]
"""Which concepts, as :func:`choose` reads it; whole numbers in a list are names."""

MAX_EAGER_CHECKS = 10_000
"""Number of reference images that are decoded in advance even if no unit uses them; it takes seconds."""


@dataclasses.dataclass(frozen=True)
class Concept:
    """One class of images.

    Attributes:
        name: its label in the classifier.
        prompt: of the model.
        frequency: number of captions of the training corpus that mention it.
        bucket: ``head``, ``medium`` or ``tail``.
        references: real images that the model has not seen, read when they are indexed.
    """

    name: str
    prompt: str
    frequency: int
    bucket: str
    references: Images

    @cached_property
    def key(self) -> str:
        """Cache key: name, prompt and a hash of the reference images.

        Images without an identity are read one at a time, once.
        """
        content = hashlib.sha256()
        for k in range(len(self.references)):
            content.update(self.references.content_bytes(k))
        return f"{self.name}\n{self.prompt}\n{content.hexdigest()}"

    def resized(self, size: tuple[int, int]) -> Concept:
        """The concept with references of ``(H, W)`` pixels; ValueError if they have another fixed size."""
        return replace(self, references=self.references.resized(size))


@runtime_checkable
class ConceptSource(Protocol):
    """Source of concepts and of the real images for FID.

    All images are read when they are indexed. Images without a fixed size get one from
    :meth:`~experiments.data.images.Images.resized`.
    """

    def concepts(self) -> list[Concept]:
        """Every concept with all its reference images; ValueError if the data is invalid."""
        ...

    def real_images(self) -> Images:
        """Images for FID and KID, disjoint from all references; ValueError if there are none or one is unreadable."""
        ...

    def labeled_real_images(self) -> dict[str, Images]:
        """The real images by the name of their concept, if it is labeled; checked as in :meth:`real_images`."""
        ...


@dataclass(frozen=True)
class EmojiConcepts:
    """The embedded corpus as a source of concepts.

    Frequencies are the caption counts of ``concepts.csv``. References are drawings of the ``reference`` split, real
    images for FID those of the ``fid`` split; both are on ``background``, which the prompt names.

    Args:
        folder: of the corpus.
        prompt: with ``{phrase}`` for the concept with its article and ``{background}``.
        head, tail: a concept with more captions than ``head`` is frequent, with fewer than ``tail`` rare.
        bucket_by: ``threshold`` (``head`` and ``tail``) or ``rank`` (bucket sizes in ``ranks``).
        ranks: sizes of head, medium and tail; they add up to the number of concepts.
    """

    folder: NonEmptyStr
    prompt: str
    background: NonEmptyStr
    head: NonNegativeInt
    tail: NonNegativeInt
    bucket_by: Literal["threshold", "rank"] = "threshold"
    ranks: Sequence[NonNegativeInt] = ()

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ConfigError("background", f"{self.background!r} is unknown: choose one of {', '.join(BACKGROUNDS)}.")
        check_template("data.source.prompt", self.prompt, "phrase", "background")

    def concepts(self) -> list[Concept]:
        drawings = EmojiImages(self.folder, ["reference"])
        phrases = {row["concept"]: row["phrase"] for row in drawings.rows}
        counts = read_caption_counts(self.folder)
        if missing := sorted(phrases.keys() - counts):
            raise ValueError(
                f"{self.folder}/concepts.csv has no count for {missing[0]!r}: run "
                f"python -m experiments.data.count_emoji {self.folder}."
            )
        frequencies = {name: counts[name] for name in phrases}
        buckets = assign_buckets(frequencies, self.bucket_by, head=self.head, tail=self.tail, ranks=self.ranks)
        references = self._by_concept(drawings)
        return [
            Concept(
                name=name,
                prompt=self.prompt.format(phrase=phrase, background=self.background),
                frequency=frequencies[name],
                bucket=buckets[name],
                references=references[name],
            )
            for name, phrase in phrases.items()
        ]

    def real_images(self) -> Images:
        drawings = EmojiImages(self.folder, ["fid"])
        return self._images(drawings, drawings.image_ids)

    def labeled_real_images(self) -> dict[str, Images]:
        return self._by_concept(EmojiImages(self.folder, ["fid"]))

    def _by_concept(self, drawings: EmojiImages) -> dict[str, Images]:
        image_ids: dict[str, list[int]] = {}
        for row in drawings.rows:
            image_ids.setdefault(row["concept"], []).append(row["image_id"])
        return {name: self._images(drawings, ids) for name, ids in image_ids.items()}

    def _images(self, drawings: EmojiImages, image_ids: Sequence[int]) -> Images:
        return Images(
            items=image_ids,
            read=partial(_render, drawings, no_augmentation(self.background)),
            size=drawings.size,
            advice="choose another model, data=folder, or a corpus built with that --size (see assets/emoji/README.md)",
        )


def _render(drawings: EmojiImages, augmentation: Augmentation, image_id: int, _: tuple[int, int]) -> np.ndarray:
    return drawings.render(image_id, augmentation)


def check_template(key: str, template: str, required: str, *optional: str) -> None:
    """ValueError unless the prompt template has the field ``required`` and no others except ``optional``.

    ``key`` is the name of the template in the message.
    """
    try:
        parsed = [parts for _, *parts in Formatter().parse(template) if parts[0] is not None]
    except ValueError:  # an unmatched brace
        parsed = []
    names = [name for name, *_ in parsed]
    if (
        required not in names
        or {*names} - {required, *optional}
        or any(spec or conversion for _, spec, conversion in parsed)
    ):
        more = f", may contain {', '.join(f'{{{name}}}' for name in optional)}" if optional else ""
        raise ValueError(
            f"{key}={template!r} is not a prompt template: it must contain {{{required}}}{more}, and no other braces."
        )


def limit_references(concepts: Sequence[Concept], count: int | None) -> list[Concept]:
    """The concepts with only their first ``count`` references; None keeps all.

    Image files are decoded once, so that damaged ones are found before any work: these references, and others up to
    ``MAX_EAGER_CHECKS`` in total.

    Raises:
        ValueError: a concept has fewer references, or a file cannot be read.
    """
    for concept in concepts:
        if count is not None and len(concept.references) < count:
            raise ValueError(
                f"task.references={count}, but {concept.name!r} has {len(concept.references)} reference images: "
                "add some or reduce task.references."
            )
    checks = max(count or 0, MAX_EAGER_CHECKS // max(len(concepts), 1))
    check_images([file for c in concepts for file in c.references.head(checks).files], "checking reference images")
    return [replace(concept, references=concept.references.head(count)) for concept in concepts]


def select_concepts(
    concepts: Sequence[Concept], selection: int | str | Sequence[str | int], buckets: Sequence[str], seed: int
) -> list[Concept]:
    """Selects the concepts of an experiment and prints their number per bucket.

    Args:
        selection: a number of concepts per bucket, ``"all"``, or names. A number samples uniformly within each bucket;
            a larger number extends the sample of a smaller one. Names are selected from all buckets; integers in a
            list are names.
        buckets: to select from.
        seed: of the sample.

    Raises:
        ValueError: an unknown or repeated name or bucket, a number below 1, an invalid selection, or an empty one.
    """
    _check_buckets(buckets)
    selected = _select(concepts, selection, buckets, seed)
    if not selected:
        sizes = ", ".join(f"{b} {sum(c.bucket == b for c in concepts)}" for b in BUCKETS)
        raise ValueError(f"no concept is in data.buckets=[{', '.join(buckets)}], the data has {sizes}: choose others.")
    counts = (f"{b} {sum(c.bucket == b for c in selected)} of {sum(c.bucket == b for c in concepts)}" for b in BUCKETS)
    rank_zero_only(print)(f"Concepts: {', '.join(counts)}")
    return selected


def _check_buckets(buckets: Sequence[str]) -> None:
    choices = ", ".join(BUCKETS)
    if isinstance(buckets, str) or not isinstance(buckets, Sequence) or not buckets:
        example = f"data.buckets=[{buckets}]" if buckets in BUCKETS else f"data.buckets=[{choices}], or some of them"
        raise ValueError(f"data.buckets={buckets!r} is not a list of buckets: write {example}.")
    for k, bucket in enumerate(buckets):
        if bucket not in BUCKETS:
            raise ValueError(f"data.buckets names {bucket!r}: choose from {choices}.")
        if bucket in buckets[:k]:
            raise ValueError(f"data.buckets names {bucket!r} twice: name each bucket once.")


def _select(
    concepts: Sequence[Concept], selection: int | str | Sequence[str | int], buckets: Sequence[str], seed: int
) -> list[Concept]:
    candidates = [concept for concept in concepts if concept.bucket in buckets]
    if selection == "all":
        return candidates
    if isinstance(selection, int) and not isinstance(selection, bool):
        if selection < 1:
            raise ValueError(f"data.concepts={selection}: give a number >= 1 of concepts per bucket, names, or 'all'.")
        order = np.random.default_rng(seed).permutation(len(concepts))
        shuffled = [concepts[k] for k in order]
        return [concept for b in buckets for concept in [c for c in shuffled if c.bucket == b][:selection]]
    return _by_name(concepts, _parse_selection(selection))


def _parse_selection(selection: Any) -> list[str]:
    """Normalized names of a list (in which YAML parses ``[0, 1]`` as integers) or of a single name."""
    names = [selection] if isinstance(selection, str) else selection
    if not isinstance(names, Sequence) or not names:
        raise ValueError(f"data.concepts={selection!r}: give a number per bucket, 'all', or a list of names.")
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError(
                f"data.concepts contains {name!r}, which is not a name: quote it if a concept has this name."
            )
    return list(unique_names(map(str, names), "data.concepts", "name each concept once"))


def _by_name(concepts: Sequence[Concept], names: Sequence[str]) -> list[Concept]:
    by_name = {normalize_name(concept.name): concept for concept in concepts}
    for name in names:
        if name not in by_name:
            close = get_close_matches(name, by_name, cutoff=0.0)
            raise ValueError(f"data.concepts names {name!r}, which is not in the data; closest: {', '.join(close)}.")
    return [by_name[name] for name in names]
