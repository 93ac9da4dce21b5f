"""Finds words and phrases in prompts and captions."""

from __future__ import annotations

import re


def find_phrase(phrase: str, text: str) -> list[tuple[int, int]]:
    """Return the character range ``(start, end)`` of each occurrence of a word or phrase in ``text``.

    Only whole words match: "cat" occurs in "A cat." but neither in "cats" nor in "cathedral". Case is ignored, and any
    whitespace matches the whitespace between the words of ``phrase``. A blank phrase has no occurrence.
    """
    words = phrase.split()
    if not words:
        return []
    pattern = r"\s+".join(re.escape(word) for word in words)
    return [match.span() for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)]


def replace_phrase(phrase: str, replacement: str, text: str) -> str:
    """Return ``text`` with each occurrence of ``phrase`` replaced by ``replacement``.

    :func:`find_phrase` finds the occurrences. Leading and trailing whitespace is ignored in ``phrase``, and is
    therefore also removed from ``replacement``.
    """
    for start, end in reversed(find_phrase(phrase, text)):
        text = text[:start] + replacement.strip() + text[end:]
    return text
