"""Mentions of many names in many captions at once; ``experiments.counting.frequency`` says what a mention is.

Most words of captions occur in no name. A batch is joined into one text, whose words a table of hashes sorts out
without a loop in Python; one Aho-Corasick automaton for all names then reads the few words that remain. The hashes
may let other words through but never drop one of a mention, so the counts are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import ahocorasick
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from experiments.counting.frequency import mentions, normalize

# One form and the concepts (by position) that it is a mention of.
Patterns = tuple[tuple[str, tuple[int, ...]], ...]

_SPACE, _BREAK = ord(" "), ord("\n")
_SINGLE, _FOLLOWED, _PRECEDED = 1, 2, 4  # a word's places in the forms: alone, before another word, after one

_AT_ONCE = 4096  # captions, whose arrays stay in the processor's caches

# Bytes of ASCII text, normalized; bytes of longer UTF-8 characters as they are.
_LOWER = bytes(ord(chr(k).lower()) if chr(k).isalnum() else _SPACE for k in range(128)) + bytes(range(128, 256))
# The first n bytes of eight, n from 0 to 8, in little-endian order.
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], "<u8")
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], "<u8")


def patterns(names: Mapping[str, Sequence[str]]) -> Patterns:
    """All forms of all names, in the shape that ``BatchCounter`` takes; concepts are numbered in their order."""
    index = {name: k for k, name in enumerate(names)}
    return tuple((form, tuple(index[name] for name in owners)) for form, owners in mentions(names).items())


@dataclass(frozen=True)
class _Words:
    """The words of a batch.

    Attributes:
        text: ``uint8 [T]``, normalized UTF-8 with spaces around words and eight spare bytes at the end.
        starts, ends: ``int64 [W]``, where each word begins and ends.
        captions: ``int64 [N]``, where each caption begins.
    """

    text: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    captions: np.ndarray

    def keys(self) -> np.ndarray:
        """``uint64 [W]``: a word's length and its first eight bytes, mixed."""
        aligned = self.text.view("<u8")
        at, shift = self.starts >> 3, ((self.starts & 7) << 3).view("<u8")
        lengths = self.ends - self.starts
        first = aligned.take(at) >> shift | aligned.take(at + 1) << (64 - shift)  # a shift by 64 gives 0 in NumPy
        return (first & _MASKS.take(lengths, mode="clip")) + lengths.view("<u8") * _ODD[0]


def _find_words(text: bytes, captions: np.ndarray) -> _Words:
    """Words of normalized text that begins with a space."""
    padded = np.frombuffer(text + b" " * (16 - len(text) % 8), np.uint8)
    inside = padded != _SPACE
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return _Words(padded, edges[0::2] + 1, edges[1::2] + 1, captions)


def read_words(captions: pa.StringArray) -> _Words:
    """The normalized words of captions without nulls."""
    whole = pa.LargeListArray.from_arrays(pa.array([0, len(captions)], pa.int64()), captions)
    text = b" " + pc.binary_join(whole, " ")[0].as_buffer().to_pybytes().translate(_LOWER) + b" "
    sizes = pc.binary_length(captions).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    return _find_words(*_fold(text, np.cumsum(sizes) - sizes + 1))


