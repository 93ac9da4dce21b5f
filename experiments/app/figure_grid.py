"""HTML of images with captions. The captions are below the images, and all images of a grid have the same width."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from experiments.reporting.html_report import data_url

LOSSLESS_MAX_SIZE = 128
"""Images with at most ``LOSSLESS_MAX_SIZE`` pixels per side are sent as PNG, larger images as WebP of quality 90."""
CSS = """
.image-grid { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 10px; margin: 4px 0; }
.image-grid figure { margin: 0; min-width: 0; }
.image-grid img { display: block; width: 100%; border-radius: 6px; margin: 0; }
.image-grid figcaption { font-size: 13px; line-height: 1.35; margin-top: 4px; overflow-wrap: anywhere; }
.image-grid strong { display: block; }
.set-buttons { display: grid !important; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 8px; }
.image-strip { grid-template-columns: repeat(auto-fit, minmax(max(48px, calc((100% - 32px) / 9)), 1fr)); gap: 4px; }
.image-strip figcaption { text-align: center; }
"""


@dataclass(frozen=True)
class CaptionedImage:
    """An image with a title and a description below the image."""

    image: Image.Image
    title: str
    text: str = ""


def grid_html(images: Sequence[CaptionedImage], columns: int) -> str:
    """Return ``images`` as an HTML grid with ``columns`` columns."""
    return f'<div class="image-grid" style="--columns: {columns}">{"".join(map(_figure_html, images))}</div>'


def strip_html(images: Sequence[CaptionedImage]) -> str:
    """Return ``images`` as one row of small images; on a narrow screen, the row is wrapped."""
    return f'<div class="image-grid image-strip">{"".join(map(_figure_html, images))}</div>'


def _figure_html(captioned: CaptionedImage) -> str:
    title = html.escape(captioned.title)
    source = f'<img src="{_image_url(captioned.image)}" alt="{title}">'
    return f"<figure>{source}<figcaption><strong>{title}</strong>{html.escape(captioned.text)}</figcaption></figure>"


def _image_url(image: Image.Image) -> str:
    data = io.BytesIO()
    kind = "png" if max(image.size) <= LOSSLESS_MAX_SIZE else "webp"
    image.save(data, kind, quality=90)
    return data_url(data.getvalue(), kind)
