"""Concepts: what an experiment asks the model for, with reference images and frequency in the training corpus."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property, partial
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from annotated_types import MinLen
from lightning.pytorch.utilities import rank_zero_only
from pydantic import Field, NonNegativeInt, PositiveInt

from experiments.counting.frequency import assign_buckets
from experiments.counting.matcher import count_mentions
from experiments.data.backgrounds import BACKGROUNDS, Augmentation, no_augmentation
from experiments.data.emoji import EmojiImages, read_table
from experiments.data.images import Images, check_images
from experiments.naming import normalize_name, unique_names
from rnri.validation import ConfigError, NonEmptyStr, dataclass, unique_items

Bucket = Literal["head", "medium", "tail"]
BUCKETS = get_args(Bucket)
Buckets = Annotated[
    Sequence[Bucket], MinLen(1), unique_items, Field(description=f"a list of some of {', '.join(BUCKETS)}, as [tail]")
]
ConceptSelection = Annotated[
    PositiveInt | NonEmptyStr | Annotated[Sequence[NonEmptyStr | NonNegativeInt], MinLen(1), unique_items],
    Field(description="a number of concepts a bucket, all, or a list of names, none of them twice"),
]
"""Which concepts, as :func:`choose` reads it; whole numbers in a list are names."""

MAX_EAGER_CHECKS = 10_000
"""Reference images that are decoded beforehand, in all, even if no unit uses them: so many take seconds."""


@dataclasses.dataclass(frozen=True)
class Concept:
    """One class of images.

    Attributes:
        name: the label that the classifier knows it by.
        prompt: what the model is asked for.
        frequency: captions of the training corpus that mention it.
        bucket: ``head``, ``medium`` or ``tail``.
        references: real images that the model has not seen, read when they are asked for.
    """

    name: str
    prompt: str
    frequency: int
    bucket: str
    references: Images

    @cached_property
    def key(self) -> str:
        """Name, prompt and reference images: what an experiment computes for the concept depends on all three.

        Images without an identity are read one by one, once.
        """
        content = hashlib.sha256()
        for k in range(len(self.references)):
            content.update(self.references.content_bytes(k))
        return f"{self.name}\n{self.prompt}\n{content.hexdigest()}"

    def resized(self, size: tuple[int, int]) -> Concept:
        """The concept with its references at ``(H, W)`` pixels. ValueError if they have another size of their own."""
        return replace(self, references=self.references.resized(size))


@runtime_checkable
class ConceptSource(Protocol):
    """Where concepts and the real images for FID come from.

    All images are read when they are asked for. Those without a size of their own are given one by
    :meth:`~experiments.data.images.Images.resized`.
    """

    def concepts(self) -> list[Concept]:
        """Every concept, with all its reference images. ValueError says what is wrong with the data."""
        ...

    def real_images(self) -> Images:
        """For FID and KID, disjoint from all references. ValueError where there are none or one cannot be read."""
        ...

    def held_out(self) -> dict[str, Images]:
        """The real images that show a known concept, by its name; checked as :meth:`real_images` are."""
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
        bucket_by: ``threshold`` for that, or ``rank`` for buckets of the sizes in ``ranks``.
        ranks: sizes of head, medium and tail, which add up to all concepts.
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
        captions = read_table(Path(self.folder) / "captions.parquet").data.column("caption").combine_chunks()
        frequencies = count_mentions({name: [name] for name in phrases}, captions)
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

    def held_out(self) -> dict[str, Images]:
        return self._by_concept(EmojiImages(self.folder, ["fid"]))

    def _by_concept(self, drawings: EmojiImages) -> dict[str, Images]:
        found: dict[str, list[int]] = {}
        for row in drawings.rows:
            found.setdefault(row["concept"], []).append(row["image_id"])
        return {name: self._images(drawings, own) for name, own in found.items()}

    def _images(self, drawings: EmojiImages, image_ids: Sequence[int]) -> Images:
        return Images(
            items=image_ids,
            read=partial(_picture, drawings, no_augmentation(self.background)),
            size=drawings.size,
            advice="choose another model, data=folder, or a corpus built with that --size (see assets/emoji/README.md)",
        )


def _picture(drawings: EmojiImages, augmentation: Augmentation, image_id: int, _: tuple[int, int]) -> np.ndarray:
    return drawings.render(image_id, augmentation)


def check_template(key: str, template: str, required: str, *optional: str) -> None:
    """ValueError unless the prompts' template ``key`` has the field ``required`` and no other but ``optional``."""
    try:
        parsed = [parts for _, *parts in Formatter().parse(template) if parts[0] is not None]
    except ValueError:  # a brace alone
        parsed = []
    names = [name for name, *_ in parsed]
    if required not in names or {*names} - {required, *optional} or any(spec or how for _, spec, how in parsed):
        more = f", may hold {', '.join(f'{{{name}}}' for name in optional)}" if optional else ""
        raise ValueError(
            f"{key}={template!r} is no template of prompts: it must hold {{{required}}}{more}, and no other braces."
        )


