"""ImageNet in Parquet files and in folders gives the same images, which are read on demand."""

import gc
import shutil
import tracemalloc
from functools import partial
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments.counting.imagenet_counts import imagenet_classes
from experiments.data import parquet as tables
from experiments.data.concepts import limit_references, select_concepts
from experiments.data.imagenet import ImageNetConcepts
from experiments.data.images import UnreadableImage
from experiments.data.splits import FolderSplit, TableSplit
from tests.fakes import file_name, imagenet_count_table, imagenet_folders, imagenet_tables, jpeg_image

CLASSES = (0, 5, 134, 999)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    imagenet_tables(folder / "tables", CLASSES, 6, 3)
    imagenet_folders(folder / "folders", CLASSES, 6, 3)
    imagenet_count_table(folder / "counts.tsv")
    return folder


def source(root, kind="tables", **changes) -> ImageNetConcepts:
    settings = {"path": str(root / kind), "counts": str(root / "counts.tsv"), "prompt": "a photo of a {name}",
             "size": None, "head": 1_000_000, "tail": 10_000}  # fmt: skip
    return ImageNetConcepts(**settings | changes)


def test_classes_have_names_prompts_counts_and_buckets(root):
    concepts = source(root).concepts()
    assert [c.name for c in concepts] == ["tench", "electric ray", "crane (n02012849)", "toilet tissue"]
    assert concepts[2].prompt == "a photo of a crane" and concepts[0].frequency == 20_000_000
    assert [c.bucket for c in concepts] == ["head", "head", "head", "tail"]
    assert [len(c.references) for c in concepts] == [6] * 4
    assert [c.name for c in select_concepts(concepts, "all", ["tail"], 0)] == ["toilet tissue"]
    assert source(root, prompt="{name} on a table").concepts()[0].prompt == "tench on a table"


def test_tables_and_folders_give_the_same_images(root):
    first, other = (limit_references(source(root, kind).concepts(), 4) for kind in ("tables", "folders"))
    for one, two in zip(first, other, strict=True):
        assert one.name == two.name
        np.testing.assert_array_equal(one.resized((16, 16)).references[:], two.resized((16, 16)).references[:])
    real = [source(root, kind).real_images().resized((8, 8)) for kind in ("tables", "folders")]
    assert sorted(i.tobytes() for i in real[0]) == sorted(i.tobytes() for i in real[1]) and len(real[0]) == 12
    drawn = [source(root, kind, real=5).real_images().resized((8, 8)) for kind in ("tables", "folders")]
    assert sorted(i.tobytes() for i in drawn[0]) == sorted(i.tobytes() for i in drawn[1]) and len(drawn[0]) == 5
    assert source(root).labeled_real_images()["tench"].resized((8, 8)).shape == (3, 3, 8, 8)


def test_order_depends_on_the_seed_only(root, tmp_path):
    imagenet_tables(tmp_path / "tables", reversed(CLASSES), 6, 3, files=3, group=2)
    shutil.copy(root / "counts.tsv", tmp_path)

    def pixels(folder, **changes):
        return [c.resized((8, 8)).references[:].tobytes() for c in source(folder, **changes).concepts()]

    assert pixels(root) == pixels(tmp_path)
    assert pixels(root) != pixels(root, shuffle_seed=1)


def test_images_belong_to_their_class(root):
    """The lower half of a synthetic image has the color of its class."""
    for concept in source(root).concepts():
        index = next(c.index for c in imagenet_classes() if c.name == concept.name)
        with Image.open(BytesIO(jpeg_image(index, 0, 20))) as file:
            color = np.asarray(file)[-1, 0].astype(int)
        shown = concept.resized((20, 20)).references[0][:, -1, 0].astype(int)
        assert np.abs(shown - color).max() <= 4


@pytest.mark.parametrize("kind", ["tables", "folders"])
def test_images_are_read_on_demand(root, kind, monkeypatch):
    read = []
    monkeypatch.setattr(tables, "read_bytes", lambda data, name, size: read.append(name) or np.zeros((3, *size)))
    monkeypatch.setattr("experiments.data.splits.read_image", lambda path, size: read.append(path) or np.zeros(1))
    concepts = [c.resized((8, 8)) for c in limit_references(source(root, kind).concepts(), 2)]
    assert len({c.key for c in concepts}) == 4 and source(root, kind).real_images() and not read
    _ = concepts[1].references[1]
    assert len(read) == 1


