"""Concepts: classes of images, each with a prompt, reference images and its frequency in the training captions."""

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
"""Type of the setting ``data.concepts``, see :func:`select_concepts`.

An integer in a list of concepts is the name of a concept.
"""

MAX_EAGER_CHECKS = 10_000
"""Maximum number of reference images that are decoded before a run to find damaged files.

The decoded images include reference images that the run does not use."""


@dataclasses.dataclass(frozen=True)
class Concept:
    """A concept, which is a class of images that a prompt asks for.

    Attributes:
        name: name of the concept, equal to the label of the concept in the evaluation classifier.
        prompt: prompt that asks the diffusion model for the concept.
        frequency: number of captions of the training corpus that mention the concept.
        bucket: frequency group of the concept: ``head`` (frequent), ``medium`` or ``tail`` (rare).
        references: real images of the concept that the diffusion model was not trained on; an image file is read each
            time the image is indexed.
    """

    name: str
    prompt: str
    frequency: int
    bucket: str
    references: Images

    @cached_property
    def key(self) -> str:
        """Return the cache key of the concept: its name, its prompt and a hash of its reference images.

        The hash is computed from the pixels of the reference images. If the attribute ``identity`` of the reference
        images (:class:`~experiments.data.images.Images`) is a function, the hash is computed from the strings that the
        function returns instead. The cache key is computed only once per concept.
        """
        content = hashlib.sha256()
        for k in range(len(self.references)):
            content.update(self.references.content_bytes(k))
        return f"{self.name}\n{self.prompt}\n{content.hexdigest()}"

    def resized(self, size: tuple[int, int]) -> Concept:
        """Return the concept with its reference images resized to ``size = (H, W)`` pixels.

        Raises:
            ValueError: the reference images have a fixed size that differs from ``size``.
        """
        return replace(self, references=self.references.resized(size))


@runtime_checkable
class ConceptSource(Protocol):
    """A data source of concepts and of real images for FID and KID.

    An image file is read each time the image is indexed. If images have no fixed size,
    :meth:`~experiments.data.images.Images.resized` must be called before an image is indexed.
    """

    def concepts(self) -> list[Concept]:
        """Return every concept with all its reference images.

        Raises:
            ValueError: the data on disk or a setting of the source is invalid.
        """
        ...

    def real_images(self) -> Images:
        """Return the real images for FID and KID. No reference image is among the real images.

        Raises:
            ValueError: there are no real images, or an image cannot be read.
        """
        ...

    def labeled_real_images(self) -> dict[str, Images]:
        """Return a dict from the name of each concept to its real images.

        Real images without a label are omitted.
        """
        ...


