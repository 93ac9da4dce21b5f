"""Divides concepts into the frequency buckets head, medium and tail, by the number of captions that mention them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def bucket_by_threshold(counts: Mapping[str, int], head: int, tail: int) -> dict[str, str]:
    """Return the frequency bucket (``head``, ``medium`` or ``tail``) of each concept in ``counts``, by two thresholds.

    Args:
        counts: number of captions that mention each concept.
        head: a concept with more than ``head`` mentions is in the bucket ``head`` (1,000,000 in the RNRI paper).
        tail: a concept with fewer than ``tail`` mentions is in the bucket ``tail`` (10,000 in the RNRI paper).

    Raises:
        ValueError: ``0 <= tail <= head`` does not hold.
    """
    if not 0 <= tail <= head:
        raise ValueError(f"head={head} and tail={tail}: the two thresholds must satisfy 0 <= tail <= head.")

    def bucket(count: int) -> str:
        return "head" if count > head else "tail" if count < tail else "medium"

    return {name: bucket(count) for name, count in counts.items()}


def bucket_by_rank(counts: Mapping[str, int], sizes: Sequence[int]) -> dict[str, str]:
    """Return the frequency bucket of each concept by its rank in the order of decreasing counts.

    Concepts with the same count are sorted by name. The first ``sizes[0]`` concepts are in bucket ``head``, the next
    ``sizes[1]`` in ``medium``, and the last ``sizes[2]`` in ``tail``. For ImageNet-1k, ``sizes`` is (235, 509, 256) in
    Table 3 of the RNRI paper.

    Raises:
        ValueError: ``sizes`` does not consist of three numbers >= 0 whose sum is the number of concepts.
    """
    if len(sizes) != 3 or min(sizes) < 0 or sum(sizes) != len(counts):
        raise ValueError(
            f"ranks={list(sizes)} do not add up to the {len(counts):,} concepts: set ranks to the numbers of head, "
            "medium and tail concepts."
        )
    labels = [bucket for bucket, size in zip(("head", "medium", "tail"), sizes, strict=True) for _ in range(size)]
    bucket_of = dict(zip(sorted(counts, key=lambda name: (-counts[name], name)), labels, strict=True))
    return {name: bucket_of[name] for name in counts}


def assign_buckets(
    counts: Mapping[str, int], bucket_by: str, *, head: int, tail: int, ranks: Sequence[int]
) -> dict[str, str]:
    """Return the frequency bucket (``head``, ``medium`` or ``tail``) of each concept in ``counts``.

    Args:
        counts: number of captions that mention each concept.
        bucket_by: ``threshold`` calls :func:`bucket_by_threshold`, ``rank`` calls :func:`bucket_by_rank`.
        head, tail: thresholds for the number of captions, used if ``bucket_by`` is ``threshold``.
        ranks: number of head, medium and tail concepts, used if ``bucket_by`` is ``rank``.
    """
    if bucket_by == "threshold":
        return bucket_by_threshold(counts, head, tail)
    if bucket_by == "rank":
        return bucket_by_rank(counts, ranks)
    raise ValueError(f"data.source.bucket_by={bucket_by!r} is unknown: choose threshold or rank.")
