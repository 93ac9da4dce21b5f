"""Tables of results, which can be formatted as Markdown and LaTeX."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Rows = Sequence[Mapping[str, Any]]

DASH = "–"
MAX_COLUMNS = 7
"""Maximum number of columns of a table in ``table.md``. The file ``table.csv`` contains all columns."""
ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}
LATEX = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--"}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: key of the value in a row. If a row has the keys ``KEY_low`` and ``KEY_high``, they are the ends of a 95 %
            confidence interval.
        label: column head, without the arrow that shows whether higher or lower values are better.
        better: whether higher or lower values are better; None if neither is better.
        scale: factor by which values are multiplied, such as 100 for percentages.
        signed: whether positive numbers have a plus sign, as in a column of differences.
    """

    key: str
    label: str
    better: Literal["higher", "lower"] | None = None
    scale: float = 1.0
    signed: bool = False

    @property
    def head(self) -> str:
        return self.label + ARROWS[self.better]

    def text(self, row: Mapping[str, Any]) -> str:
        """Return the text of the cell, with the confidence interval if the row has one, such as ``23.1 (22.4–23.9)``.

        If the value is missing, the text is a dash. Percentages have one decimal place, but the ends of a percentage's
        confidence interval are rounded to integers.
        """
        value = self.value_text(row)
        low, high = (row.get(f"{self.key}_{end}") for end in ("low", "high"))
        if value == DASH or is_missing(low) or is_missing(high):
            return value
        decimals = 0 if self.scale == 100 else None
        ends = [self._number(end, decimals) for end in (low, high)]
        return f"{value} ({(' to ' if self.signed else '–').join(ends)})"

    def value_text(self, row: Mapping[str, Any]) -> str:
        """Return the text of the table cell without the confidence interval."""
        value = row.get(self.key)
        if is_missing(value):
            return DASH
        if not isinstance(value, int | float) or isinstance(value, bool):
            return str(value)
        return self._number(value, 1 if self.scale == 100 else None)

    def _number(self, value: float, decimals: int | None) -> str:
        sign = "+" if self.signed else ""
        number = value if self.scale == 1 else self.scale * value
        if decimals is not None:
            return f"{number:{sign}.{decimals}f}"
        return f"{number:{sign}}" if isinstance(number, int) else format_number(number, sign)


def format_number(value: float, sign: str = "") -> str:
    """Return ``value`` with three significant digits, or rounded to an integer if it is between 1000 and 1e6."""
    return f"{value:{sign}.0f}" if 1000 <= abs(value) < 1e6 else f"{value:{sign}.3g}"


@dataclass(frozen=True)
class Table:
    """A table of results, in which the best values are bold.

    Attributes:
        rows: the compared rows.
        columns: the columns of the table.
        title: text above the table.
        references: rows below the compared rows, such as published values and upper bounds, which are never bold.
        within: keys by which rows are grouped. In each group, the best value of every column is bold; the attribute
            ``better`` of the column defines whether the best value is the highest or the lowest.
    """

    rows: Rows
    columns: Sequence[Column]
    title: str = ""
    references: Rows = ()
    within: Sequence[str] = ()

    @property
    def heads(self) -> list[str]:
        return [column.head for column in self.columns]

    @property
    def cells(self) -> list[list[str]]:
        return [[column.text(row) for column in self.columns] for row in self._all_rows]

    @property
    def _all_rows(self) -> list[Mapping[str, Any]]:
        return [*self.rows, *self.references]

    def best(self) -> list[list[bool]]:
        """Return for each row a list that contains, for each column, whether the cell is bold.

        In each group of rows, the cell with the best value of a column is bold. If other values of the column are
        printed as the same text, their cells are bold, too. A group with a single row has no bold cell.
        """
        best = [[False] * len(self.columns) for _ in self._all_rows]
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for k, row in enumerate(self.rows):
            groups[tuple(row.get(key) for key in self.within)].append(k)
        for c, column in enumerate(self.columns):
            for group in groups.values() if column.better else ():
                finite = {k: self.rows[k][column.key] for k in group if _is_finite(self.rows[k].get(column.key))}
                if len(group) > 1 and finite:
                    top = (max if column.better == "higher" else min)(finite, key=finite.__getitem__)
                    text = column.value_text(self.rows[top])
                    for k in finite:
                        best[k][c] = column.value_text(self.rows[k]) == text
        return best

    def markdown(self) -> str:
        """Return the table in Markdown, with cells that are padded with spaces to align the columns in a terminal."""
        texts = [[_escape_markdown(text) for text in line] for line in self.cells]
        body = [
            [f"**{text}**" if bold else text for text, bold in zip(line, flags, strict=True)]
            for line, flags in zip(texts, self.best(), strict=True)
        ]
        lines = [self.heads, *body]
        widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
        padded = [" | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
        rule = "|".join("-" * (width + 2) for width in widths)
        title = f"{self.title}\n\n" if self.title else ""
        return title + "\n".join([f"| {padded[0]} |", f"|{rule}|", *(f"| {line} |" for line in padded[1:])]) + "\n"

    def latex(self) -> str:
        """Return the table in LaTeX, which requires the LaTeX package booktabs."""
        from pandas import DataFrame  # imported here, because only this method needs pandas

        frame = DataFrame(self.cells, columns=self.heads)
        bold = DataFrame(self.best(), columns=self.heads).map(lambda best: "textbf:--rwrap;" if best else "")
        styler = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
        styler = styler.apply(lambda _: bold, axis=None)
        text = styler.to_latex(hrules=True, column_format="l" + "r" * (len(self.columns) - 1))
        for symbol, command in LATEX.items():
            text = text.replace(symbol, command)
        return (f"% {self.title}\n" if self.title else "") + text


def markdown_table(rows: Rows, columns: Mapping[str, str]) -> str:
    """Format rows as a Markdown table, in which a missing value is shown as a dash.

    Args:
        rows: the rows, as dicts from column key to value.
        columns: dict from column key to column head.
    """
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if is_missing(value):
        return DASH
    return f"{value:.3g}" if isinstance(value, float) else _escape_markdown(str(value))


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|")


def is_missing(value: Any) -> bool:
    """Return whether ``value`` is None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def percent(row: Mapping[str, Any], name: str) -> str:
    """Format a proportion in percent with its confidence interval, such as ``85.1 (80–90)``.

    A missing value is shown as a dash.
    """
    return Column(name, name, scale=100).text(row)


def varying(rows: Rows, keys: Sequence[str]) -> list[str]:
    """Return the ``keys`` whose values are not the same in all rows."""
    return [key for key in keys if len({row.get(key) for row in rows}) > 1]
