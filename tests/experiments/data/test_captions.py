"""Captioned images: COCO's form, tables with files, tables with the images inside."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.data.captions import CaptionedImages
from tests.fakes import captions, picture

TEXTS = ["a dog on a lawn", "a cat", "two dogs"]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return captions(tmp_path_factory.mktemp("coco"), TEXTS)


def of_coco(coco, **changes) -> CaptionedImages:
    given = {"captions": str(coco / "annotations.json"), "images": str(coco / "images")}
    return CaptionedImages(**given | changes)


def test_of_cocos_captions_the_first_is_the_prompt(coco):
    found = of_coco(coco).captioned()
    assert list(found.captions) == TEXTS and found.names[0] == "000000000000.jpg"
    assert found.images.resized((8, 8)).shape == (3, 3, 8, 8)
    assert list(of_coco(coco, caption_contains="dog").captioned().captions) == [TEXTS[0], TEXTS[2]]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_tables_of_image_and_caption(coco, tmp_path, ending):
    table = pd.DataFrame({"file": [f"{k:012d}.jpg" for k in (0, 0, 1)], "text": ["a dog on a lawn", "b", " a cat "]})
    path = tmp_path / f"pairs.{ending}"
    if ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    found = of_coco(coco, captions=str(path), image="file", caption="text").captioned()
    assert list(found.captions) == ["a dog on a lawn", "a cat"] and len(found.images) == 2
    with pytest.raises(ValueError, match=r"has no column 'image' \(it has file, text\)"):
        of_coco(coco, captions=str(path)).captioned()


def test_a_table_may_hold_the_images_and_lists_of_captions(coco, tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": picture(k, k), "path": None} for k in range(3)], kind)
    texts = pa.array([[text, "another"] for text in TEXTS])
    pq.write_table(pa.table({"image": images, "caption": texts}), tmp_path / "pairs.parquet")
    found = CaptionedImages(captions=str(tmp_path / "pairs.parquet"), images=None, caption_contains="dog").captioned()
    assert list(found.captions) == [TEXTS[0], TEXTS[2]]
    files = of_coco(coco, caption_contains="dog").captioned()
    assert (found.images.resized((8, 8))[:] == files.images.resized((8, 8))[:]).all()


def test_what_does_not_fit_is_said(coco, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps({"images": []}))
    for changes, said in (
        ({"captions": "/nowhere.json"}, r"data\.captions=/nowhere\.json is no file"),
        ({"images": None}, r"data\.images has no value"),
        ({"images": "/nowhere"}, r"data\.images=/nowhere is no folder"),
        ({"captions": str(tmp_path / "bad.json")}, r"is no file of COCO's captions \(KeyError: 'annotations'\)"),
        ({"caption_contains": "zebra"}, r"no image with a caption whose caption holds 'zebra'"),
    ):
        with pytest.raises(ValueError, match=said):
            of_coco(coco, **changes).captioned()
    with pytest.raises(ValueError, match=r"data=captions has images with captions but no concepts"):
        of_coco(coco).concepts()
