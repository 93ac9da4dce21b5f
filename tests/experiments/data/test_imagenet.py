"""ImageNet in Parquet files and in folders: the same images, read on demand."""

import gc
import shutil
import tracemalloc
from functools import partial
from io import BytesIO
from pathlib import Path

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
            r"data\.classes: 'crane' names the classes \[134, 517\]: use class indices",
        ),
        ({"classes": ["maillot"]}, r"data\.classes: 'maillot' names the classes \[638, 639\]"),
        ({"classes": ["unicorn"]}, r"'unicorn' is not a class of ImageNet-1k"),
        ({"classes": [0, "tench"]}, r"data\.classes names tench twice, as 0 and tench"),
        ({"classes": [1]}, r"has no training images of goldfish \(n01443537\): exclude this class"),
        ({"path": "/nowhere"}, r"data\.path=/nowhere cannot be opened"),
        ({"prompt": "a photo"}, r"must contain \{name\}"),
    ],
)
def test_invalid_settings_give_one_line_errors(root, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        source(root, **changes).concepts()
    assert "\n" not in str(caught.value)


def test_labels_may_be_strings_but_not_hidden(root, tmp_path):
    first = root / "tables" / "data" / "train-00000-of-00002.parquet"
    table = pq.read_table(first)
    wnids = [imagenet_classes()[k].wnid for k in table.column("label").to_pylist()]
    pq.write_table(table.set_column(1, "label", pa.array(wnids)), tmp_path / "text.parquet")
    split = TableSplit([str(tmp_path / "text.parquet")], 0)
    assert split.classes() == list(CLASSES)
    hidden = pa.array([-1] * len(wnids), pa.int64())
    pq.write_table(table.set_column(1, "label", hidden), tmp_path / "hidden.parquet")
    with pytest.raises(ValueError, match=r"hidden\.parquet has the label -1 in row 0: ImageNet-1k has the classes"):
        TableSplit([str(tmp_path / "hidden.parquet")], 0)
    pq.write_table(table.drop_columns(["image"]), tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match=r"bare\.parquet has no column 'image' of images"):
        TableSplit([str(tmp_path / "bare.parquet")], 0)


def test_damaged_image_is_named(root, tmp_path):
    data = {"bytes": b"no image", "path": "n01440764_1.JPEG"}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array([data], kind), "label": [0]}), tmp_path / "bad.parquet")
    split = TableSplit([str(tmp_path / "bad.parquet")], 0)
    with pytest.raises(UnreadableImage, match=r"row 0 of .*bad\.parquet cannot be read as an image"):
        split.read(split.of_class(0)[0], (8, 8))


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
        for one, two in zip(local.of_class(index), remote.of_class(index), strict=True):
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


@pytest.mark.parametrize("kind", ["tables", "folders"])
def test_memory_does_not_grow_with_images(tmp_path, kind):
    """At this size the pixels would take 78 MB; the index may take 150 bytes per image."""
    make_split = write_images(kind, tmp_path)
    make_split()  # fills caches that do not depend on the data
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
