"""Frequency buckets: head, medium and tail concepts by their number of captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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


def assign_buckets(
    counts: Mapping[str, int], bucket_by: str, *, head: int, tail: int, ranks: Sequence[int]
) -> dict[str, str]:
    """Bucket of each concept by ``threshold`` (``head`` and ``tail``) or by ``rank`` (``ranks``)."""
    if bucket_by == "threshold":
        return bucket_by_threshold(counts, head, tail)
    if bucket_by == "rank":
        return bucket_by_rank(counts, ranks)
    raise ValueError(f"data.source.bucket_by={bucket_by!r} is unknown: choose threshold or rank.")
