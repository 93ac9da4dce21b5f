"""The command ``python -m rnri``: images, folders, tables, edits, comparison of methods, and errors."""

import csv
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

import rnri
from rnri.captions import read_captions
from rnri.cli import app

pytestmark = pytest.mark.slow

FAST = ["--steps", "3"]


@pytest.fixture(scope="module")
def image():
    pipe = StableDiffusionPipeline.from_pretrained("assets/models/emoji")
    pipe.set_progress_bar_config(disable=True)
    return pipe("a drawing of a camel", num_inference_steps=4, generator=torch.Generator().manual_seed(0)).images[0]


@pytest.fixture
def folder(tmp_path, image):
    for name in ("a", "b"):
        image.save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a drawing of {name}\n")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_one_image_with_an_edit(folder):
    out = folder / "out"
    result = run(folder / "a.png", "a drawing of a camel", "--edit", "a drawing of a fox", "--out", out, *FAST)
    assert result.exit_code == 0, result.output
    assert "a.png: " in result.output and " dB" in result.output
    assert {path.name for path in out.iterdir()} == {"a.png", "a.safetensors", "a_edit.png"}
    assert rnri.load(out / "a.safetensors").prompts == ("a drawing of a camel",)


def test_folder_and_methods_give_a_table(folder):
    out = folder / "out"
    result = run(folder, "--methods", "ddim,accelerated", "--out", out, "--batch-size", 2, *FAST)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [row["method"] for row in rows] == ["ddim", "accelerated"]
    assert [row["images"] for row in rows] == ["2", "2"] and [row["NFE"] for row in rows] == ["3", "6"]
    assert (out / "table.md").read_text() in result.output
    assert (out / "ddim" / "b.png").is_file()


def test_table_with_columns_of_other_names(folder):
    table = folder / "data" / "images.csv"
    table.parent.mkdir()
    table.write_text("file,source,target\na.png,a drawing of a camel,a drawing of a fox\nb.png,,a\n")
    options = ["--image-column", "file", "--prompt-column", "source", "--edit-column", "target", "--images", folder]
    result = run(table, *options, "--out", folder / "out", *FAST)
    assert result.exit_code == 0, result.output
    assert (folder / "out" / "a_edit.png").is_file() and not (folder / "out" / "b.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["https://a.b/c.png", "a"], "source: URLs are not downloaded; download the image and pass its path"),
        (["missing.png", "a"], "source: missing.png is neither a file nor a folder"),
        (["a.png"], "prompt: must be given for the image a.png"),
        ([".", "a prompt"], "prompt: got a prompt for"),
        (["a.png", "a", "--methods", "nothing"], "--methods: 'nothing' is unknown; choose one of"),
        (["a.png", "a", "--methods", "edict"], "--methods: 'edict' needs more tensors than a seed"),
        (["a.png", "a", "--batch-size", "0"], "--batch-size: must be at least 1 image per batch, got 0"),
        (["c.jsonl"], "names the image 'none.png', which is not a file"),
        (["d.jsonl"], "d.jsonl: the column 'image' has None in line 1: write the name of an image file"),
        (["a.png", "a", "--out", "b.png"], "--out: b.png is not a folder"),
        (["a.png", "a", "--device", "quantum"], "--device: PyTorch cannot use 'quantum'"),
        (["a.png", "a", "--edit-column", "edit"], "--edit-column: is an option of tables"),
        (["a.png", "a", "--out", "b.png/x"], "--out: b.png/x cannot be created (Not a directory)"),
        (["a.png", "a", "--out", "."], "--out: the result a.png would replace an image; choose another folder"),
        (["broken.png", "a"], "images: broken.png cannot be converted"),
        (["latin"], "latin/a.txt is not UTF-8 (invalid continuation byte); save the caption as UTF-8"),
        (["empty"], "empty/a.txt contains no caption; write the caption of the image to this file"),
    ],
)
def test_errors_are_one_sentence(folder, monkeypatch, arguments, message):
    assets = rnri.command.DEFAULT_MODEL
    (folder / "c.jsonl").write_text('{"image": "none.png", "caption": "a"}\n')
    (folder / "d.jsonl").write_text('{"image": null, "caption": "a"}\n')
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:-60])
    (folder / "broken.txt").write_text("a")
    for name, caption in (("latin", b"caf\xe9 au lait"), ("empty", b" ")):
        (folder / name).mkdir()
        shutil.copy(folder / "a.png", folder / name)
        (folder / name / "a.txt").write_bytes(caption)
    monkeypatch.chdir(folder)
    result = run(*arguments, "--model", assets)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ") and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_images_without_captions_are_named(folder):
    (folder / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"b\.png has no caption; write its caption to"):
        read_captions(folder)


def test_other_files_of_a_folder_are_ignored(folder):
    for name in ("notes.pdf", "._a.png"):
        (folder / name).write_bytes(b"")
    assert [file.path.name for file in read_captions(folder)] == ["a.png", "b.png"]


def test_edited_images_do_not_replace_other_results(folder):
    (folder / "b.png").rename(folder / "a_edit.png")
    (folder / "table.csv").write_text("image,caption,edit\na.png,a cat,a dog\na_edit.png,a cat,\n")
    options = ["--image-column", "image", "--prompt-column", "caption", "--edit-column", "edit", "--images", folder]
    result = run(folder / "table.csv", *options, *FAST)
    assert result.exit_code == 1
    assert "two images have the name 'a_edit'" in result.stderr and "the suffix _edit" in result.stderr


def test_help_explains_every_option():
    result = run("--help")
    assert result.exit_code == 0
    for name in ("--model", "--edit", "--methods", "--steps", "--guidance", "--fit", "--out"):
        assert name in result.output


@pytest.mark.parametrize("option", ["--fit", "--dtype"])
def test_invalid_choices_are_usage_errors(folder, option):
    result = run(folder / "a.png", "a", option, "other")
    assert result.exit_code == 2 and f"Invalid value for '{option}'" in result.output