def _fold(text: bytes, captions: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Normalizes the words that are not in ASCII, and moves the starts of the captions as the text grows or shrinks.

    Spaces stand for ASCII characters that are neither letters nor digits. No normal form joins those with a
    neighbor into a letter or digit, and marks fall that follow them, so words can be normalized one by one.
    """
    pieces, bounds, grown, at = [], [], [0], 0
    for foreign in np.flatnonzero(np.frombuffer(text, np.uint8) >= 0xC0).tolist():  # first bytes of characters
        if foreign >= at:
            start, end = text.rfind(b" ", at, foreign) + 1, text.index(b" ", foreign)
            word = _fold_word(text[start:end])
            pieces += text[at:start], word
            bounds.append(end)
            grown.append(len(word) - (end - start))
            at = end
    moved = captions + np.cumsum(grown)[np.searchsorted(bounds, captions)]
    return b"".join([*pieces, text[at:]]), moved


@lru_cache(maxsize=1 << 16)
def _fold_word(word: bytes) -> bytes:
    return normalize(word.decode(errors="replace")).strip().encode()


class BatchCounter:
    """Counts captions that mention concepts, each caption once a concept.

    Args:
        forms: what is searched for, and whose mention it is; from ``patterns``.
        concepts: how many concepts there are.
    """

    def __init__(self, forms: Patterns, concepts: int) -> None:
        self.concepts = concepts
        self._owners = np.array([owner for _, owners in forms for owner in owners], np.int64)
        self._owned = np.array([len(owners) for _, owners in forms], np.int64)
        self._automaton = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for k, (form, _) in enumerate(forms):
            # The automaton reads characters: one for each byte of UTF-8, so that positions are those of bytes.
            self._automaton.add_word(form.encode().decode("latin-1"), k)
        self._automaton.make_automaton()
        self._tabulate([form for form, _ in forms])

    def _tabulate(self, forms: list[str]) -> None:
        sizes = np.array([len(form.encode()) for form in forms])
        words = _find_words("".join(forms).encode(), np.cumsum(sizes) - sizes)
        keys, form = words.keys(), np.searchsorted(words.captions, words.starts, "right")
        linked = form[1:] == form[:-1]
        before, after = np.append(linked, False), np.insert(linked, 0, False)
        # Sixty-four cells a word let one or two other words in a hundred through.
        self._shift = np.uint64(64 - max(12, (64 * len(keys)).bit_length()))
        size = 1 << (64 - int(self._shift))
        self._places, self._pairs = np.zeros(size, np.uint8), np.zeros(size, bool)
        for place, chosen in ((_SINGLE, ~before & ~after), (_FOLLOWED, before), (_PRECEDED, after)):
            self._places[self._cells(keys[chosen])] |= place
        self._pairs[self._pair_cells(keys, np.flatnonzero(linked))] = True

    def _cells(self, keys: np.ndarray) -> np.ndarray:
        return (keys * _ODD[1] >> self._shift).view(np.int64)

    def _pair_cells(self, keys: np.ndarray, first: np.ndarray) -> np.ndarray:
        return self._cells(keys[first] * _ODD[2] + keys[first + 1])

    def count(self, captions: pa.StringArray) -> np.ndarray:
        """``int64 [concepts]``: how many of the captions (text, no nulls) mention each concept."""
        counts = np.zeros(self.concepts, np.int64)
        for start in range(0, len(captions), _AT_ONCE):
            counts += self._count(captions[start : start + _AT_ONCE])
        return counts

    def _count(self, captions: pa.StringArray) -> np.ndarray:
        words = read_words(captions)
        kept = np.flatnonzero(self._may_match(words.keys()))
        caption = np.searchsorted(words.captions, words.starts[kept], "right")
        text, ends = _excerpt(words, kept, caption)
        found = np.fromiter(chain.from_iterable(self._automaton.iter(text)), np.int64).reshape(-1, 2)
        return self._tally(caption[np.searchsorted(ends, found[:, 0])], found[:, 1])

    def _may_match(self, keys: np.ndarray) -> np.ndarray:
        """``bool [W]``: words that are a form, or a part of one beside its neighbor in the form."""
        places = self._places.take(self._cells(keys))
        keep = places & _SINGLE != 0
        pairs = np.flatnonzero((places[:-1] & _FOLLOWED != 0) & (places[1:] & _PRECEDED != 0))
        pairs = pairs[self._pairs[self._pair_cells(keys, pairs)]]
        keep[pairs] = keep[pairs + 1] = True
        return keep

    def _tally(self, caption: np.ndarray, form: np.ndarray) -> np.ndarray:
        """Distinct pairs of caption and concept, by concept."""
        many = self._owned[form]
        first = (np.cumsum(self._owned) - self._owned)[form]
        owner = self._owners[np.repeat(first - np.cumsum(many) + many, many) + np.arange(many.sum())]
        found = np.unique(np.repeat(caption, many) * self.concepts + owner)
        return np.bincount(found % self.concepts, minlength=self.concepts)


def count_mentions(names: Mapping[str, Sequence[str]], captions: pa.StringArray) -> dict[str, int]:
    """How many of the captions (no nulls) mention each concept by one of its names, zeros included."""
    return dict(zip(names, BatchCounter(patterns(names), len(names)).count(captions).tolist(), strict=True))


def _excerpt(words: _Words, kept: np.ndarray, caption: np.ndarray) -> tuple[str, np.ndarray]:
    """The kept words as text, and where each ends: a space around each, a line break between words not neighbors."""
    if not len(kept):
        return "", kept
    lengths = words.ends[kept] - words.starts[kept] + 1
    apart = np.append((np.diff(kept) != 1) | (np.diff(caption) != 0), True)
    sizes = lengths + 2 * apart
    begins = np.cumsum(sizes) - sizes
    text = words.text[np.arange(sizes.sum()) + np.repeat(words.starts[kept] - begins, sizes)]
    ends = begins + lengths - 1
    text[ends] = text[ends[apart] + 2] = _SPACE
    text[ends[apart] + 1] = _BREAK
    return " " + text.tobytes().decode("latin-1"), ends + 1
