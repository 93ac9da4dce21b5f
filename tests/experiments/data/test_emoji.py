"""The emoji corpus in the repository has the documented properties, and building the corpus is deterministic."""

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
from experiments.data.count_emoji import count_captions
from experiments.data.emoji import AugmentedEmojiImages, EmojiImages, read_caption_counts, read_table

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


def test_designers_and_splits_of_every_concept(drawings):
    by_concept = {}
    for row in drawings.rows:
        by_concept.setdefault(row["concept"], []).append(row)
    assert len(by_concept) == 320
    assert {row["group"] for row in drawings.rows} == set(build_emoji.GROUPS)
    for rows in by_concept.values():
        splits = Counter(row["split"] for row in rows)
        assert len({row["designer"] for row in rows}) == len(rows) >= 7
        assert splits["reference"] == 3 and splits["fid"] >= 1 and splits["corpus"] >= 3


@pytest.mark.slow
def test_captions_show_only_corpus_drawings(drawings, captions):
    corpus = {row["image_id"] for row in drawings.rows if row["split"] == "corpus"}
    assert set(captions["image_id"]) <= corpus
    assert len(captions) == pytest.approx(250_000, rel=0.02)


@pytest.mark.slow
def test_captions_are_rebuilt_exactly(drawings, captions):
    assert build_emoji.captions(sorted(drawings.rows, key=lambda row: row["image_id"])) == captions.to_dict()


def test_stored_caption_counts_equal_a_recount():
    rows = count_captions(Path(CORPUS))
    assert {row["name"]: row["captions"] for row in rows} == read_caption_counts(CORPUS)


def test_corpus_without_counts_names_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"concepts\.csv has no readable column captions .*: run .*count_emoji"):
        read_caption_counts(tmp_path)


def test_caption_names_the_background(captions):
    for row in captions.select(range(0, len(captions), 2500)):
        mentioned = [color for color in BACKGROUNDS if f"a {color} background" in row["caption"]]
        assert mentioned in ([], [Augmentation.from_seed(row["augmentation_seed"]).background])


def _archive(folder, package, members):
    with tarfile.open(build_emoji.archive_path(folder, package), "w:gz") as tar:
        for name, content in members.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def packages(tmp_path):
    """Nine tiny icon sets of two concepts, as packages of npm."""
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


def test_building_is_deterministic(packages, tmp_path):
    outputs = []
    (tmp_path / "concepts.csv").write_text(TABLE)
    for name in ("first", "second"):
        folder = tmp_path / name
        build_emoji.build(tmp_path / "concepts.csv", folder, packages)
        outputs.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert outputs[0] == outputs[1]
    assert set(outputs[0]) == {
        "captions.parquet",
        "concepts.csv",
        *(f"drawings-{split}.parquet" for split in build_emoji.SPLITS),
    }


def test_builder_writes_to_runs_by_default(packages, tmp_path, monkeypatch):
    shipped = {path: path.stat().st_mtime_ns for path in Path(CORPUS).iterdir()}
    table = tmp_path / "concepts.csv"
    table.write_text(TABLE)
    monkeypatch.chdir(tmp_path)
    build_emoji.main(["--concepts", str(table), "--packages", str(packages), "--size", "16"])
    assert {path.name for path in (tmp_path / "runs" / "emoji").iterdir()} >= {"captions.parquet"}
    monkeypatch.undo()
    assert shipped == {path: path.stat().st_mtime_ns for path in Path(CORPUS).iterdir()}
    assert Path(CORPUS).resolve() / "concepts.csv" == build_emoji.CONCEPTS_TABLE


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE, ["--size", "0"], "--size 0: must be an integer >= 1"),
        (TABLE, ["--packages", "nowhere"], "nowhere is not a folder"),
        (TABLE, ["--concepts", "none.csv"], "none.csv does not exist: pass an existing table of concepts"),
        ("emoji,name\n🐪,camel\n", [], "has no column 'unicode_name'"),
        ("", [], "has no column 'emoji', or no row"),
        (TABLE + "🦄,unicorn,unicorn,a unicorn\n", [], "'unicorn' has drawings of 0 designers"),
        (TABLE, ["--output", "concepts.csv/below"], "concepts.csv/below"),
    ],
)
def test_builder_rejects_invalid_input(packages, tmp_path, monkeypatch, capsys, table, options, message):
    monkeypatch.chdir(tmp_path)
    Path("concepts.csv").write_text(table)
    with pytest.raises(SystemExit) as caught:
        build_emoji.main(["--concepts", "concepts.csv", "--packages", str(packages), *options])
    assert caught.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_invalid_package_is_named(packages, tmp_path):
    build_emoji.archive_path(packages, build_emoji.UNICODE_NAMES).write_bytes(b"not an archive")
    (tmp_path / "concepts.csv").write_text(TABLE)
    with pytest.raises(ValueError, match=r"unicode-emoji-json-.*\.tgz has no readable data-by-emoji\.json"):
        build_emoji.build(tmp_path / "concepts.csv", tmp_path / "out", packages)


def test_damaged_table_is_named(tmp_path):
    (tmp_path / "captions.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"captions\.parquet cannot be read as a table"):
        read_table(tmp_path / "captions.parquet")


def test_augmentation_is_a_function_of_its_seed(drawings):
    image = drawings.images[0]
    images = [np.asarray(composite(image, Augmentation.from_seed(seed))) for seed in (7, 7, 8)]
    assert (images[0] == images[1]).all() and (images[0] != images[2]).any()
    assert Counter(Augmentation.from_seed(s).background for s in range(AUGMENTATIONS)) == dict.fromkeys(BACKGROUNDS, 8)


def test_drawing_without_augmentation_is_centered(drawings):
    image = np.asarray(composite(drawings.images[0], no_augmentation("pink")))
    border = [image[0], image[-1], image[:, 0], image[:, -1]]
    assert all((side == BACKGROUNDS["pink"]).all() for side in border)


def test_unknown_seed_and_missing_corpus_are_errors(tmp_path):
    with pytest.raises(ValueError, match="augmentation seed 48 does not exist"):
        Augmentation.from_seed(48)
    with pytest.raises(ValueError, match=r"does not exist: set data\.folder"):
        EmojiImages(tmp_path, ["corpus"])


def test_augmented_drawings_are_images_in_range(drawings):
    data = AugmentedEmojiImages(drawings, augmentations=2)
    image, concept = data[3]
    assert image.shape == (3, 64, 64) and image.min() >= 0 and image.max() <= 1
    assert concept == drawings.rows[1]["concept_id"]
