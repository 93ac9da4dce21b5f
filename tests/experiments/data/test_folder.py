"""Users' own folders of images: what is read, and what is said when it cannot be."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments.data.folder import FolderConcepts, image_files, read_image


def source(root, **changes) -> FolderConcepts:
    settings = {
        "references": str(root / "references"), "real": str(root / "real"), "counts": str(root / "counts.tsv"),
        "prompt": "a photo of a {name}", "size": 16, "head": 100, "tail": 10,
    }  # fmt: skip
    return FolderConcepts(**settings | changes)


@pytest.fixture
def root(tmp_path):
    for kind in ("references", "real"):
        for name, colour in (("tiger cat", "orange"), ("payphone", "blue")):
            folder = tmp_path / kind / name
            folder.mkdir(parents=True)
            for k in range(2):
                Image.new("RGB", (40 + k, 20), colour).save(folder / f"{k}.png")
    (tmp_path / "counts.tsv").write_text("tiger cat\t3\npayphone\t500\nunused\t7\n")
    return tmp_path


def test_concepts_have_prompts_buckets_and_images(root):
    phone, cat = source(root).concepts()
    assert (phone.name, phone.bucket, phone.frequency) == ("payphone", "head", 500)
    assert (cat.prompt, cat.bucket) == ("a photo of a tiger cat", "tail")
    assert cat.references.shape == (2, 3, 16, 16)
    assert cat.references[0, :, 8, 8].tolist() == [255, 165, 0]
    assert [image.shape for image in source(root).real_images()] == [(3, 16, 16)] * 4


def test_transparent_pixels_become_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png", 4) == 255).all()


def test_centre_is_cut_out(tmp_path):
    picture = np.zeros((8, 24, 3), np.uint8)
    picture[:, 8:16] = 200
    Image.fromarray(picture).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", 8) == 200).all()


def test_counts_from_every_format(root):
    counts = {"tiger cat": 3, "payphone": 500}
    for name, text in (("a.csv", "tiger cat,3\npayphone,500\n"), ("a.json", json.dumps(counts))):
        (root / name).write_text(text)
        assert {c.name: c.frequency for c in source(root, counts=str(root / name)).concepts()} == counts


def test_ranks_are_those_of_all_concepts_in_the_file(root):
    phone, cat = source(root, by="rank", ranks=(1, 1, 1)).concepts()
    assert (phone.bucket, cat.bucket) == ("head", "tail")  # a concept without images lies between
    with pytest.raises(ValueError, match="do not add up to the 3 concepts"):
        source(root, by="rank", ranks=(1, 0, 1)).concepts()


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
    (root / "counts.tsv").write_text("".join(f"class {k}\t{k}\n" for k in range(1000)))
    assert [c.frequency for c in source(root, classes="imagenet1k_rows").concepts()] == [707, 282]
    with pytest.raises(ValueError, match="'class 0' fits no class of ImageNet-1k"):
        source(root, classes="imagenet1k").concepts()
    with pytest.raises(ValueError, match="classes='imagenet' is unknown: choose one of folders, imagenet1k"):
        source(root, classes="imagenet")


def test_corrupt_image_is_named(root):
    bad = root / "references" / "payphone" / "0.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"payphone.0\.png cannot be read as an image"):
        source(root).concepts()


def test_real_images_are_checked_at_the_call_and_read_one_by_one(root):
    broken = root / "real" / "payphone" / "1.png"
    whole = broken.read_bytes()
    broken.write_text("no image")
    with pytest.raises(ValueError, match=r"payphone.1\.png cannot be read as an image"):
        source(root).real_images()
    broken.write_bytes(whole[:60])  # the header is whole
    images = source(root).real_images()
    assert next(images).shape == (3, 16, 16)
    with pytest.raises(ValueError, match=r"payphone.1\.png cannot be read as an image"):
        next(images)
    with pytest.raises(ValueError, match="none is not a folder"):
        source(root, real=str(root / "none")).real_images()


def test_missing_things_are_named(root, tmp_path):
    with pytest.raises(ValueError, match=r"none\.png cannot be read"):
        read_image(tmp_path / "none.png", 8)
    with pytest.raises(ValueError, match="holds no folders"):
        source(root, references=str(root / "nowhere")).concepts()
    with pytest.raises(ValueError, match=r"counts\.json does not exist"):
        source(root, counts=str(root / "counts.json")).concepts()
    (root / "references" / "empty").mkdir()
    with pytest.raises(ValueError, match="no count for 'empty'"):
        source(root).concepts()
    with pytest.raises(ValueError, match="holds no images"):
        image_files(root / "references" / "empty")
    (root / "bad.tsv").write_text("tiger cat\tmany\n")
    with pytest.raises(ValueError, match="is not a table"):
        source(root, counts=str(root / "bad.tsv")).concepts()
