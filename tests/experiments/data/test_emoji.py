"""The embedded corpus: what is committed keeps its promises, and the builder is deterministic."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

from experiments.data import build_emoji
from experiments.data.backgrounds import AUGMENTATIONS, BACKGROUNDS, Augmentation, composite, no_augmentation
from experiments.data.emoji import AugmentedEmojiImages, EmojiImages, read_table

CORPUS = "assets/emoji"


@pytest.fixture(scope="module")
def drawings() -> EmojiImages:
    return EmojiImages(CORPUS, build_emoji.SPLITS)


@pytest.fixture(scope="module")
def captions() -> datasets.Dataset:
    return read_table(f"{CORPUS}/captions.parquet")


def test_load_dataset_opens_the_corpus(tmp_path):
    split = datasets.load_dataset(CORPUS, "drawings", split="fid", cache_dir=str(tmp_path))
    assert split[0]["image"].size == (64, 64)
    assert split[0]["licence"] in {"Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0", "MIT"}


def test_every_concept_has_seven_designers_and_three_references(drawings):
    by_concept = {}
    for row in drawings.rows:
        by_concept.setdefault(row["concept"], []).append(row)
    assert len(by_concept) == 320
    assert {row["group"] for row in drawings.rows} == set(build_emoji.GROUPS)
    for rows in by_concept.values():
        splits = Counter(row["split"] for row in rows)
        assert len({row["designer"] for row in rows}) == len(rows) >= 7
        assert splits["reference"] == 3 and splits["fid"] >= 1 and splits["corpus"] >= 3


def test_captions_show_only_corpus_drawings(drawings, captions):
    corpus = {row["image_id"] for row in drawings.rows if row["split"] == "corpus"}
    assert set(captions["image_id"]) <= corpus
    assert len(captions) == pytest.approx(250_000, rel=0.02)


def test_captions_are_rebuilt_exactly(drawings, captions):
    assert build_emoji.captions(sorted(drawings.rows, key=lambda row: row["image_id"])) == captions.to_dict()


def test_caption_names_the_background_of_its_picture(captions):
    for row in captions.select(range(0, len(captions), 2500)):
        named = [color for color in BACKGROUNDS if f"a {color} background" in row["caption"]]
        assert named in ([], [Augmentation.from_seed(row["augmentation_seed"]).background])


def _archive(folder, package, members):
    with tarfile.open(build_emoji.archive_path(folder, package), "w:gz") as tar:
        for name, content in members.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def packages(tmp_path):
    """Nine tiny icon sets that draw two concepts, in the form that npm brings."""
    folder = tmp_path / "packages"
    folder.mkdir()
    names = {e: {"name": n, "group": "Animals & Nature"} for e, n in (("🐪", "camel"), ("🐻", "bear"))}
    _archive(folder, build_emoji.UNICODE_NAMES, {"data-by-emoji.json": names})
    for k, designer in enumerate(build_emoji.DESIGNERS):
        icons = {
            "camel": {"body": f'<circle cx="8" cy="8" r="{2 + k / 2}" fill="#a52"/>'},
            "bear": {"body": f'<rect width="{4 + k}" height="9" fill="#321"/>'},
        }
        coded = {"1f42a": "camel", "1f43b": "bear"} if k % 2 else {}
        _archive(folder, designer.scoped, {
            "icons.json": {"icons": icons, "width": 16, "height": 16},
            "info.json": {"license": {"spdx": "MIT"}},
            "chars.json": coded,
        })  # fmt: skip
    return folder


TABLE = "emoji,unicode_name,name,phrase\n🐪,camel,camel,a camel\n🐻,bear,bear,a bear\n"


def test_built_twice_the_same_bytes(packages, tmp_path):
    built = []
    (tmp_path / "concepts.csv").write_text(TABLE)
    for name in ("first", "second"):
        folder = tmp_path / name
        build_emoji.build(tmp_path / "concepts.csv", folder, packages)
        built.append({path.name: path.read_bytes() for path in folder.glob("*.parquet")})
    assert built[0] == built[1]
    assert set(built[0]) == {
        "captions.parquet",
        *(f"drawings-{split}.parquet" for split in build_emoji.SPLITS),
    }


def test_the_builder_writes_below_runs_unless_told(packages, tmp_path, monkeypatch):
    shipped = {path: path.stat().st_mtime_ns for path in Path(CORPUS).iterdir()}
    table = tmp_path / "concepts.csv"
    table.write_text(TABLE)
    monkeypatch.chdir(tmp_path)
    build_emoji.main(["--concepts", str(table), "--packages", str(packages), "--size", "16"])
    assert {path.name for path in (tmp_path / "runs" / "emoji").iterdir()} >= {"captions.parquet"}
    monkeypatch.undo()
    assert shipped == {path: path.stat().st_mtime_ns for path in Path(CORPUS).iterdir()}
    assert Path(CORPUS).resolve() / "concepts.csv" == build_emoji.CONCEPTS


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE, ["--size", "0"], "--size 0: give a side in pixels"),
        (TABLE, ["--packages", "nowhere"], "nowhere is not a folder"),
        (TABLE, ["--concepts", "none.csv"], "none.csv does not exist: name a table of concepts"),
        ("emoji,name\n🐪,camel\n", [], "has no column 'unicode_name'"),
        ("", [], "has no column 'emoji', or no row"),
        (TABLE + "🦄,unicorn,unicorn,a unicorn\n", [], "'unicorn' has drawings of 0 designers"),
        (TABLE, ["--output", "concepts.csv/below"], "concepts.csv/below"),
    ],
)
def test_what_the_builder_cannot_use_is_said(packages, tmp_path, monkeypatch, capsys, table, options, message):
    monkeypatch.chdir(tmp_path)
    Path("concepts.csv").write_text(table)
    with pytest.raises(SystemExit) as caught:
        build_emoji.main(["--concepts", "concepts.csv", "--packages", str(packages), *options])
    assert caught.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_a_package_that_is_no_package_is_named(packages, tmp_path):
    build_emoji.archive_path(packages, build_emoji.UNICODE_NAMES).write_bytes(b"no archive")
    (tmp_path / "concepts.csv").write_text(TABLE)
    with pytest.raises(ValueError, match=r"unicode-emoji-json-.*\.tgz has no readable data-by-emoji\.json"):
        build_emoji.build(tmp_path / "concepts.csv", tmp_path / "out", packages)


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "captions.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"captions\.parquet cannot be read as a table"):
        read_table(tmp_path / "captions.parquet")


def test_augmentation_is_a_function_of_its_seed(drawings):
    image = drawings.images[0]
    pictures = [np.asarray(composite(image, Augmentation.from_seed(seed))) for seed in (7, 7, 8)]
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()
    assert Counter(Augmentation.from_seed(s).background for s in range(AUGMENTATIONS)) == dict.fromkeys(BACKGROUNDS, 8)


def test_plain_drawing_stands_in_the_middle_of_its_background(drawings):
    picture = np.asarray(composite(drawings.images[0], no_augmentation("pink")))
    border = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
    assert all((side == BACKGROUNDS["pink"]).all() for side in border)


def test_unknown_seed_and_missing_corpus_are_explained(tmp_path):
    with pytest.raises(ValueError, match="augmentation seed 48 is outside"):
        Augmentation.from_seed(48)
    with pytest.raises(ValueError, match=r"does not exist: point data\.folder"):
        EmojiImages(tmp_path, ["corpus"])


def test_augmented_drawings_are_images_in_range(drawings):
    data = AugmentedEmojiImages(drawings, augmentations=2)
    picture, concept = data[3]
    assert picture.shape == (3, 64, 64) and picture.min() >= 0 and picture.max() <= 1
    assert concept == drawings.rows[1]["concept_id"]
