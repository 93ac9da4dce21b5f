"""Captioned images: COCO, tables with image files, and tables that contain the images."""

import json

import numpy as np
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
    assert list(of_coco(coco, caption_contains="Dog").captioned().captions) == [TEXTS[0]]
    assert list(of_coco(coco, caption_contains="dogs").captioned().captions) == [TEXTS[2]]


def test_folder_of_images_with_text_files(tmp_path):
    for name, text in (("b", "a cat"), ("a", "two dogs")):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg_image(0, 0))
        (tmp_path / f"{name}.txt").write_text(f"{text}\n")
    source = CaptionedImages(captions=str(tmp_path), images=None)
    pairs = source.captioned()
    assert (list(pairs.names), list(pairs.captions)) == (["a.jpg", "b.jpg"], ["two dogs", "a cat"])
    assert pairs.images.resized((8, 8)).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"data\.images=x: must be null, because data\.captions="):
        CaptionedImages(captions=str(tmp_path), images="x").captioned()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"data\.captions: .*a\.jpg has no caption; write its caption to .*a\.txt"):
        source.captioned()


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
    assert list(pairs.captions) == [TEXTS[0]]
    files = of_coco(coco, caption_contains="dog").captioned()
    assert (pairs.images.resized((8, 8))[:] == files.images.resized((8, 8))[:]).all()


def test_invalid_settings_are_errors(coco, tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps({"images": []}))
    for changes, message in (
        ({"captions": "/nowhere.json"}, r"data\.captions=/nowhere\.json does not exist"),
        ({"images": None}, r"data\.images has no value"),
        ({"images": "/nowhere"}, r"data\.images=/nowhere is not a folder"),
        ({"captions": str(tmp_path / "bad.json")}, r"is not a file of COCO captions \(KeyError: 'annotations'\)"),
        ({"caption_contains": "zebra"}, r"no image with a caption that contains 'zebra'"),
    ):
        with pytest.raises(ValueError, match=message):
            of_coco(coco, **changes).captioned()
    with pytest.raises(ValueError, match=r"data=captions has images with captions but no concepts"):
        of_coco(coco).concepts()


ROWS = {
    "empty": [("1.png", "a cat"), ("2.png", None), ("3.png", "a cathedral at night"), ("4.png", " ")],
    "words that pandas drops": [("1.png", "None"), ("2.png", "NA"), ("3.png", "null"), ("4.png", "a cat")],
    "zeros": [("0001", "007"), ("0002", "1984"), ("1e3", "1e3"), ("nan", "True")],
    "quotes": [("1.png", "a cat"), ("2.png", '"open'), ("3.png", "a dog"), ("4.png", 'word open"'), ("5.png", "end")],
    "first of several": [("1.png", ""), ("1.png", "a cat"), ("1.png", "a dog")],
}


def write_captions(path, rows):
    """Write rows of image and caption in the format of the suffix; COCO for .json."""
    suffix = path.suffix
    if suffix in (".csv", ".tsv"):
        cells = [("image", "caption"), *((name, caption or "") for name, caption in rows)]
        if suffix == ".csv":
            lines = [",".join('"{}"'.format(cell.replace('"', '""')) for cell in row) for row in cells]
        else:
            lines = ["\t".join(row) for row in cells]
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"image": name, "caption": caption}) for name, caption in rows))
    elif suffix == ".json":
        names = list(dict(rows))
        images = [{"id": k, "file_name": name} for k, name in enumerate(names)]
        annotations = [{"id": k, "image_id": names.index(n), "caption": c} for k, (n, c) in enumerate(rows)]
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
    else:
        images = [{"bytes": b"", "path": name} for name, _ in rows]
        pq.write_table(pa.table({"image": images, "caption": [caption for _, caption in rows]}), path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_captions_are_read_letter_by_letter_in_every_format(tmp_path, suffix, rows):
    write_captions(tmp_path / f"captions{suffix}", rows)
    pairs = CaptionedImages(captions=str(tmp_path / f"captions{suffix}"), images=str(tmp_path)).captioned()
    filled = [(name, caption) for name, caption in rows if caption and caption.strip()]
    if suffix == ".parquet":  # every row has its own image
        assert list(pairs.captions) == [caption for _, caption in filled]
    else:
        expected = dict(reversed(filled))
        assert list(zip(pairs.names, pairs.captions, strict=True)) == [(n, expected[n]) for n in dict(filled)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"image": "1", "caption": 7}', r"a\.jsonl: line 1 has the caption 7, which is not a string"),
        ("a.jsonl", '{"image": 1, "caption": "7"}', r"the column 'image' has 1 in line 1: write the name of an"),
        ("a.jsonl", '{"image": "1", "caption": NaN}', "has the caption nan"),
        ("a.jsonl", '{"image": "1"}\n{"caption": "a"}', "the column 'image' has None in line 2"),
        ("a.jsonl", "[1]", r"has \[1\] in line 1: write one JSON object per line"),
        ("a.jsonl", "{", "cannot be read as a table"),
        ("a.csv", "image,caption\n1.png,a,b", "has 3 cells in row 2 and 2 in its header"),
        ("a.csv", "image,caption,caption\n1.png,a,b", "has two columns 'caption'"),
        ("a.csv", 'image,caption\n1.png,"a', "quotation mark that is not closed"),
        ("a.csv", "image,caption\n,a", "the column 'image' has '' in row 2"),
        ("a.csv", "", "has no column 'image'"),
        ("a.json", '{"images": [], "annotations": [{"id": 0, "image_id": 0, "caption": 7}]}', "annotation 0 has the"),
        ("a.json", '{"images": [{"id": 0, "file_name": 7}], "annotations": []}', "image 0 has the file_name 7"),
    ],
)
def test_rows_that_are_no_captions_are_errors(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        CaptionedImages(captions=str(tmp_path / name), images=str(tmp_path)).captioned()
    assert name in str(caught.value)


def test_parquet_captions_must_be_strings(tmp_path):
    write_captions(tmp_path / "a.parquet", [("1.png", np.nan)])
    with pytest.raises(ValueError, match=r"a\.parquet: row 0 has the caption nan"):
        CaptionedImages(captions=str(tmp_path / "a.parquet"), images=None).captioned()
    with pytest.raises(ValueError, match=r"no column 'text' .*: set data\.source\.caption"):
        CaptionedImages(captions=str(tmp_path / "a.parquet"), images=None, caption="text").captioned()
