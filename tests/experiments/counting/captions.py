"""Difficult captions and names for tests, and their counts from a simple reference implementation."""

import random

import pyarrow as pa

from experiments.counting.frequency import mentions
from experiments.counting.matcher import count_mentions
from experiments.counting.text import normalize

NAMES = {
    "cat": ("cat", "tom cat"),
    "dog": ("dog", "hound"),
    "hot dog": ("hot dog",),
    "house of cards": ("house of cards", "card house of dogs"),
    "T-shirt": ("T-shirt", "tee"),
    "café": ("café", "Straße"),
    "cat again": ("cat again", "cat"),
    "photographers": ("photographers", "photographer"),
    "猫": ("猫",),
    "हाथी": ("हाथी", "कल"),
}
PARTS = [
    "cat", "Cats", "TOM", "hot", "dog", "DOGS", "hound's", "house", "of", "cards", "card", "tee", "shirt", "T-Shirt",
    "tshirts", "cafe\u0301", "CAFÉ", "ｃａｆé", "strasse", "Straße", "STRASSEN", "猫", "photographer", "photographic",
    "photographers", "category", "concat", "house of cards", "Houses-of cards", "card house of", "hot-dog",
    "ﬁsh", "½", "№", "\u0301", "=\u0338", "\u0345", "ŉ", "’", "–", "_", "-", "1", "\n", "\t", "\x00",
    "\u2028", "İ", "ς", "각", "\u1100\u1161", "\u0e33", "🐈", "𝐜𝐚𝐭", "x" * 300,
    "हाथ", "ी", "कल", "का", "ca\u00adt", "\u200d", "\u200c", "\ufe0f", "\ufeff", "\u202b", "´", "\u20e3", "tee\u0301",
]  # fmt: skip


def random_captions(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    joins = ["", " ", " ", " ", "  ", "-", ", ", "\n"]
    return ["".join(rng.choice(PARTS) + rng.choice(joins) for _ in range(rng.randrange(9))) for _ in range(n)]


DIFFICULT = [
    *"catdogISsİıßſΣςŉǰΐÅé½²№ﬁＣ猫각カﾞสักำलीािক্তעִ‎בكِتابـ٣۴५", "cat", "CATS", "dog", "hot", " ", " ", " ", "-", "_", "'",
    "’", ".", "\n", "\x00", "\u00a0", "\u3000", "\u00ad", "\u034f", "\u061c", "\u115f", "\u1160", "\u17b4", "\u180e",
    "\u200b", "\u200c", "\u200d", "\u200e", "\u2028", "\u202b", "\u2060", "\u2069", "\u3164", "\ufe0e", "\ufe0f",
    "\ufeff", "\uffa0", "\U000e0101", "\u0300", "\u0301", "\u0307", "\u0308", "\u0323", "\u0338", "\u0345", "\u0488",
    "\u064b", "\u0670", "\u093c", "\u093f", "\u094d", "\u0e31", "\u0e33", "\u1100", "\u1161", "\u11a8", "\u20dd",
    "\u20e3", "\u3099", "´", "¨", "ͺ", "=", "<", "~", "🐈", "🏽", "❤", "1",
]  # fmt: skip


def random_text(seed: int, n: int) -> list[str]:
    """Strings of single characters that combine with, join or ignore their neighbors."""
    rng = random.Random(seed)
    return ["".join(rng.choices(DIFFICULT, k=rng.randrange(12))) for _ in range(n)]


def reference_counts(names: dict[str, tuple[str, ...]], captions: list[str]) -> dict[str, int]:
    """The definition of a mention, without any optimization."""
    forms = mentions(names)
    texts = [normalize(caption) for caption in captions]
    matches = {form: {k for k, text in enumerate(texts) if form in text} for form in forms}
    return {name: len(set().union(*(matches[f] for f, owners in forms.items() if name in owners))) for name in names}


def batch_counts(names: dict[str, tuple[str, ...]], captions: list[str]) -> dict[str, int]:
    return count_mentions(names, pa.array(captions, pa.string()))
