"""What counts as a mention of a concept in a caption."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from experiments.counting.plurals import number_variants
from experiments.counting.text import normalize


def spellings(name: str) -> set[str]:
    """Normalized spellings of a name: in singular and plural, with hyphens as spaces and with hyphens removed.

    ValueError if the name has neither letters nor digits.
    """
    if not normalize(name).strip():
        raise ValueError(f"The name {name!r} has no letter or digit: captions are searched for words.")
    forms = {name} | number_variants(name)
    forms |= {re.sub("[-\u2010\u2011]", "", form) for form in forms}
    return {normalize(form) for form in forms}


def mentions(names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The concepts that each spelling mentions.

    A mention is the name or one of its synonyms as whole words, with its head noun in the singular or the plural,
    regardless of case and hyphens. A name inside another name counts for both; a caption counts once per concept.

    Args:
        names: synonyms of each concept, the name itself among them.

    ValueError if a name has neither letters nor digits.
    """
    owners: dict[str, set[str]] = {}
    for concept, synonyms in names.items():
        for synonym in synonyms:
            for form in spellings(synonym):
                owners.setdefault(form, set()).add(concept)
    return {form: tuple(sorted(concepts)) for form, concepts in sorted(owners.items())}
