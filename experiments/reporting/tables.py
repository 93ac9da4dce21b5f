"""Functions that format Markdown tables and the values in their cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

DASH = "–"


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Format rows as a Markdown table, in which a missing value is shown as a dash.

    Args:
        rows: values of each row, by key.
        columns: column heads of the table, by the keys of the rows.
    """
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if _is_missing(value):
        return DASH
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def percent(row: Mapping[str, Any], name: str) -> str:
    """Format a proportion in percent with its confidence interval, such as ``85.1 (80–90)``.

    A missing value is shown as a dash.
    """
    if _is_missing(row.get(name)):
        return DASH
    return f"{100 * row[name]:.1f} ({100 * row[f'{name}_low']:.0f}–{100 * row[f'{name}_high']:.0f})"


def percentage_points(row: Mapping[str, Any], name: str, digits: int = 0) -> str:
    """Format a difference of proportions in percentage points with its confidence interval: ``+3.2 (+1 to +5)``.

    A missing value is shown as a dash.

    Args:
        digits: number of decimal places of the confidence interval.
    """
    if _is_missing(row.get(name)):
        return DASH
    low = 100 * row[f"{name}_low"]
    high = 100 * row[f"{name}_high"]
    return f"{100 * row[name]:+.1f} ({low:+.{digits}f} to {high:+.{digits}f})"
