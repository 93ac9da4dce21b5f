"""How often a corpus mentions a concept, and the buckets that follow from it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import ahocorasick
import inflect

_SEPARATORS = re.compile(r"[^\w]+|_")


def normalise(text: str) -> str:
    """Words in lower case with one space around each: compatible forms folded, punctuation and hyphens dropped."""
    words = _SEPARATORS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split()
    return f" {' '.join(words)} "


def spellings(name: str, engine: inflect.engine) -> set[str]:
    """A name as it occurs in normalised captions: as given, in the plural, and joined where it is hyphenated."""
    forms = {name, engine.plural_noun(name)}
    forms |= {form.replace("-", "") for form in forms if "-" in form}
    return {normalise(form) for form in forms}


@dataclass(frozen=True)
class ConceptCounter:
    """Counts captions that mention concepts, each caption once a concept, as LAION's are counted.

    A mention is the name or one of its synonyms as whole words, in singular or plural, whatever the case and the
    hyphens. Names inside other names count for both.

    Args:
        names: synonyms (the name itself among them) of each concept.
    """

    names: Mapping[str, Sequence[str]]

    @cached_property
    def _automaton(self) -> ahocorasick.Automaton:
        engine = inflect.engine()
        owners: dict[str, set[str]] = {}
        for concept, synonyms in self.names.items():
            for synonym in synonyms:
                for form in spellings(synonym, engine):
                    owners.setdefault(form, set()).add(concept)
        automaton = ahocorasick.Automaton()
        for form, concepts in owners.items():
            automaton.add_word(form, tuple(concepts))
        automaton.make_automaton()
        return automaton

    def count(self, captions: Iterable[str]) -> dict[str, int]:
        """Captions that mention each concept, zeros included."""
        counts = dict.fromkeys(self.names, 0)
        for caption in captions:
            found = {concept for _, concepts in self._automaton.iter(normalise(caption)) for concept in concepts}
            for concept in found:
                counts[concept] += 1
        return counts


def bucket_by_threshold(counts: Mapping[str, int], head: int, tail: int) -> dict[str, str]:
    """``head`` above ``head`` mentions, ``tail`` below ``tail``, ``medium`` between (the paper: 1M and 10K)."""
    if not 0 <= tail <= head:
        raise ValueError(f"head={head} and tail={tail}: a rare concept has fewer mentions than a frequent one.")

    def bucket(count: int) -> str:
        return "head" if count > head else "tail" if count < tail else "medium"

    return {name: bucket(count) for name, count in counts.items()}
