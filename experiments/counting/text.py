"""Normalization of captions and names of every script to words with one space around each."""

from __future__ import annotations

import re
import unicodedata

# Default_Ignorable_Code_Point (Unicode, DerivedCoreProperties.txt), which Python's unicodedata lacks: soft hyphens,
# joiners, direction and byte order marks, variation selectors, fillers, tags and the reserved code points among them.
_IGNORABLE = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
_BEFORE_NFKC = {code: None for first, last in _IGNORABLE for code in range(first, last + 1)}
_BEFORE_NFKC |= dict.fromkeys(map(ord, "™℠🅪🅫🅬"), " ")  # NFKC would append their letters to the word


class _PunctuationToSpace(dict):
    """Table for ``str.translate``: letters, digits and marks stay, every other character becomes a space."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LNM" else ord(" ")
        return self[code]


_PUNCTUATION_TABLE = _PunctuationToSpace()


def nfkc(text: str) -> str:
    """Unicode's NFKC without default-ignorable characters and trademark signs."""
    return unicodedata.normalize("NFKC", text.translate(_BEFORE_NFKC))


def normalize(text: str) -> str:
    """Lower-case words with one space around each: compatibility forms folded, punctuation and hyphens dropped.

    A word consists of letters and digits with their combining marks, such as the vowel signs of Indic scripts. A mark
    that follows any other character is dropped with it (Unicode, UAX 29). Default-ignorable characters are dropped
    everywhere. Case is folded as in ``str.casefold``, except that Turkish ``İ`` becomes a plain ``i``.
    """
    if text.isascii():
        return f" {' '.join(text.translate(_PUNCTUATION_TABLE).lower().split())} "
    words = (_fold(word) for word in nfkc(text).translate(_PUNCTUATION_TABLE).split(" "))
    return f" {' '.join(word for word in words if word)} "


def _fold(word: str) -> str:
    """A run of letters, digits and marks in lower case, without leading marks."""
    start = next((k for k, character in enumerate(word) if unicodedata.category(character)[0] != "M"), len(word))
    folded = unicodedata.normalize("NFD", word[start:].casefold())
    return unicodedata.normalize("NFKC", re.sub("i\u0307+", "i", folded))
