"""Counts the captions that mention each of many names; ``experiments.counting.frequency`` defines a mention.

Most words of captions occur in no name. Therefore a batch of captions is joined into one string, and words that occur
in no name are removed by a hash table in NumPy. An Aho-Corasick automaton then searches the remaining words for all
names. Hash collisions do not change the counts: a collision may keep a word that occurs in no name, but never removes a
word of a name.
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

from experiments.counting.frequency import mentions
from experiments.counting.text import normalize

# Each entry is a spelling variant ("form") and the indices of the concepts that a caption with this form mentions.
Patterns = tuple[tuple[str, tuple[int, ...]], ...]

_SPACE, _BREAK = ord(" "), ord("\n")
# Bit flags for the positions of a word in a spelling variant: the only word, followed by a word, preceded by a word.
_SINGLE, _FOLLOWED, _PRECEDED = 1, 2, 4

_CHUNK_SIZE = 4096  # number of captions per batch, for which the arrays fit into the CPU caches

# Translation table that lower-cases ASCII letters, replaces ASCII punctuation by spaces and keeps non-ASCII bytes.
_LOWER = bytes(ord(chr(k).lower()) if chr(k).isalnum() else _SPACE for k in range(128)) + bytes(range(128, 256))
# Bit masks that keep the first n bytes of an 8-byte little-endian integer, for n from 0 to 8.
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], "<u8")
_HASH_MULTIPLIERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], "<u8")


def patterns(names: Mapping[str, Sequence[str]]) -> Patterns:
    """Return all spelling variants of all names, each with the indices of the concepts that have this name.

    The returned value is the argument ``forms`` of :class:`BatchCounter`.

    Args:
        names: dict that maps each concept to its name and its synonyms. The index of a concept is its position in
            ``names``.
    """
    index = {name: k for k, name in enumerate(names)}
    return tuple((form, tuple(index[name] for name in owners)) for form, owners in mentions(names).items())


@dataclass(frozen=True)
class _Words:
    """The W words of a batch of N captions.

    Attributes:
        text: ``uint8 [T]``, the normalized UTF-8 text of all captions, with spaces around words and at least eight more
            spaces at the end.
        starts, ends: ``int64 [W]``, byte offsets in ``text`` at which each word begins and ends.
        captions: ``int64 [N]``, byte offset in ``text`` at which each caption begins.
    """

    text: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    captions: np.ndarray

    def keys(self) -> np.ndarray:
        """Return a hash of each word, ``uint64 [W]``, from the length and the first eight bytes of the word."""
        aligned = self.text.view("<u8")
        index = self.starts >> 3
        shift = ((self.starts & 7) << 3).view("<u8")
        lengths = self.ends - self.starts
        # If `shift` is 0, the second operand is 0, because a shift by 64 bits gives 0 in NumPy.
        first = aligned.take(index) >> shift | aligned.take(index + 1) << (64 - shift)
        return (first & _MASKS.take(lengths, mode="clip")) + lengths.view("<u8") * _HASH_MULTIPLIERS[0]


def _find_words(text: bytes, captions: np.ndarray) -> _Words:
    """Return the words of ``text``, which must be normalized and begin with a space.

    ``captions`` contains the byte offset at which each caption begins in ``text``.
    """
    padded = np.frombuffer(text + b" " * (16 - len(text) % 8), np.uint8)
    inside = padded != _SPACE
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return _Words(padded, edges[0::2] + 1, edges[1::2] + 1, captions)


def read_words(captions: pa.StringArray) -> _Words:
    """Return the normalized words of ``captions``. The array must not contain nulls."""
    joined = pa.LargeListArray.from_arrays(pa.array([0, len(captions)], pa.int64()), captions)
    text = b" " + pc.binary_join(joined, " ")[0].as_buffer().to_pybytes().translate(_LOWER) + b" "
    sizes = pc.binary_length(captions).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    return _find_words(*_fold(text, np.cumsum(sizes) - sizes + 1))


def _fold(text: bytes, captions: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Normalize the words with non-ASCII characters, and correct the offsets of the captions for the new word lengths.

    ``text`` must contain spaces instead of ASCII punctuation. Each word can be normalized separately, because Unicode
    normalization never merges ASCII punctuation with a neighbor into a letter or digit, and combining marks after
    punctuation are dropped.
    """
    pieces, bounds, growth = [], [], [0]
    done = 0
    for first in np.flatnonzero(np.frombuffer(text, np.uint8) >= 0xC0).tolist():  # first bytes of UTF-8 characters
        if first >= done:
            start = text.rfind(b" ", done, first) + 1
            end = text.index(b" ", first)
            word = _fold_word(text[start:end])
            pieces += text[done:start], word
            bounds.append(end)
            growth.append(len(word) - (end - start))
            done = end
    shifted = captions + np.cumsum(growth)[np.searchsorted(bounds, captions)]
    return b"".join([*pieces, text[done:]]), shifted


@lru_cache(maxsize=1 << 16)
def _fold_word(word: bytes) -> bytes:
    return normalize(word.decode(errors="replace")).strip().encode()


