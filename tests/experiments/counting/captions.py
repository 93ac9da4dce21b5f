"""Captions and names that are hard to count, and their counts by the plain counter."""

import random

import pyarrow as pa

from experiments.counting.frequency import mentions, normalise
from experiments.counting.matcher import count_mentions

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
}
PARTS = [
    "cat", "Cats", "TOM", "hot", "dog", "DOGS", "hound's", "house", "of", "cards", "card", "tee", "shirt", "T-Shirt",
    "tshirts", "cafe\u0301", "CAFÉ", "ｃａｆé", "strasse", "Straße", "STRASSEN", "猫", "photographer", "photographic",
    "photographers", "category", "concat", "house of cards", "Houses-of cards", "card house of", "hot-dog",
    "ﬁsh", "½", "№", "\u0301", "=\u0338", "\u0345", "ŉ", "’", "–", "_", "-", "1", "\n", "\t", "\x00",
    "\u2028", "İ", "ς", "각", "\u1100\u1161", "\u0e33", "🐈", "𝐜𝐚𝐭", "x" * 300,
]  # fmt: skip


def random_captions(seed: int, n: int) -> list[str]:
    rng = random.Random(seed)
    joins = ["", " ", " ", " ", "  ", "-", ", ", "\n"]
    return ["".join(rng.choice(PARTS) + rng.choice(joins) for _ in range(rng.randrange(9))) for _ in range(n)]


def plain_counts(names: dict[str, tuple[str, ...]], captions: list[str]) -> dict[str, int]:
    """What a mention is, without anything that saves time."""
    forms, texts = mentions(names), [normalise(caption) for caption in captions]
    found = {form: {k for k, text in enumerate(texts) if form in text} for form in forms}
    return {name: len(set().union(*(found[f] for f, owners in forms.items() if name in owners))) for name in names}


def batch_counts(names: dict[str, tuple[str, ...]], captions: list[str]) -> dict[str, int]:
    return count_mentions(names, pa.array(captions, pa.string()))
