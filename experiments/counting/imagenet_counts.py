"""Classes of ImageNet-1k by any of their names, and their counts from files."""

from __future__ import annotations

from functools import cache

from experiments.counting.counts import CountTable
from experiments.counting.text import normalize
from experiments.imagenet_classes import ImageNetClass, imagenet_classes

__all__ = ["ImageNetClass", "imagenet_class", "imagenet_classes", "imagenet_counts"]


def imagenet_class(name: str) -> ImageNetClass:
    """The class with this index, WordNet id, name or synonym. ValueError if there is none or several."""
    keys = _imagenet_keys()
    indices = keys.get(name) or keys.get(normalize(name), set())
    if len(indices) != 1:
        reason = f"names the classes {sorted(indices)}" if indices else "is not a class of ImageNet-1k"
        raise ValueError(f"{name!r} {reason}: use class indices or WordNet ids.")
    return imagenet_classes()[next(iter(indices))]


def imagenet_counts(table: CountTable, rows_are_indices: bool = False) -> dict[int, int]:
    """Counts by class index.

    Args:
        table: its names are class indices, WordNet ids, or names or synonyms that belong to one class.
        rows_are_indices: ignore the names; the 1,000 rows are in the order of the class indices.

    Raises:
        ValueError: a name belongs to no class or to several, a class has two counts, or there are not 1,000 rows.
    """
    classes = imagenet_classes()
    if rows_are_indices:
        if len(table.counts) != len(classes):
            raise ValueError(f"{table.path} has {len(table.counts)} rows: rows_are_indices=True needs {len(classes)}.")
        return dict(enumerate(table.counts.values()))
    counts: dict[int, int] = {}
    for name, count in table.counts.items():
        try:
            matched = imagenet_class(name)
        except ValueError as error:
            raise ValueError(f"{table.path}: {str(error)[:-1]}, or rows in the order of the class indices.") from None
        if matched.index in counts:
            raise ValueError(f"{table.path} has two counts for class {matched.index} ({matched.name}): keep one.")
        counts[matched.index] = count
    return counts


@cache
def _imagenet_keys() -> dict[str, set[int]]:
    """Class indices by index, WordNet id and unique name, else by normalized first name, else by other synonyms."""
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
