"""``report.html``: one self-contained file with the tables, the figures and the images of a run."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from PIL import Image

TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclass(frozen=True)
class HtmlTable:
    """A table of the report, which the reader can sort by a column.

    Attributes:
        rows: values of each row, by key.
        columns: column heads, by the keys of the rows.
        title: heading above the table.
    """

    rows: Sequence[Mapping[str, Any]]
    columns: Mapping[str, str]
    title: str = ""

    @property
    def heads(self) -> list[str]:
        return list(self.columns.values())

    @property
    def cells(self) -> list[list[str]]:
        return [[_cell(row.get(key)) for key in self.columns] for row in self.rows]


@dataclass(frozen=True)
class Thumbnails:
    """A group of small images of the report.

    Attributes:
        title: heading above the images, such as "Lowest PSNR".
        images: pairs of an image ``uint8 [3,H,W]`` and its caption.
    """

    title: str
    images: Sequence[tuple[Any, str]]


def html_report(
    title: str,
    command: str,
    versions: Mapping[str, str],
    *,
    tables: Sequence[HtmlTable],
    details: Sequence[HtmlTable] = (),
    thumbnails: Sequence[Thumbnails] = (),
    figures: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Return the HTML of a report. All images are embedded, so that the file can be sent to other people.

    Args:
        title: heading of the report.
        command: command line of the run.
        versions: version of each package.
        tables: the tables of the results.
        details: further tables, which are shown below the figures.
        thumbnails: groups of small images.
        figures: PNG file of each figure, by its name.
        notes: sentences below the tables.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=title,
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        command=command,
        versions=versions,
        tables=tables,
        details=details,
        thumbnails=[
            {"title": group.title, "images": [{"src": _png(image), "caption": text} for image, text in group.images]}
            for group in thumbnails
        ],
        figures=[{"name": name, "src": _data_url(path.read_bytes())} for name, path in (figures or {}).items()],
        notes=notes,
    )


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _png(image: Any) -> str:
    """Return the data URL of an image ``uint8 [3,H,W]``."""
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.moveaxis(np.asarray(image), 0, -1))).save(data, "PNG")
    return _data_url(data.getvalue())


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
