"""Finds classes of ImageNet-1k by index, WordNet id or name, and reads the caption counts of the classes."""

from __future__ import annotations

from functools import cache

from experiments.counting.counts import CountTable
from experiments.counting.text import normalize
from experiments.imagenet_classes import ImageNetClass, imagenet_classes

__all__ = ["ImageNetClass", "imagenet_class", "imagenet_classes", "imagenet_counts"]


def imagenet_class(name: str) -> ImageNetClass:
    """Return the class of ImageNet-1k that has the index, WordNet id, name or synonym ``name``.

    Raises:
        ValueError: no class or several classes match ``name``.
    """
    keys = _imagenet_keys()
    indices = keys.get(name) or keys.get(normalize(name), set())
    if len(indices) != 1:
        reason = f"names the classes {sorted(indices)}" if indices else "is not a class of ImageNet-1k"
        raise ValueError(f"{name!r} {reason}: write class indices or WordNet ids.")
    return imagenet_classes()[next(iter(indices))]


def imagenet_counts(table: CountTable, rows_are_indices: bool = False) -> dict[int, int]:
    """Return a dict that maps the index of each class to the number of captions that mention the class.

    Args:
        table: table of caption counts; each name in the table is a class index, a WordNet id, or a name or synonym of
            exactly one class.
        rows_are_indices: if true, row k of the 1,000 rows of the table is the count of class k, and the names are
            ignored.

    Raises:
        ValueError: a name matches no class or several classes, a class has two counts, or ``rows_are_indices`` is true
            and the table does not have 1,000 rows.
    """
    classes = imagenet_classes()
    if rows_are_indices:
        if len(table.counts) != len(classes):
            raise ValueError(
                f"{table.path} has {len(table.counts)} rows, but rows_are_indices=True needs {len(classes)}; add the "
                "counts of all classes."
            )
        return dict(enumerate(table.counts.values()))
    counts: dict[int, int] = {}
    for name, count in table.counts.items():
        try:
            matched = imagenet_class(name)
        except ValueError as error:
            raise ValueError(
                f"{table.path}: {str(error)[:-1]}; if row k is the count of class k, set data.rows_are_indices=true "
                "(data=imagenet) or data.classes=imagenet1k_rows (data=folder)."
            ) from None
        if matched.index in counts:
            raise ValueError(f"{table.path} has two counts for class {matched.index} ({matched.name}): remove one.")
        counts[matched.index] = count
    return counts


@cache
def _imagenet_keys() -> dict[str, set[int]]:
    """Return a dict that maps each key (index, WordNet id or name) to the indices of the classes with this key.

    There are six types of keys: class indices, WordNet ids, unique names, normalized first names, normalized synonyms,
    and all names of a class in one string ("tench, Tinca tinca"). If a string is a key of several types, only the
    classes for the type that is listed first are in the returned dict.
    """
    classes = imagenet_classes()
    keys: dict[str, set[int]] = {}
    for c in classes:
        for key in (str(c.index), c.wnid, c.name):
            keys[key] = {c.index}
    for names_of in (_first_name, _other_names, _joined_names):
        level: dict[str, set[int]] = {}
        for c in classes:
            for name in names_of(c):
                level.setdefault(normalize(name), set()).add(c.index)
        keys = level | keys
    return keys


def _first_name(cls: ImageNetClass) -> tuple[str, ...]:
    return cls.synonyms[:1]


def _other_names(cls: ImageNetClass) -> tuple[str, ...]:
    return cls.synonyms[1:]


def _joined_names(cls: ImageNetClass) -> tuple[str, ...]:
    return (", ".join(cls.synonyms),)