def test_keys_depend_on_the_files(root, tmp_path):
    def keys(folder, kind, size=(8, 8), **changes):
        return [c.resized(size).key for c in limit_references(source(folder, kind, **changes).concepts(), 2)]

    for kind in ("tables", "folders"):
        assert keys(root, kind) == keys(root, kind) != keys(root, kind, (16, 16))
    shutil.copytree(root / "folders", tmp_path / "folders")
    shutil.copy(root / "counts.tsv", tmp_path)
    assert keys(tmp_path, "folders") == keys(root, "folders")
    for path in (tmp_path / "folders" / "train" / "n01440764").iterdir():
        path.write_bytes(jpeg_image(3, 1, 33))
    changed, before = keys(tmp_path, "folders"), keys(root, "folders")
    assert changed[0] != before[0] and changed[1:] == before[1:]


def test_classes_are_selected_by_index_id_or_name(root):
    concepts = source(root, classes=[999, "n01440764", "electric ray"]).concepts()
    assert [c.name for c in concepts] == ["toilet tissue", "tench", "electric ray"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": ["crane"]},
            r"data\.classes: 'crane' names the classes \[134, 517\]: write class indices",
        ),
        ({"classes": ["maillot"]}, r"data\.classes: 'maillot' names the classes \[638, 639\]"),
        ({"classes": ["unicorn"]}, r"'unicorn' is not a class of ImageNet-1k"),
        ({"classes": [0, "tench"]}, r"data\.classes contains tench twice, as 0 and tench"),
        ({"classes": [1]}, r"has no training images of goldfish \(n01443537\): exclude this class"),
        ({"path": "/nowhere"}, r"data\.path=/nowhere cannot be opened"),
        ({"prompt": "a photo"}, r"must contain \{name\}"),
    ],
)
def test_invalid_settings_give_one_line_errors(root, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        source(root, **changes).concepts()
    assert "\n" not in str(caught.value)


IMAGENETTE = ["tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck",
              "gas pump", "golf ball", "parachute"]  # fmt: skip
CLASSES_OF_IMAGENETTE = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
HUB_NAMES = [", ".join(c.synonyms) for c in imagenet_classes()]
HUB_NAMES[517] = "crane2"  # because the names of a ClassLabel must differ


def write_table(path: Path, labels, names=None, column="label") -> str:
    """Write a Parquet file with one image per label; with ``names``, a ClassLabel is declared as `datasets` does."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array([{"bytes": jpeg_image(0, 0), "path": None}] * len(labels), kind)})
    table = table.append_column(column, labels if isinstance(labels, pa.Array) else pa.array(labels))
    if names is not None:
        features = datasets.Features({"image": datasets.Image(), column: datasets.ClassLabel(names=names)})
        table = table.replace_schema_metadata(features.arrow_schema.metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def labels_of(split: TableSplit) -> list[int]:
    """The class of each row."""
    rows = {row: index for index in split.classes() for _, row in split.of_classes([index])[0]}
    return [rows[k] for k in range(len(rows))]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (list(range(10)), IMAGENETTE, CLASSES_OF_IMAGENETTE),
        ([9, 0], IMAGENETTE, [701, 0]),
        (pa.array([2, 1], pa.uint8()).dictionary_encode(), IMAGENETTE, [482, 217]),
        ([0, 1], ["n03394916", "great_white_shark"], [566, 2]),
        ([0, 134, 517, 638, 639, 999], HUB_NAMES, [0, 134, 517, 638, 639, 999]),
        ([0, 1], list(reversed(HUB_NAMES)), [999, 998]),
        ([207, 5], None, [207, 5]),
        (["n01440764", "golden retriever"], None, [0, 207]),
        (pa.array(["tench", "golf ball", "tench"]).dictionary_encode(), None, [0, 574, 0]),
        (["207", "tench, Tinca tinca"], None, [207, 0]),
    ],
)
def test_declared_names_determine_the_classes(tmp_path, labels, names, expected):
    path = write_table(tmp_path / "a.parquet", labels, names)
    assert labels_of(TableSplit([path], 0)) == expected
    if names is not None:
        assert labels_of(TableSplit([write_table(tmp_path / "b.parquet", labels)], 0, names=names)) == expected


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([207, None, None, 5], None, "has no label in row 1"),
        (["tench", None], None, "has no label in row 1"),
        ([207.0, float("nan")], None, r"has the label 207\.0 in row 0: labels must be integers or strings"),
        ([True, False], None, "has the label True in row 0"),
        ([0, -1], None, "has the label -1 in row 1: ImageNet-1k has the classes 0 to 999"),
        ([0, 1000], None, "has the label 1000 in row 1"),
        ([0, -1], IMAGENETTE, "has the label -1 in row 1: the file declares names for the labels 0 to 9 only"),
        ([0, 10], IMAGENETTE, "has the label 10 in row 1"),
        ([0, None], IMAGENETTE, "has no label in row 1"),
        ([0, 1], ["tench", "unicorn"], "has the label 1 in row 1: 'unicorn' is not a class of ImageNet-1k"),
        ([0, 1], ["tench", "crane"], r"'crane' names the classes \[134, 517\]"),
        (["tench", "unicorn"], None, "has the label 'unicorn' in row 1: 'unicorn' is not a class"),
    ],
)
def test_labels_that_are_no_classes_are_errors(tmp_path, labels, names, message):
    path = write_table(tmp_path / "a.parquet", labels, names)
    with pytest.raises(ValueError, match=rf"a\.parquet {message}" if "'crane'" not in message else message):
        TableSplit([path], 0)


def test_names_of_the_dataset_card_determine_the_classes(root, tmp_path):
    """A file without metadata, and the features in README.md, as the Hub writes them."""
    for split in ("train", "validation"):
        write_table(tmp_path / "data" / f"{split}-00000-of-00001.parquet", pa.array([1, 0]), column="class")
    names = "\n".join(f"          '{k}': {name}" for k, name in enumerate(["golf ball", "parachute"]))
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: class\n    dtype:\n"
        f"      class_label:\n        names:\n{names}\n---\n"
    )
    shutil.copy(root / "counts.tsv", tmp_path)
    concepts = source(tmp_path, ".", label="class").concepts()
    assert [c.name for c in concepts] == ["golf ball", "parachute"]
    with pytest.raises(ValueError, match=r"no column 'label' \(its columns: image, class\): set data\.source\.label"):
        source(tmp_path, ".").concepts()


def test_every_file_needs_an_image_column(root, tmp_path):
    first = root / "tables" / "data" / "train-00000-of-00002.parquet"
    pq.write_table(pq.read_table(first).drop_columns(["image"]), tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match=r"bare\.parquet has no column 'image' of images .*: set data\.source\.image"):
        TableSplit([str(first), str(tmp_path / "bare.parquet")], 0)


def test_files_that_are_no_images_are_ignored_with_a_warning(root, tmp_path):
    shutil.copytree(root / "folders", tmp_path / "folders")
    shutil.copy(root / "counts.tsv", tmp_path)
    tench = tmp_path / "folders" / "train" / "n01440764"
    (tmp_path / "folders" / "train" / "LICENSE").write_text("text")
    for name in ("desktop.ini", "Thumbs.db", ".hidden", "n01440764_boxes.txt", "a.xml"):
        (tench / name).write_bytes(b"other")
        (tmp_path / "folders" / "val" / "n01440764" / name).write_bytes(b"other")
    (tench / "folder").mkdir()
    with pytest.warns(UserWarning) as caught:
        tables, folders = source(root).concepts(), source(tmp_path, "folders").concepts()
    warnings = [str(w.message) for w in caught if "ignored" in str(w.message)]
    assert len(warnings) == 2 and "train/LICENSE" in warnings[0] and "n01440764/n01440764_boxes.txt" in warnings[1]
    assert [len(c.references) for c in folders] == [len(c.references) for c in tables]
    assert folders[0].resized((8, 8)).references[:].shape == (6, 3, 8, 8)
    with pytest.warns(UserWarning, match=r"ignored.*n01440764/a\.xml, n01440764/n01440764_boxes\.txt\."):
        assert len(source(tmp_path, "folders").real_images()) == 12
    with pytest.warns(UserWarning, match="ignored"):
        assert len(source(tmp_path, "folders").labeled_real_images()["tench"]) == 3


def test_flat_validation_folder_ignores_other_files(root, tmp_path):
    flat = tmp_path / "folders" / "val"
    flat.mkdir(parents=True)
    for path in (root / "folders" / "val").rglob("*.JPEG"):
        shutil.copy(path, flat)
    (flat / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n")
    shutil.copy(root / "counts.tsv", tmp_path)
    with pytest.warns(UserWarning, match="val/ILSVRC2012_validation_ground_truth.txt"):
        real = source(tmp_path, "folders").real_images().resized((8, 8))
    assert real[:].shape == (12, 3, 8, 8)


def test_folders_without_images_are_errors(tmp_path):
    tench = tmp_path / "train" / "n01440764"
    tench.mkdir(parents=True)
    (tench / "boxes.txt").write_text("text")
    with pytest.raises(ValueError, match=r"n01440764 contains no images that Pillow reads, only n01440764/boxes\.txt"):
        FolderSplit(tmp_path / "train", 0).of_classes([0])
    with pytest.raises(ValueError, match="n01440764 contains no images: it needs one folder of images per class"):
        FolderSplit(tench, 0)


def test_damaged_image_is_named(root, tmp_path):
    data = {"bytes": b"no image", "path": "n01440764_1.JPEG"}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array([data], kind), "label": [0]}), tmp_path / "bad.parquet")
    split = TableSplit([str(tmp_path / "bad.parquet")], 0)
    with pytest.raises(UnreadableImage, match=r"row 0 of .*bad\.parquet cannot be read as an image"):
        split.read(split.of_classes([0])[0][0], (8, 8))


def test_remote_tables_are_read_through_fsspec(root):
    """An in-memory file system stands for the Hub."""
    import fsspec

    memory = fsspec.filesystem("memory")
    files = sorted((root / "tables" / "data").glob("train-*"))
    for file in files:
        memory.pipe(f"/imagenet/{file.name}", file.read_bytes())
    local = TableSplit(list(map(str, files)), 0)
    remote = TableSplit([f"memory://imagenet/{f.name}" for f in files], 0)
    for index in CLASSES:
        for one, two in zip(*local.of_classes([index]), *remote.of_classes([index]), strict=True):
            assert local.identity(one) == remote.identity(two)
            np.testing.assert_array_equal(local.read(one, (8, 8)), remote.read(two, (8, 8)))


def write_images(kind: str, folder: Path) -> partial:
    """5,000 images of 100 classes on disk; returns a constructor of their split."""
    classes, per_class, data = range(100), 50, jpeg_image(5, 0)
    if kind == "tables":
        values = pa.array([data] * 5_000, pa.binary())
        names = pa.array([f"{imagenet_classes()[k].wnid}_{n}.JPEG" for k in classes for n in range(per_class)])
        images = pa.StructArray.from_arrays([values, names], ["bytes", "path"])
        table = pa.table({"image": images, "label": np.repeat(classes, per_class)})
        pq.write_table(table, folder / "train.parquet", row_group_size=100)
        return partial(TableSplit, [str(folder / "train.parquet")], 0)
    (folder / "image").write_bytes(data)
    for k in classes:
        class_folder = folder / "train" / imagenet_classes()[k].wnid
        class_folder.mkdir(parents=True)
        for n in range(per_class):
            (class_folder / file_name(k, n, "train")).hardlink_to(folder / "image")
    return partial(FolderSplit, folder / "train", 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tables", "folders"])
def test_memory_does_not_grow_with_images(tmp_path, kind):
    """At this size the pixels would take 78 MB; the index may take 150 bytes per image."""
    make_split = write_images(kind, tmp_path)
    make_split().sample(None)  # fills caches that do not depend on the data
    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        split = make_split()
        items = split.sample(None)
        gc.collect()
        index_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        total = sum(int(split.read(items[k], (72, 72))[0, 0, 0]) for k in range(0, len(items), 50))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(items) == 5_000 and total > 0
    assert index_bytes < 750_000
    assert peak < 8e6
    assert pa.total_allocated_bytes() - arrow_before < 8e6
