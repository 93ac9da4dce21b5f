"""The HTML report is self-contained, and escapes all texts."""

from html.parser import HTMLParser

import numpy as np
from PIL import Image

from experiments.reporting.html_report import Candidate, Thumbnails, highest_and_lowest, html_report
from experiments.reporting.tables import Column, Table

IMAGE = np.zeros((3, 4, 4), np.uint8)


class Page(HTMLParser):
    """Tags, links, cells and sort values of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.cells, self.values = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.values += [value for name, value in attrs if name == "data-value"]

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("td", "strong"):
            self.cells.append(data.strip())


def build(tmp_path, image=IMAGE):
    Image.new("RGB", (4, 4)).save(tmp_path / "plot.png")
    rows = [{"method": "a<b>", "psnr": 1.23456, "n": 3}, {"method": "ours", "psnr": float("nan")}]
    columns = [Column("method", "method"), Column("psnr", "PSNR", "higher"), Column("n", "n")]
    return html_report(
        "run",
        "train.py experiment=flow",
        {"torch": "2.9"},
        tables=[Table(rows, columns, references=[{"method": "paper", "psnr": 40.0}])],
        details=[Table(rows, columns[:1], "Concepts")],
        thumbnails=[Thumbnails("Lowest PSNR", [([image, image], "<script>")])],
        figures={"plot": tmp_path / "plot.png"},
    )


def test_everything_is_embedded_and_escaped(tmp_path):
    text = build(tmp_path)
    page = Page(text)
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert page.tags.count("img") == 3 and page.tags.count("table") == 2
    assert "<script></figcaption>" not in text and "&lt;script&gt;" in text


def test_cells_have_texts_and_sort_values(tmp_path):
    page = Page(build(tmp_path))
    cells = [cell for cell in page.cells if cell]
    assert cells[:9] == ["a<b>", "1.23", "3", "ours", "–", "–", "paper", "40", "–"]
    assert page.values == ["1.23456", "3.0", "40.0"]
    assert page.tags.count("strong") == 1  # of the only finite value, and never of a reference


def test_large_images_are_resized_and_compressed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 1024, 768), dtype=np.uint8)
    text = build(tmp_path, noise)
    assert "data:image/jpeg;base64," in text and len(text) < 200_000


def test_highest_and_lowest_have_each_image_once():
    candidates = [Candidate(value, name, [IMAGE], f"{name} {value}") for name in "ab" for value in (1.0, 2.0)]
    highest, lowest = highest_and_lowest(candidates, "PSNR", "image")
    assert (highest.title, lowest.title) == ("Highest PSNR: image", "Lowest PSNR: image")
    assert [caption for _, caption in highest.images] == ["a 2.0", "b 2.0"]
    assert [caption for _, caption in lowest.images] == ["a 1.0", "b 1.0"]
    assert highest_and_lowest([], "PSNR", "image") == []
