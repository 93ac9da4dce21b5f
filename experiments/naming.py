"""One form in which the names of folders, counts, labels and concepts are compared. It imports nothing of ours."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def normalize_name(name: str) -> str:
    """The form in which names are compared: Unicode's NFC, without blanks at the ends; case counts.

    File systems and editors write one name in several ways: macOS, for one, parts ``ñ`` into ``n`` and a tilde.
    """
    return unicodedata.normalize("NFC", name).strip()


def unique_names(names: Iterable[str], where: str, remedy: str = "rename or remove one") -> dict[str, str]:
    """The names as given, by their canonical form and in their order.

    Args:
        names: of one kind, such as the folders of one folder.
        where: what holds them, named as the user knows it; opens the message of an error.
        remedy: what to do about two that are one; ends that message.

    Raises:
        ValueError: two names are one in canonical form, or one has nothing but blanks.
    """
    found: dict[str, str] = {}
    for name in names:
        key = normalize_name(name)
        if not key:
            raise ValueError(f"{where} holds an empty name: give it one or remove it.")
        if key in found:
            raise ValueError(f"{where} holds {_both(found[key], name)}: {remedy}.")
        found[key] = name
    return found


def _both(first: str, second: str) -> str:
    if first == second:
        return f"{first!r} twice"
    # The two look alike, so their code points are shown.
    return f"{first!a} and {second!a}, which are one name but for blanks or Unicode's normal form"
