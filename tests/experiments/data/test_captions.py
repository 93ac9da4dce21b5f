"""Captioned images: COCO, tables with image files, and tables that contain the images."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.data.captions import CaptionedImages
from tests.fakes import captions, jpeg_image

TEXTS = ["a dog on a lawn", "a cat", "two dogs"]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return captions(tmp_path_factory.mktemp("coco"), TEXTS)


def of_coco(coco, **changes) -> CaptionedImages:
    settings = {"captions": str(coco / "annotations.json"), "images": str(coco / "images")}
    return CaptionedImages(**settings | changes)


def test_first_caption_of_coco_is_the_prompt(coco):
    pairs = of_coco(coco).captioned()
    assert list(pairs.captions) == TEXTS and pairs.names[0] == "000000000000.jpg"
    assert pairs.images.resized((8, 8)).shape == (3, 3, 8, 8)
    assert list(of_coco(coco, caption_contains="dog").captioned().captions) == [TEXTS[0], TEXTS[2]]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_tables_of_images_and_captions(coco, tmp_path, suffix):
    table = pd.DataFrame({"file": [f"{k:012d}.jpg" for k in (0, 0, 1)], "text": ["a dog on a lawn", "b", " a cat "]})
    path = tmp_path / f"pairs.{suffix}"
    if suffix == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    pairs = of_coco(coco, captions=str(path), image="file", caption="text").captioned()
    assert list(pairs.captions) == ["a dog on a lawn", "a cat"] and len(pairs.images) == 2
    with pytest.raises(ValueError, match=r"has no column 'image' \(its columns: file, text\): set data.source.image"):
        of_coco(coco, captions=str(path)).captioned()


def test_table_contains_images_and_caption_lists(coco, tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": jpeg_image(k, k), "path": None} for k in range(3)], kind)
    texts = pa.array([[text, "another"] for text in TEXTS])
    pq.write_table(pa.table({"image": images, "caption": texts}), tmp_path / "pairs.parquet")
    pairs = CaptionedImages(captions=str(tmp_path / "pairs.parquet"), images=None, caption_contains="dog").captioned()
    assert list(pairs.captions) == [TEXTS[0], TEXTS[2]]
    files = of_coco(coco, caption_contains="dog").captioned()
    assert (pairs.images.resized((8, 8))[:] == files.images.resized((8, 8))[:]).all()


def test_invalid_settings_are_errors(coco, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps({"images": []}))
    for changes, message in (
        ({"captions": "/nowhere.json"}, r"data\.captions=/nowhere\.json is not a file"),
        ({"images": None}, r"data\.images has no value"),
        ({"images": "/nowhere"}, r"data\.images=/nowhere is not a folder"),
        ({"captions": str(tmp_path / "bad.json")}, r"is not a file of COCO captions \(KeyError: 'annotations'\)"),
        ({"caption_contains": "zebra"}, r"no image with a caption that contains 'zebra'"),
    ):
        with pytest.raises(ValueError, match=message):
            of_coco(coco, **changes).captioned()
    with pytest.raises(ValueError, match=r"data=captions has images with captions but no concepts"):
        of_coco(coco).concepts()