@dataclass(frozen=True)
class EmojiConcepts:
    """The emoji corpus as a data source of concepts.

    The frequencies of the concepts are the caption counts in ``concepts.csv``. Reference images are the drawings of the
    split ``reference``, and real images for FID are the drawings of the split ``fid``. All images have the same
    background color.

    Args:
        folder: folder of the corpus.
        prompt: prompt template with the fields ``{phrase}`` (name of the concept with its article) and, optionally,
            ``{background}``.
        background: name of the background color of all images, a key of ``experiments.data.backgrounds.BACKGROUNDS``.
        head, tail: a concept that more than ``head`` captions mention is in the frequency bucket ``head``. A concept
            that fewer than ``tail`` captions mention is in the bucket ``tail``.
        bucket_by: ``threshold`` assigns concepts to buckets by the thresholds ``head`` and ``tail``. ``rank`` sorts the
            concepts by frequency and assigns them to buckets by the numbers ``ranks``.
        ranks: numbers of head, medium and tail concepts. The sum of ``ranks`` must be the number of concepts.
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
            group=drawings.designers.__getitem__,
        )


def _render(drawings: EmojiImages, augmentation: Augmentation, image_id: int, _: tuple[int, int]) -> np.ndarray:
    return drawings.render(image_id, augmentation)


def check_template(key: str, template: str, required: str, *optional: str) -> None:
    """Raise a ValueError if a prompt template lacks the field ``required`` or has a field that is not allowed.

    Args:
        key: config key of the template, for the error message.
        template: prompt template in the syntax of ``str.format``.
        required: field that the template must contain.
        optional: fields that the template may contain.
    """
    try:
        parsed = [parts for _, *parts in Formatter().parse(template) if parts[0] is not None]
    except ValueError:  # the template contains an unmatched brace
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
    """Return the concepts with only their first ``count`` reference images, or with all images if ``count`` is None.

    The first ``count`` reference images of each concept are decoded once, so that damaged files are found before the
    run starts. If ``MAX_EAGER_CHECKS`` divided by the number of concepts is larger than ``count``, as many reference
    images of each concept are decoded as this quotient.

    Raises:
        ValueError: a concept has fewer than ``count`` reference images, or an image file cannot be read.
    """
    for concept in concepts:
        if count is not None and len(concept.references) < count:
            raise ValueError(
                f"task.references={count}, but {concept.name!r} has {len(concept.references)} reference images: "
                "add images or reduce task.references."
            )
    checks = max(count or 0, MAX_EAGER_CHECKS // max(len(concepts), 1))
    check_images([file for c in concepts for file in c.references.head(checks).files], "checking reference images")
    return [replace(concept, references=concept.references.head(count)) for concept in concepts]


def select_concepts(
    concepts: Sequence[Concept], selection: int | str | Sequence[str | int], buckets: Sequence[str], seed: int
) -> list[Concept]:
    """Select the concepts of an experiment, and print the number of selected concepts per frequency bucket.

    Args:
        concepts: all concepts of the data source.
        selection: a number of concepts per bucket, ``"all"``, or a list of names. If ``selection`` is a number,
            concepts are drawn uniformly from each bucket. With the same ``seed``, the concepts that are drawn for a
            larger number include all concepts that are drawn for a smaller number. The concepts in a list of names may
            be in any frequency bucket (head, medium or tail). An integer in a list is a name.
        buckets: frequency buckets (head, medium, tail) to select from. Ignored if ``selection`` is a list of names.
        seed: random seed of the draw of concepts.

    Raises:
        ValueError: a name or a bucket is unknown or repeated, ``selection`` is less than 1 or has an invalid type, or
            no concept is selected.
    """
    _check_buckets(buckets)
    selected = _select(concepts, selection, buckets, seed)
    if not selected:
        sizes = ", ".join(f"{b} {sum(c.bucket == b for c in concepts)}" for b in BUCKETS)
        raise ValueError(f"data.buckets=[{', '.join(buckets)}] select no concept, the data has {sizes}: add buckets.")
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
            raise ValueError(f"data.buckets contains {bucket!r}: choose from {choices}.")
        if bucket in buckets[:k]:
            raise ValueError(f"data.buckets contains {bucket!r} twice: list each bucket once.")


def _select(
    concepts: Sequence[Concept], selection: int | str | Sequence[str | int], buckets: Sequence[str], seed: int
) -> list[Concept]:
    candidates = [concept for concept in concepts if concept.bucket in buckets]
    if selection == "all":
        return candidates
    if isinstance(selection, int) and not isinstance(selection, bool):
        if selection < 1:
            raise ValueError(
                f"data.concepts={selection}: choose a number >= 1 (concepts per bucket), a list of names, or all."
            )
        order = np.random.default_rng(seed).permutation(len(concepts))
        shuffled = [concepts[k] for k in order]
        return [concept for b in buckets for concept in [c for c in shuffled if c.bucket == b][:selection]]
    return _by_name(concepts, _parse_selection(selection))


def _parse_selection(selection: Any) -> list[str]:
    """Return ``selection``, which is a name or a list of names, as a list of normalized names.

    Integers in a list, such as ``[0, 1]`` in YAML, are converted to names.
    """
    names = [selection] if isinstance(selection, str) else selection
    if not isinstance(names, Sequence) or not names:
        raise ValueError(
            f"data.concepts={selection!r}: choose a number of concepts per bucket, a list of names, or all."
        )
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError(
                f"data.concepts contains {name!r}, which is not a name: quote the value if it is the name of a concept."
            )
    return list(unique_names(map(str, names), "data.concepts", "name each concept once"))


def _by_name(concepts: Sequence[Concept], names: Sequence[str]) -> list[Concept]:
    by_name = {normalize_name(concept.name): concept for concept in concepts}
    for name in names:
        if name not in by_name:
            close = get_close_matches(name, by_name, cutoff=0.0)
            raise ValueError(f"data.concepts contains {name!r}, which is not in the data; similar: {', '.join(close)}.")
    return [by_name[name] for name in names]
