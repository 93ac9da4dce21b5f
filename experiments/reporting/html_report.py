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

from experiments.reporting.tables import Table

TEMPLATE = Path(__file__).with_name("report.html.jinja")
THUMBNAIL = 192  # maximum side of a thumbnail in pixels
MAX_THUMBNAILS = 8  # maximum number of images in a group of images


@dataclass(frozen=True)
class Thumbnails:
    """A group of small images in the HTML report.

    Attributes:
        title: heading above the images, such as "Lowest PSNR".
        images: the entries of the group. An entry consists of images ``uint8 [3,H,W]`` that are shown side by side, and
            a caption.
    """

    title: str
    images: Sequence[tuple[Sequence[Any], str]]


@dataclass(frozen=True)
class Candidate:
    """An image that the HTML report may show among the images with the highest or lowest metric.

    Attributes:
        value: value of the metric.
        name: name of the original image. The report shows at most one candidate per original image in each group.
        images: images ``uint8 [3,H,W]`` that are shown side by side.
        caption: text below the images.
    """

    value: float
    name: str
    images: Sequence[Any]
    caption: str


def highest_and_lowest(candidates: Sequence[Candidate], metric: str, content: str) -> list[Thumbnails]:
    """Return the candidates with the highest and with the lowest metric, as two groups for the HTML report.

    Each group contains at most ``MAX_THUMBNAILS`` candidates.

    Args:
        candidates: the images among which to choose.
        metric: name of the metric, for the titles of the groups.
        content: description of the images of a candidate, for the titles of the groups.
    """
    groups = []
    for order, reverse in (("Highest", True), ("Lowest", False)):
        chosen: dict[str, Candidate] = {}
        for candidate in sorted(candidates, key=lambda candidate: candidate.value, reverse=reverse):
            chosen.setdefault(candidate.name, candidate)
        images = [(candidate.images, candidate.caption) for candidate in chosen.values()][:MAX_THUMBNAILS]
        if images:
            groups.append(Thumbnails(f"{order} {metric}: {content}", images))
    return groups


def html_report(
    title: str,
    command: str,
    versions: Mapping[str, str],
    *,
    tables: Sequence[Table],
    details: Sequence[Table] = (),
    thumbnails: Sequence[Thumbnails] = (),
    figures: Mapping[str, Path] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Return the HTML report of a run as one page, in which all images are embedded.

    Args:
        title: heading of the report.
        command: command line of the run.
        versions: dict from the name of each package to its version.
        tables: the tables of the results.
        details: additional tables below the figures, which are hidden until the reader clicks on their titles.
        thumbnails: groups of small images.
        figures: dict from the name of each figure to its PNG file.
        notes: sentences below the tables.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=title,
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        command=command,
        versions=versions,
        tables=[_html_table(table) for table in tables],
        details=[_html_table(table) for table in details],
        thumbnails=[
            {
                "title": group.title,
                "items": [{"sources": list(map(_thumbnail, images)), "caption": text} for images, text in group.images],
            }
            for group in thumbnails
        ],
        figures=[{"name": name, "src": data_url(path.read_bytes())} for name, path in (figures or {}).items()],
        notes=notes,
    )


def _html_table(table: Table) -> dict[str, Any]:
    """Return the title, the column heads and the rows of a table for the HTML template."""
    num_rows = len(table.rows)
    rows = [
        {
            "is_reference": k >= num_rows,
            "cells": [
                {"text": text, "best": best, "value": _sort_value(row.get(column.key))}
                for text, best, column in zip(texts, flags, table.columns, strict=True)
            ],
        }
        for k, (row, texts, flags) in enumerate(
            zip([*table.rows, *table.references], table.cells, table.best(), strict=True)
        )
    ]
    return {"title": table.title, "heads": table.heads, "rows": rows}


def _sort_value(value: Any) -> str:
    """Return the number by which the HTML page sorts a table cell, or an empty string for a cell without a number."""
    return str(float(value)) if isinstance(value, int | float) and math.isfinite(value) else ""


def _thumbnail(image: Any) -> str:
    """Return the data URL of an image ``uint8 [3,H,W]``.

    An image larger than ``THUMBNAIL`` pixels is resized and compressed as JPEG, so that the HTML file remains small.
    """
    thumbnail = Image.fromarray(np.ascontiguousarray(np.moveaxis(np.asarray(image), 0, -1)))
    data = io.BytesIO()
    if max(thumbnail.size) <= THUMBNAIL:
        thumbnail.save(data, "PNG")
        return data_url(data.getvalue())
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    thumbnail.save(data, "JPEG", quality=88)
    return data_url(data.getvalue(), "jpeg")


def data_url(content: bytes, kind: str = "png") -> str:
    """Return the data URL of an image file with the bytes ``content`` and the MIME type ``image/KIND``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
