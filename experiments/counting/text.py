"""Normalizes captions and names, in any script, to lower-case words that are separated by single spaces."""

from __future__ import annotations

import re
import unicodedata

# Ranges of code points with the Unicode property Default_Ignorable_Code_Point. The property marks invisible characters
# such as soft hyphens, joiners and variation selectors. The ranges are copied from DerivedCoreProperties.txt, because
# Python's unicodedata does not provide the property.
_IGNORABLE = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
_BEFORE_NFKC = {code: None for first, last in _IGNORABLE for code in range(first, last + 1)}
_BEFORE_NFKC |= dict.fromkeys(map(ord, "™℠🅪🅫🅬"), " ")  # NFKC would append "TM" to a word


class _PunctuationToSpace(dict):
    """Table for ``str.translate`` that replaces all characters by spaces except letters, digits and combining marks."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LNM" else ord(" ")
        return self[code]


_PUNCTUATION_TABLE = _PunctuationToSpace()


def nfkc(text: str) -> str:
    """Return ``text`` in the Unicode normal form NFKC, without invisible characters and trademark signs."""
    return unicodedata.normalize("NFKC", text.translate(_BEFORE_NFKC))


def normalize(text: str) -> str:
    """Return the words of ``text`` in lower case, separated by single spaces, with one space at each end.

    The text is converted to NFKC, and punctuation, including hyphens, becomes spaces. A word consists of letters and
    digits with their combining marks, such as the vowel signs of Indic scripts. If a combining mark follows a character
    that is not a letter or digit, both characters are dropped (Unicode, UAX 29). Invisible characters
    (Default_Ignorable_Code_Point) are also dropped. Words are converted to lower case by ``str.casefold``, except that
    the Turkish ``İ`` becomes a plain ``i``.
    """
    if text.isascii():
        return f" {' '.join(text.translate(_PUNCTUATION_TABLE).lower().split())} "
    words = (_fold(word) for word in nfkc(text).translate(_PUNCTUATION_TABLE).split(" "))
    return f" {' '.join(word for word in words if word)} "


def _fold(word: str) -> str:
    """Return ``word`` in lower case, without the combining marks at the beginning of the word."""
    start = next((k for k, character in enumerate(word) if unicodedata.category(character)[0] != "M"), len(word))
    folded = unicodedata.normalize("NFD", word[start:].casefold())
    return unicodedata.normalize("NFKC", re.sub("i\u0307+", "i", folded))
