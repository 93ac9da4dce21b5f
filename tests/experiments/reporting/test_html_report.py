"""The HTML report is self-contained, and escapes all texts."""

from html.parser import HTMLParser

import numpy as np
from PIL import Image

from experiments.reporting.html_report import HtmlTable, Thumbnails, html_report


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "td":
            self.cells.append(data.strip())


def build(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plot.png")
    rows = [{"method": "a<b>", "psnr": 1.23456, "n": 3}, {"method": "ours", "psnr": float("nan")}]
    return html_report(
        "run",
        "train.py experiment=flow",
        {"torch": "2.9"},
        tables=[HtmlTable(rows, {"method": "method", "psnr": "PSNR", "n": "n"})],
        details=[HtmlTable(rows, {"method": "method"}, "Concepts")],
        thumbnails=[Thumbnails("Lowest PSNR", [(np.zeros((3, 4, 4), np.uint8), "<script>")])],
        figures={"plot": tmp_path / "plot.png"},
    )


def test_everything_is_embedded_and_escaped(tmp_path):
    text = build(tmp_path)
    page = Page(text)
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert page.tags.count("img") == 2 and page.tags.count("table") == 2
    assert "<script></figcaption>" not in text and "&lt;script&gt;" in text


def test_missing_values_are_dashes(tmp_path):
    cells = [cell for cell in Page(build(tmp_path)).cells if cell]
    assert cells[:6] == ["a<b>", "1.235", "3", "ours", "–", "–"]
