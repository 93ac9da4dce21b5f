"""Files of names and synonyms are read correctly, and invalid files are reported."""

import json

import pytest

from experiments.counting.matcher import patterns
from experiments.counting.names import read_names
from tests.experiments.counting.captions import batch_counts


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.txt", "tench\tTinca tinca\n\ncat\n"),
        ("a.tsv", "\ufefftench\tTinca tinca\ncat\tcat\n"),
        ("a.csv", "tench, Tinca tinca\ncat\n"),
        ("a.json", '{"tench": ["Tinca tinca"], "cat": []}'),
    ],
)
def test_every_layout_gives_the_same_names(tmp_path, file, content):
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert read_names(str(tmp_path / file)) == {"tench": ("tench", "Tinca tinca"), "cat": ("cat",)}


@pytest.mark.parametrize("suffix", ["txt", "tsv", "csv", "json"])
def test_names_are_read_letter_by_letter(tmp_path, suffix):
    rows = [["None", "NA"], ["null", "nan"], ["007", "1e3"], ["True", "#N/A"]]
    lines = "".join(("," if suffix == "csv" else "\t").join(row) + "\n" for row in rows)
    path = tmp_path / f"a.{suffix}"
    path.write_text(json.dumps({row[0]: row[1:] for row in rows}) if suffix == "json" else lines)
    assert read_names(str(path)) == {row[0]: tuple(row) for row in rows}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", "cat\ncat\tpuss\n", "'cat' twice"),
        ("a.json", '{"cat": [], "cat": []}', "'cat' twice"),
        ("a.json", '{"cat": "puss"}', "a list of synonyms"),
        ("a.json", '{"cat": [1]}', "a list of synonyms"),
        ("a.json", "[3]", "a list of synonyms"),
        ("a.json", "3", "a list of synonyms"),
        ("a.json", '["cat"]', "a list of synonyms"),
        ("a.json", "{", "cannot be read"),
        ("a.txt", "\n", "contains no names"),
    ],
)
def test_invalid_files_are_errors(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_names(str(tmp_path / file))


def test_names_without_letters_are_errors():
    with pytest.raises(ValueError, match="'!!!' has no letter or digit"):
        patterns({"!!!": ("!!!",)})


def test_imagenet_names_and_synonyms():
    names = read_names("imagenet1k")
    assert len(names) == 1000 and names["crane (n02012849)"] == ("crane",)
    captions = ["a tench", "Tinca tinca", "two cranes", "JACK-O-LANTERNS"]
    counts = batch_counts(names, captions)
    assert {name: n for name, n in counts.items() if n} == {
        "tench": 2, "crane (n02012849)": 1, "crane (n03126707)": 1, "jack-o'-lantern": 1,
        "jackfruit": 1,
    }  # fmt: skip  # jack is a synonym of jackfruit