def limit_references(concepts: Sequence[Concept], count: int | None) -> list[Concept]:
    """The concepts with their first ``count`` references alone; None leaves them all.

    Files are decoded once, so that bad ones are found before any work: those references, and of others so many that
    ``MAX_EAGER_CHECKS`` is not passed.

    Raises:
        ValueError: a concept has fewer references, or a file cannot be read.
    """
    for concept in concepts:
        if count is not None and len(concept.references) < count:
            raise ValueError(
                f"task.references={count}, but {concept.name!r} has {len(concept.references)} reference images: "
                "add some or ask for fewer."
            )
    checked = max(count or 0, MAX_EAGER_CHECKS // max(len(concepts), 1))
    check_images([file for c in concepts for file in c.references.head(checked).files], "checking reference images")
    return [replace(concept, references=concept.references.head(count)) for concept in concepts]


def select_concepts(
    concepts: Sequence[Concept], wanted: int | str | Sequence[str | int], buckets: Sequence[str], seed: int
) -> list[Concept]:
    """The concepts of an experiment: ``wanted`` is a number a bucket, ``"all"``, or names. Prints how many of how many.

    A number draws without regard to frequency inside a bucket; the draw depends on ``seed`` alone, and a larger
    number contains a smaller one's concepts. Names are taken whatever their bucket; whole numbers in a list are names.

    Raises:
        ValueError: an unknown name or bucket, one twice, a number below 1, anything else, or nothing left.
    """
    _check_buckets(buckets)
    chosen = _choose(concepts, wanted, buckets, seed)
    if not chosen:
        held = ", ".join(f"{b} {sum(c.bucket == b for c in concepts)}" for b in BUCKETS)
        raise ValueError(f"no concept is in data.buckets=[{', '.join(buckets)}], the data has {held}: choose others.")
    counts = (f"{b} {sum(c.bucket == b for c in chosen)} of {sum(c.bucket == b for c in concepts)}" for b in BUCKETS)
    rank_zero_only(print)(f"Concepts: {', '.join(counts)}")
    return chosen


def _check_buckets(buckets: Sequence[str]) -> None:
    choices = ", ".join(BUCKETS)
    if isinstance(buckets, str) or not isinstance(buckets, Sequence) or not buckets:
        hint = f"data.buckets=[{buckets}]" if buckets in BUCKETS else f"data.buckets=[{choices}], or some of them"
        raise ValueError(f"data.buckets={buckets!r} is no list of buckets: write {hint}.")
    for k, bucket in enumerate(buckets):
        if bucket not in BUCKETS:
            raise ValueError(f"data.buckets names {bucket!r}: choose from {choices}.")
        if bucket in buckets[:k]:
            raise ValueError(f"data.buckets names {bucket!r} twice: name each bucket once.")


def _choose(
    concepts: Sequence[Concept], wanted: int | str | Sequence[str | int], buckets: Sequence[str], seed: int
) -> list[Concept]:
    candidates = [concept for concept in concepts if concept.bucket in buckets]
    if wanted == "all":
        return candidates
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if wanted < 1:
            raise ValueError(f"data.concepts={wanted}: ask for at least 1 concept a bucket, for names, or for 'all'.")
        order = np.random.default_rng(seed).permutation(len(concepts))
        rank = {concepts[k].name: composite for composite, k in enumerate(order)}
        drawn = [sorted((c for c in candidates if c.bucket == b), key=lambda c: rank[c.name])[:wanted] for b in buckets]
        return [concept for bucket in drawn for concept in bucket]
    return _by_name(concepts, _names(wanted))


def _names(wanted: Any) -> list[str]:
    """Names in canonical form: those of a list, in which YAML reads ``[0, 1]`` as numbers, or a single one."""
    listed = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(listed, Sequence) or not listed:
        raise ValueError(f"data.concepts={wanted!r}: give a number a bucket, 'all', or a list of names.")
    for name in listed:
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError(
                f"data.concepts holds {name!r}, which is no name: put it in quotes if a concept is called so."
            )
    return list(unique_names(map(str, listed), "data.concepts", "name each concept once"))


def _by_name(concepts: Sequence[Concept], names: Sequence[str]) -> list[Concept]:
    known = {normalize_name(concept.name): concept for concept in concepts}
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, cutoff=0.0)
            raise ValueError(
                f"data.concepts names {name!r}, which the data does not hold; nearest: {', '.join(close)}."
            )
    return [known[name] for name in names]