class BatchCounter:
    """Counts the captions that mention each concept. A caption that mentions a concept several times is counted once.

    Args:
        forms: spelling variants of names, each with the indices of the concepts that have this name, from
            :func:`patterns`.
        concepts: number of concepts.
    """

    def __init__(self, forms: Patterns, concepts: int) -> None:
        self.concepts = concepts
        self._owners = np.array([owner for _, owners in forms for owner in owners], np.int64)
        self._owner_counts = np.array([len(owners) for _, owners in forms], np.int64)
        self._automaton = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for k, (form, _) in enumerate(forms):
            # The automaton searches str. Each UTF-8 byte is one Latin-1 character, so that positions are byte offsets.
            self._automaton.add_word(form.encode().decode("latin-1"), k)
        self._automaton.make_automaton()
        self._tabulate([form for form, _ in forms])

    def _tabulate(self, forms: list[str]) -> None:
        sizes = np.array([len(form.encode()) for form in forms])
        words = _find_words("".join(forms).encode(), np.cumsum(sizes) - sizes)
        keys, form = words.keys(), np.searchsorted(words.captions, words.starts, "right")
        linked = form[1:] == form[:-1]
        before = np.append(linked, False)
        after = np.insert(linked, 0, False)
        # If the hash table has 64 cells per word of a name, only 1 to 2 % of the words that occur in no name are kept.
        self._shift = np.uint64(64 - max(12, (64 * len(keys)).bit_length()))
        size = 1 << (64 - int(self._shift))
        self._roles = np.zeros(size, np.uint8)
        self._pairs = np.zeros(size, bool)
        for role, selected in ((_SINGLE, ~before & ~after), (_FOLLOWED, before), (_PRECEDED, after)):
            self._roles[self._cells(keys[selected])] |= role
        self._pairs[self._pair_cells(keys, np.flatnonzero(linked))] = True

    def _cells(self, keys: np.ndarray) -> np.ndarray:
        return (keys * _HASH_MULTIPLIERS[1] >> self._shift).view(np.int64)

    def _pair_cells(self, keys: np.ndarray, first: np.ndarray) -> np.ndarray:
        return self._cells(keys[first] * _HASH_MULTIPLIERS[2] + keys[first + 1])

    def count(self, captions: pa.StringArray) -> np.ndarray:
        """Return, for each concept, the number of captions that mention it, ``int64 [concepts]``.

        ``captions`` must not contain nulls.
        """
        counts = np.zeros(self.concepts, np.int64)
        for start in range(0, len(captions), _CHUNK_SIZE):
            counts += self._count(captions[start : start + _CHUNK_SIZE])
        return counts

    def _count(self, captions: pa.StringArray) -> np.ndarray:
        words = read_words(captions)
        index = np.flatnonzero(self._may_match(words.keys()))
        caption = np.searchsorted(words.captions, words.starts[index], "right")
        text, ends = _excerpt(words, index, caption)
        matches = np.fromiter(chain.from_iterable(self._automaton.iter(text)), np.int64).reshape(-1, 2)
        return self._tally(caption[np.searchsorted(ends, matches[:, 0])], matches[:, 1])

    def _may_match(self, keys: np.ndarray) -> np.ndarray:
        """Return, for each word of a batch of captions, whether the word may belong to a name, ``bool [W]``.

        ``keys`` contains the hash of each word, ``uint64 [W]``. The mask is True for a word that is a complete spelling
        variant of a name. The mask is also True for two adjacent words of a caption that are adjacent in a spelling
        variant.
        """
        roles = self._roles.take(self._cells(keys))
        keep = roles & _SINGLE != 0
        pairs = np.flatnonzero((roles[:-1] & _FOLLOWED != 0) & (roles[1:] & _PRECEDED != 0))
        pairs = pairs[self._pairs[self._pair_cells(keys, pairs)]]
        keep[pairs] = keep[pairs + 1] = True
        return keep

    def _tally(self, caption: np.ndarray, form: np.ndarray) -> np.ndarray:
        """Return the number of captions that mention each concept, ``int64 [concepts]``, from all matches.

        Match k is an occurrence of the spelling variant ``form[k]`` in the caption ``caption[k]``.
        """
        repeats = self._owner_counts[form]
        first = (np.cumsum(self._owner_counts) - self._owner_counts)[form]
        owner = self._owners[np.repeat(first - np.cumsum(repeats) + repeats, repeats) + np.arange(repeats.sum())]
        pairs = np.unique(np.repeat(caption, repeats) * self.concepts + owner)
        return np.bincount(pairs % self.concepts, minlength=self.concepts)


def count_mentions(names: Mapping[str, Sequence[str]], captions: pa.StringArray) -> dict[str, int]:
    """Return, for each concept, the number of captions that mention it; the number may be 0.

    ``names`` maps each concept to its names. ``captions`` must not contain nulls.
    """
    return dict(zip(names, BatchCounter(patterns(names), len(names)).count(captions).tolist(), strict=True))


def _excerpt(words: _Words, index: np.ndarray, caption: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the words with the indices ``index`` as one string, and the end offset of each word in the string.

    Adjacent words of one caption are separated by a space, and all other words by a line break. ``caption`` contains
    the caption index of each word in ``index``.
    """
    if not len(index):
        return "", index
    lengths = words.ends[index] - words.starts[index] + 1
    apart = np.append((np.diff(index) != 1) | (np.diff(caption) != 0), True)
    sizes = lengths + 2 * apart
    begins = np.cumsum(sizes) - sizes
    text = words.text[np.arange(sizes.sum()) + np.repeat(words.starts[index] - begins, sizes)]
    ends = begins + lengths - 1
    text[ends] = text[ends[apart] + 2] = _SPACE
    text[ends[apart] + 1] = _BREAK
    return " " + text.tobytes().decode("latin-1"), ends + 1
