"""The words of a text, in one form for captions and names of every script."""

from __future__ import annotations

import unicodedata

# Default_Ignorable_Code_Point (Unicode, DerivedCoreProperties.txt), which Python's unicodedata lacks: soft hyphens,
# joiners, marks of direction and order of bytes, selectors of variants, fillers, tags. Reserved ones are among them.
_IGNORABLE = (
    (0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
_DROPPED = {code: None for first, last in _IGNORABLE for code in range(first, last + 1)}


class _Separated(dict):
    """What ``str.translate`` makes of a character: letters, digits and marks stay, all else becomes a space."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LNM" else ord(" ")
        return self[code]


_SEPARATED = _Separated()


_BEGIN, _END = "\ufdd0", "\ufdd1"  # noncharacters, which no text holds


class _Apart(dict):
    """What ``str.translate`` makes of a character: trade marks fall, a sign that NFKC spells out is put in marks."""

    def __missing__(self, code: int) -> int | str:
        kind = _sign(chr(code))
        self[code] = " " if kind == "<super>" else f"{_BEGIN}{chr(code)}{_END}" if kind else code
        return self[code]


_APART = _Apart()


def _sign(character: str) -> str | None:
    """How NFKC makes letters or digits of what is neither, as ™, №, ㎏, ½ and ①; None of ﬁ, Ａ, ² and all else."""
    category, kind = unicodedata.category(character), unicodedata.decomposition(character).split(" ")[0]
    if not kind or category[0] in "LM" or category in ("Nd", "Nl") or (category, kind) in _EXPONENTS:
        return None
    spelled = unicodedata.normalize("NFKD", character)
    return kind if any(unicodedata.category(sign)[0] in "LN" for sign in spelled) else None


_EXPONENTS = (("No", "<super>"), ("No", "<sub>"))  # x² is x2, CO₂ is CO2


def compatible(text: str) -> str:
    """Unicode's NFKC without the default-ignorable characters, and with a space around what was no part of a word.

    What the form spells out is no part of the word beside it: ``cat™`` is ``cat`` as ``cat®`` is, and not ``cattm``;
    ``5㎏`` is ``5 kg``. Signs side by side stay together, as in ⓒⓐⓣ.
    """
    apart = text.translate(_DROPPED).translate(_APART)
    if _BEGIN in apart:
        apart = apart.replace(_END + _BEGIN, "").replace(_BEGIN, " ").replace(_END, " ")
    return unicodedata.normalize("NFKC", apart)


def normalize(text: str) -> str:
    """Words in lower case with one space around each: compatible forms folded, punctuation and hyphens dropped.

    A word is letters and digits with their combining marks, such as the vowel signs of Indic scripts; a mark that
    follows anything else belongs to that and falls with it (Unicode, UAX 29). Default-ignorable characters are dropped
    wherever they stand. Case is folded as Unicode does by default, but for the dot that ``i`` keeps of ``İ``.
    """
    if text.isascii():
        return f" {' '.join(text.translate(_SEPARATED).lower().split())} "
    folded = compatible(text).translate(_SEPARATED)
    words = (_fold(word) for word in folded.split(" ") if word)
    return f" {' '.join(word for word in words if word)} "


def _fold(word: str) -> str:
    """A run of letters, digits and marks in lower case, without the marks it begins with."""
    start = next((k for k, sign in enumerate(word) if unicodedata.category(sign)[0] != "M"), len(word))
    return unicodedata.normalize("NFKC", _undotted(unicodedata.normalize("NFD", word[start:].casefold())))


def _undotted(word: str) -> str:
    """A decomposed word without dots above the ``i`` that has one: Turkish ``İ`` in lower case is plain ``i``."""
    if "\u0307" not in word:
        return word
    kept, dotted = [], False
    for sign in word:
        if sign == "\u0307" and dotted:
            continue
        if unicodedata.combining(sign) in (0, 230):  # what else stands below or within, and leaves the dot its place
            dotted = sign == "i"
        kept.append(sign)
    return "".join(kept)
