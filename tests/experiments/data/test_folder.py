"""User-provided folders of images: the files that are read, the files that are ignored, and error messages."""

import json
import pickle
import tracemalloc
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image

from experiments.data import folder as folder_module
from experiments.data.concepts import limit_references
from experiments.data.folder import FolderConcepts
from experiments.data.scan import image_files, list_folder


def source(root, **changes) -> FolderConcepts:
    settings = {
        "references": str(root / "references"), "real": str(root / "real"), "counts": str(root / "counts.tsv"),
        "prompt": "a photo of a {name}", "size": 16, "head": 100, "tail": 10,
    }  # fmt: skip
    return FolderConcepts(**settings | changes)


@pytest.fixture
def root(tmp_path):
    for kind in ("references", "real"):
        for name, color in (("tiger cat", "orange"), ("payphone", "blue")):
            folder = tmp_path / kind / name
            folder.mkdir(parents=True)
            for k in range(2):
                Image.new("RGB", (40 + k, 20), color).save(folder / f"{k}.png")
    (tmp_path / "counts.tsv").write_text("tiger cat\t3\npayphone\t500\nunused\t7\n")
    return tmp_path


@pytest.fixture
def quiet():
    """A warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def test_concepts_have_prompts_buckets_and_images(root):
    phone, cat = source(root).concepts()
    assert (phone.name, phone.bucket, phone.frequency) == ("payphone", "head", 500)
    assert (cat.prompt, cat.bucket) == ("a photo of a tiger cat", "tail")
    assert cat.references.shape == (2, 3, 16, 16)
    assert cat.references[0][:, 8, 8].tolist() == [255, 165, 0]
    assert [image.shape for image in source(root).real_images()] == [(3, 16, 16)] * 4


def test_counts_in_every_format(root):
    counts = {"tiger cat": 3, "payphone": 500}
    for name, text in (("a.csv", "tiger cat,3\npayphone,500\n"), ("a.json", json.dumps(counts))):
        (root / name).write_text(text)
        assert {c.name: c.frequency for c in source(root, counts=str(root / name)).concepts()} == counts


def test_ranks_are_among_all_concepts_in_the_file(root):
    phone, cat = source(root, bucket_by="rank", ranks=(1, 1, 1)).concepts()
    assert (phone.bucket, cat.bucket) == ("head", "tail")  # a concept without images is in between
    with pytest.raises(ValueError, match="do not add up to the 3 concepts"):
        source(root, bucket_by="rank", ranks=(1, 0, 1)).concepts()


def test_imagenet_folders_and_counts_by_any_key(root):
    """Class 282 is n02123159, tiger cat; 707 is n03902125, pay-phone."""
    for kind in ("references", "real"):
        (root / kind / "payphone").rename(root / kind / "n03902125")
    (root / "counts.tsv").write_text("282\t3\npay-phone\t500\n")
    phone, cat = source(root, classes="imagenet1k").concepts()
    assert (phone.name, phone.prompt, phone.frequency, phone.bucket) == (
        "n03902125",
        "a photo of a pay-phone",
        500,
        "head",
    )
    assert (cat.name, cat.prompt, cat.frequency, cat.bucket) == ("tiger cat", "a photo of a tiger cat", 3, "tail")
    (root / "references" / "282").mkdir()
    with pytest.raises(ValueError, match="'282' and 'tiger cat' are the same class, n02123159"):
        source(root, classes="imagenet1k").concepts()
    (root / "references" / "282").rmdir()
    (root / "counts.tsv").write_text("".join(f"class {k}\t{k}\n" for k in range(1000)))
    assert [c.frequency for c in source(root, classes="imagenet1k_rows").concepts()] == [707, 282]
    with pytest.raises(ValueError, match="'class 0' is not a class of ImageNet-1k"):
        source(root, classes="imagenet1k").concepts()
    with pytest.raises(ValueError, match=r"classes: Input should be 'folders', 'imagenet1k' or"):
        source(root, classes="imagenet")


# Names


def test_folder_names_are_normalized(root):
    """A folder from macOS is in NFD, a file of counts written elsewhere in NFC."""
    composed, parted = (unicodedata.normalize(form, "jalapeño") for form in ("NFC", "NFD"))
    for kind in ("references", "real"):
        (root / kind / "payphone").rename(root / kind / parted)
    (root / "counts.tsv").write_text(f" {composed} \t500\ntiger cat\t3\n")
    assert [concept.name for concept in source(root).concepts()] == [composed, "tiger cat"]
    assert set(source(root).labeled_real_images()) == {composed, "tiger cat"}


@pytest.mark.parametrize("kind", ["references", "real"])
@pytest.mark.parametrize("other", [unicodedata.normalize("NFD", "jalapeño"), "jalapeño "])
def test_folders_with_equal_names_are_errors(root, kind, other):
    (root / kind / "jalapeño").mkdir()
    (root / kind / other).mkdir()
    with pytest.raises(ValueError, match=f"{kind} contains .*which are one name"):
        source(root).concepts() if kind == "references" else source(root).labeled_real_images()


def test_folder_names_may_be_numbers(root):
    (root / "references" / "payphone").rename(root / "references" / "0")
    (root / "counts.tsv").write_text("tiger cat\t3\n0\t500\n")
    assert [concept.name for concept in source(root).concepts()] == ["0", "tiger cat"]


# What is an image


@pytest.mark.parametrize("ending", ["gif", "tif", "tiff", "avif", "webp", "bmp", "ppm", "jp2", "tga", "ico", "JPEG"])
def test_every_pillow_format_is_an_image(root, ending, quiet):
    Image.new("RGB", (20, 20), "red").save(root / "references" / "payphone" / f"2.{ending}")
    phone, _ = source(root).concepts()
    assert len(phone.references) == 3
    assert phone.references[2][:, 8, 8].tolist() == pytest.approx([255, 0, 0], abs=12)  # some formats are lossy


def test_image_without_suffix_is_an_image(root, quiet):
    (root / "real" / "payphone" / "0.png").rename(root / "real" / "payphone" / "scan no. 1")
    assert len(source(root).real_images()) == 4


def test_hidden_files_and_folders_are_ignored(root, quiet):
    for kind in ("references", "real"):
        hidden = root / kind / ".ipynb_checkpoints"
        hidden.mkdir()
        Image.new("RGB", (8, 8)).save(hidden / "0-checkpoint.png")
        (root / kind / "__MACOSX").mkdir()
        (root / kind / ".DS_Store").touch()
        (root / kind / "payphone" / ".ipynb_checkpoints").mkdir()
        for name in (".DS_Store", "._0.png", ".hidden.jpg", "Thumbs.db", "desktop.ini"):
            (root / kind / "payphone" / name).write_bytes(b"\0")
    assert [(c.name, len(c.references)) for c in source(root).concepts()] == [("payphone", 2), ("tiger cat", 2)]
    assert len(source(root).real_images()) == 4
    assert {name: len(images) for name, images in source(root).labeled_real_images().items()} == {
        "payphone": 2,
        "tiger cat": 2,
    }


def test_one_warning_names_other_files(root):
    for name in ("notes.txt", "photo.jxl", "features.h5"):
        (root / "references" / "payphone" / name).write_bytes(b"\x89HDF\r\n\x1a\n and more")
    (root / "references" / "payphone" / "raw").mkdir()
    (root / "references" / "loose.png").touch()
    with pytest.warns(UserWarning, match="ignored") as caught:
        phone, _ = source(root).concepts()
    assert len(phone.references) == 2
    (message,) = (str(warning.message) for warning in caught)
    assert "references/loose.png" in message and "and 2 more" in message and "HEIC" in message


def test_folder_without_images_is_an_error(root):
    (root / "references" / "payphone" / "0.png").rename(root / "references" / "payphone" / "0.jxl")
    (root / "references" / "payphone" / "1.png").unlink()
    (root / "references" / "payphone" / "0.jxl").write_bytes(b"\0\0\0\x18ftypjxl ")
    with pytest.raises(ValueError, match=r"payphone contains no images that Pillow reads, only payphone/0\.jxl"):
        source(root).concepts()


def test_real_images_may_be_outside_folders(root, quiet):
    Image.new("RGB", (20, 20), "red").save(root / "real" / "more.png")
    assert len(source(root).real_images()) == 5
    (root / "alone").mkdir()
    Image.new("RGB", (20, 20), "red").save(root / "alone" / "one.png")
    assert source(root, real=str(root / "alone")).real_images().shape == (1, 3, 16, 16)


# Bad files


def cut(path, to: int = -20) -> None:
    """Truncates a file; its header stays intact."""
    path.write_bytes(path.read_bytes()[:to])


def test_damaged_references_fail_in_advance(root):
    cut(root / "references" / "payphone" / "1.png")
    for count in (1, 2):
        with pytest.raises(ValueError, match=r"payphone.1\.png cannot be read as an image"):
            limit_references(source(root).concepts(), count)
    with pytest.raises(ValueError, match=r"task\.references=3, but 'payphone' has 2 reference images"):
        limit_references(source(root).concepts(), 3)


def test_real_images_are_checked_immediately(root):
    cut(root / "real" / "payphone" / "1.png")
    with pytest.raises(ValueError, match=r"payphone.1\.png cannot be read as an image"):
        source(root).real_images()
    with pytest.raises(ValueError, match="none is not a folder"):
        source(root, real=str(root / "none")).real_images()
    with pytest.raises(ValueError, match=r"counts\.tsv is not a folder"):
        source(root, real=str(root / "counts.tsv")).real_images()


def test_folder_without_permission_is_named(root, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(ValueError, match=r"payphone cannot be read \(Permission denied\)"):
        list_folder(root / "references" / "payphone")


def test_missing_files_are_named(root):
    with pytest.raises(ValueError, match="contains no folders"):
        source(root, references=str(root / "nowhere")).concepts()
    with pytest.raises(ValueError, match=r"counts\.json does not exist"):
        source(root, counts=str(root / "counts.json")).concepts()
    (root / "references" / "empty").mkdir()
    with pytest.raises(ValueError, match="no count for 'empty'"):
        source(root).concepts()
    with pytest.raises(ValueError, match="contains no images"):
        image_files([root / "references" / "empty"])
    (root / "bad.tsv").write_text("tiger cat\tmany\n")
    with pytest.raises(ValueError, match="is not a table"):
        source(root, counts=str(root / "bad.tsv")).concepts()


# Size


def test_images_get_the_size_of_the_model(root):
    unsized = source(root, size=None)
    for images in (unsized.concepts()[0].references, unsized.real_images(), unsized.labeled_real_images()["payphone"]):
        assert images.resized((16, 24))[0].shape == (3, 16, 24)
        with pytest.raises(ValueError, match="no target size is set"):
            images[0]
    assert unsized.concepts()[0].resized((16, 24)).references.shape == (2, 3, 16, 24)


def test_fixed_size_must_match_the_model(root):
    fixed = source(root, size=[16, 24]).concepts()[0]
    assert fixed.references[0].shape == (3, 16, 24) and fixed.resized((16, 24)).references.shape == (2, 3, 16, 24)
    with pytest.raises(ValueError, match=r"the checkpoint needs 64 x 64: set data\.source\.size to null"):
        fixed.resized((64, 64))
    with pytest.raises(ValueError, match=r"size.*greater than 0"):
        source(root, size=0)


# Memory


def test_reads_only_the_references_in_use(root, monkeypatch):
    read = []

    def record(path, size):
        read.append(path.name)
        return np.zeros((3, *size), np.uint8)

    monkeypatch.setattr(folder_module, "read_image", record)
    for k in range(2, 300):
        (root / "references" / "payphone" / f"{k}.png").hardlink_to(root / "references" / "payphone" / "0.png")
    phone = limit_references(source(root).concepts(), 1)[0]
    assert not read
    assert phone.key and phone.key == phone.key
    assert read == ["0.png"] and phone.references[:].shape == (1, 3, 16, 16)


@pytest.mark.slow
def test_memory_does_not_grow_with_images(root):
    """The pixels of 400 images of 256 x 256 would take 79 MB."""
    for k in range(2, 400):
        for kind in ("references", "real"):
            (root / kind / "payphone" / f"{k}.png").hardlink_to(root / kind / "payphone" / "0.png")
    images = source(root, size=256)
    tracemalloc.start()
    concepts, real = images.concepts(), images.real_images()
    keys = [concept.key for concept in concepts]
    total = sum(int(image[2, 0, 0]) for image in real)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(keys)) == 2 and total > 0 and peak < 8e6


def test_keys_depend_on_the_content(root):
    def keys(**changes) -> list[str]:
        return [concept.key for concept in limit_references(source(root, **changes).concepts(), 1)]

    first = keys()
    Image.new("RGB", (40, 20), "green").save(root / "references" / "payphone" / "1.png")
    assert keys() == first  # the second reference is not used
    assert keys(size=8)[0] != first[0]
    Image.new("RGB", (40, 20), "green").save(root / "references" / "payphone" / "0.png")
    assert keys()[0] != first[0] and keys()[1] == first[1]


def test_concepts_can_be_pickled(root):
    phone, _ = source(root).concepts()
    assert pickle.loads(pickle.dumps(phone)).key == phone.key


# Prompts


@pytest.mark.parametrize(
    "prompt", ["a photo of a {}", "a photo", "a {name", "a name}", "a {0}", "a {nom}", "{name!r}", "{name:>9}",
               "{name.__class__}", "{name[0]}", "{name} {style}", ""],
)  # fmt: skip
def test_invalid_prompt_template_is_an_error(root, prompt):
    with pytest.raises(ValueError, match=r"data\.source\.prompt=.* must contain \{name\}"):
        source(root, prompt=prompt)


def test_escaped_braces_and_repeated_names_are_valid(root):
    prompts = [concept.prompt for concept in source(root, prompt="{name}, {{a}} {name}").concepts()]
    assert prompts[0] == "payphone, {a} payphone"
