"""Normalized form of the names of folders, counts, labels and concepts. It imports nothing of this project."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def normalize_name(name: str) -> str:
    """Unicode NFC without leading and trailing whitespace; case is significant.

    File systems and editors encode one name in several ways: macOS, for example, splits ``ñ`` into ``n`` and a tilde.
    """
    return unicodedata.normalize("NFC", name).strip()


def unique_names(names: Iterable[str], where: str, remedy: str = "rename or remove one") -> dict[str, str]:
    """The names by their normalized form, in their order.

    Args:
        names: of one kind, such as the folders of one folder.
        where: what contains them; the error message begins with it.
        remedy: what to do about two equal names; the error message ends with it.

    Raises:
        ValueError: two names have the same normalized form, or a name is blank.
    """
    unique: dict[str, str] = {}
    for name in names:
        key = normalize_name(name)
        if not key:
            raise ValueError(f"{where} contains an empty name: give it one or remove it.")
        if key in unique:
            raise ValueError(f"{where} contains {_format_pair(unique[key], name)}: {remedy}.")
        unique[key] = name
    return unique


def _format_pair(first: str, second: str) -> str:
    if first == second:
        return f"{first!r} twice"
    # The two look alike, so the message shows their code points.
    return f"{first!a} and {second!a}, which are one name except for whitespace or Unicode normalization"
