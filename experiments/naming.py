"""Normalization and comparison of names (folders, labels, concepts), and the names of logged metrics."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def normalize_name(name: str) -> str:
    """Return ``name`` in Unicode normal form NFC without leading and trailing whitespace; case is preserved.

    File systems and editors encode the same name in different ways: macOS, for example, splits ``ñ`` into ``n`` and a
    combining tilde.
    """
    return unicodedata.normalize("NFC", name).strip()


def unique_names(names: Iterable[str], where: str, remedy: str = "rename or remove one") -> dict[str, str]:
    """Return a dict that maps each normalized name to the original name, in the order of ``names``.

    Args:
        names: names that must differ after normalization, for example the names of the subfolders of one folder.
        where: the file, folder or setting that contains the names, as the beginning of the error message.
        remedy: advice on what to do about two equal names, as the end of the error message.

    Raises:
        ValueError: two names have the same normalized form, or a name is blank.
    """
    unique: dict[str, str] = {}
    for name in names:
        key = normalize_name(name)
        if not key:
            raise ValueError(f"{where} contains an empty name: replace or remove the empty name.")
        if key in unique:
            raise ValueError(f"{where} contains {_format_pair(unique[key], name)}: {remedy}.")
        unique[key] = name
    return unique


def _format_pair(first: str, second: str) -> str:
    if first == second:
        return f"{first!r} twice"
    # `!a` escapes non-ASCII characters, because the two names would look alike when printed.
    return f"{first!a} and {second!a}, which are one name after Unicode and whitespace normalization"


def metric_name(row: Mapping[str, Any], identity: Sequence[str], name: str) -> str:
    """Return the key under which loggers store a metric, such as ``rnri/steps_50/guidance_7_5/caption/psnr``.

    The key consists of the values of the columns ``identity`` and the name of the metric, joined by ``/``. A string is
    used unchanged, and a number is preceded by the name of its column. The value True is replaced by the name of its
    column; the values False and None are omitted. Dots are replaced by underscores, because W&B interprets dots as
    nested keys.

    Args:
        row: row of the results table that contains the metric.
        identity: columns that identify a row of the results table, such as the method and the number of steps.
        name: name of the metric.
    """
    parts = (_key_part(column, row[column]) for column in identity)
    return "/".join([*filter(None, parts), name]).replace(".", "_")


def _key_part(column: str, value: Any) -> str:
    if isinstance(value, bool):
        return column if value else ""
    if isinstance(value, int | float):
        return f"{column}_{value:g}"
    return value or ""
