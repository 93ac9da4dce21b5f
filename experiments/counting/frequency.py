"""Defines when a caption mentions a concept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from experiments.counting.plurals import number_variants
from experiments.counting.text import normalize


def spellings(name: str) -> set[str]:
    """Return the normalized spellings of ``name``: singular and plural, with hyphens removed or replaced by spaces.

    Raises:
        ValueError: ``name`` contains neither a letter nor a digit.
    """
    if not normalize(name).strip():
        raise ValueError(f"The name {name!r} has no letter or digit: choose a name that consists of words.")
    forms = {name} | number_variants(name)
    forms |= {re.sub("[-\u2010\u2011]", "", form) for form in forms}
    return {normalize(form) for form in forms}


def mentions(names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return a dict from each spelling of a name to the concepts that a caption mentions if it has this spelling.

    A caption mentions a concept if the caption contains the name of the concept or a synonym as whole words. The head
    noun of a name may be in the singular or the plural. Upper case, lower case and hyphens are ignored. A caption that
    contains "wine glass" mentions both the concept "wine glass" and the concept "glass". A caption that mentions a
    concept several times is counted once.

    Args:
        names: dict that maps each concept to its name and its synonyms.

    Raises:
        ValueError: a name contains neither a letter nor a digit.
    """
    owners: dict[str, set[str]] = {}
    for concept, synonyms in names.items():
        for synonym in synonyms:
            for form in spellings(synonym):
                owners.setdefault(form, set()).add(concept)
    return {form: tuple(sorted(concepts)) for form, concepts in sorted(owners.items())}
