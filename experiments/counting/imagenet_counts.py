"""The classes of ImageNet-1k, and their counts from files that name them in one way or another."""

from __future__ import annotations

from functools import cache

from experiments.counting.counts import CountTable
from experiments.counting.frequency import normalize
from experiments.imagenet_classes import ImageNetClass, imagenet_classes

__all__ = ["ImageNetClass", "imagenet_class", "imagenet_classes", "imagenet_counts"]


def imagenet_class(name: str) -> ImageNetClass:
    """The class that an index, a WordNet id, a name or a synonym names. ValueError if it fits none or several."""
    keys = _imagenet_keys()
    found = keys.get(name) or keys.get(normalize(name), set())
    if len(found) != 1:
        fits = f"fits the classes {sorted(found)}" if found else "fits no class of ImageNet-1k"
        raise ValueError(f"{name!r} {fits}: use class indices or WordNet ids.")
    return imagenet_classes()[next(iter(found))]


def imagenet_counts(table: CountTable, rows_are_indices: bool = False) -> dict[int, int]:
    """Counts by class index, for files that name the classes in one of four ways.

    Args:
        table: its names are class indices, WordNet ids, or names that each fit one class or one of its synonyms.
        rows_are_indices: ignore the names; the 1,000 rows are in the order of the class indices.

    Raises:
        ValueError: a name fits no class or several, a class has two counts, or rows are not 1,000.
    """
    classes = imagenet_classes()
    if rows_are_indices:
        if len(table.counts) != len(classes):
            raise ValueError(f"{table.path} has {len(table.counts)} rows: rows_are_indices=True needs {len(classes)}.")
        return dict(enumerate(table.counts.values()))
    counts: dict[int, int] = {}
    for name, count in table.counts.items():
        try:
            found = imagenet_class(name)
        except ValueError as error:
            raise ValueError(f"{table.path}: {str(error)[:-1]}, or rows in the classes' order.") from None
        if found.index in counts:
            raise ValueError(f"{table.path} has two counts for class {found.index} ({found.name}): keep one.")
        counts[found.index] = count
    return counts


@cache
def _imagenet_keys() -> dict[str, set[int]]:
    """Classes by index, WordNet id and unique name; then, normalized, by first name; then by other synonyms."""
    classes = imagenet_classes()
    keys: dict[str, set[int]] = {}
    for c in classes:
        for key in (str(c.index), c.wnid, c.name):
            keys[key] = {c.index}
    for rank in (slice(0, 1), slice(1, None)):
        level: dict[str, set[int]] = {}
        for c in classes:
            for synonym in c.synonyms[rank]:
                level.setdefault(normalize(synonym), set()).add(c.index)
        keys = level | keys
    return keys
