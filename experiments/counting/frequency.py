"""What a mention of a concept is, and the buckets that follow from how many a corpus holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from experiments.counting.plurals import number_variants
from experiments.counting.text import normalize


def spellings(name: str) -> set[str]:
    """A name as it occurs in normalized captions: as given, in singular and plural, and joined where it is hyphenated.

    ValueError if it has neither letters nor digits.
    """
    if not normalize(name).strip():
        raise ValueError(f"The name {name!r} has no letter or digit: captions are searched for words.")
    forms = {name} | number_variants(name)
    forms |= {re.sub("[-\u2010\u2011]", "", form) for form in forms}
    return {normalize(form) for form in forms}


def mentions(names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The concepts that each spelling is a mention of.

    A mention is the name or one of its synonyms as whole words, its head noun in singular or plural whichever the name
    has, whatever the case and the hyphens. Names inside other names count for both; a caption counts once a concept.

    Args:
        names: synonyms (the name itself among them) of each concept.

    ValueError if a name has neither letters nor digits.
    """
    owners: dict[str, set[str]] = {}
    for concept, synonyms in names.items():
        for synonym in synonyms:
            for form in spellings(synonym):
                owners.setdefault(form, set()).add(concept)
    return {form: tuple(sorted(concepts)) for form, concepts in sorted(owners.items())}


def bucket_by_threshold(counts: Mapping[str, int], head: int, tail: int) -> dict[str, str]:
    """``head`` above ``head`` mentions, ``tail`` below ``tail``, ``medium`` between (the paper: 1M and 10K)."""
    if not 0 <= tail <= head:
        raise ValueError(f"head={head} and tail={tail}: a rare concept has fewer mentions than a frequent one.")

    def bucket(count: int) -> str:
        return "head" if count > head else "tail" if count < tail else "medium"

    return {name: bucket(count) for name, count in counts.items()}


def bucket_by_rank(counts: Mapping[str, int], sizes: Sequence[int]) -> dict[str, str]:
    """The most frequent ``sizes[0]`` concepts are ``head``, the next ``medium``, the last ``tail``; ties by name.

    The paper's Table 3 has 235, 509 and 256 classes of ImageNet-1k. ValueError if the sizes do not add up.
    """
    if len(sizes) != 3 or min(sizes) < 0 or sum(sizes) != len(counts):
        raise ValueError(
            f"ranks={list(sizes)} do not add up to the {len(counts):,} concepts: give the sizes of head, medium, tail."
        )
    labels = [bucket for bucket, size in zip(("head", "medium", "tail"), sizes, strict=True) for _ in range(size)]
    bucket_of = dict(zip(sorted(counts, key=lambda name: (-counts[name], name)), labels, strict=True))
    return {name: bucket_of[name] for name in counts}


def assign_buckets(counts: Mapping[str, int], by: str, *, head: int, tail: int, ranks: Sequence[int]) -> dict[str, str]:
    """Buckets ``by`` ``threshold`` (``head`` and ``tail``) or by ``rank`` (``ranks``)."""
    if by not in ("threshold", "rank"):
        raise ValueError(f"data.source.bucket_by={by!r} is unknown: choose threshold or rank.")
    return bucket_by_threshold(counts, head, tail) if by == "threshold" else bucket_by_rank(counts, ranks)
