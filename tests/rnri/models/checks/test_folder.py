"""Incomplete or damaged checkpoint folders are rejected with the name of the file and a remedy."""

import shutil

import pytest
from diffusers import StableDiffusionPipeline

from tests.pipelines import tiny_stable_diffusion_xl
from tests.rnri.models.checkpoints import WEIGHTS, assert_rejected, load


@pytest.fixture(scope="module")
def sdxl_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "xl"
    tiny_stable_diffusion_xl().save_pretrained(folder)
    return folder


def delete_vocabulary(component):
    for file in component.iterdir():
        if file.name in ("tokenizer.json", "vocab.json", "merges.txt"):
            file.unlink()


def test_missing_vocabulary(checkpoint_copy):
    delete_vocabulary(checkpoint_copy / "tokenizer")
    assert_rejected(lambda: load(checkpoint_copy), "vocabulary of its component 'tokenizer'")


@pytest.mark.parametrize("component", ["tokenizer", "tokenizer_2"])
def test_missing_vocabulary_of_each_sdxl_tokenizer(sdxl_checkpoint, tmp_path, component):
    folder = shutil.copytree(sdxl_checkpoint, tmp_path / "xl")
    delete_vocabulary(folder / component)
    assert_rejected(lambda: load(folder), f"vocabulary of its component {component!r}")


def test_missing_merges_file(checkpoint_copy):
    delete_vocabulary(checkpoint_copy / "tokenizer")
    (checkpoint_copy / "tokenizer" / "vocab.json").write_text("{}")
    assert_rejected(lambda: load(checkpoint_copy), "merges.txt")


def test_truncated_tokenizer_file(checkpoint_copy):
    file = next((checkpoint_copy / "tokenizer").glob("*.json"))
    file.write_text(file.read_text()[:20])
    assert_rejected(lambda: load(checkpoint_copy), file.name, "JSON")


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_invalid_json(checkpoint_copy, file, content):
    (checkpoint_copy / file).write_text(content)
    assert_rejected(lambda: load(checkpoint_copy), file.rsplit("/")[-1])


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_single_file_checkpoint(tmp_path, name):
    assert_rejected(lambda: load(tmp_path / name), "does not exist")
    (tmp_path / name).write_bytes(b"weights")
    assert_rejected(lambda: load(tmp_path / name), "single file", "from_single_file")


@pytest.mark.parametrize("path", ["nowhere/at/all", "./nowhere", "nowhere"])
def test_missing_folder(path):
    assert_rejected(lambda: load(path), "does not exist")


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_missing_component(checkpoint_copy, component):
    shutil.rmtree(checkpoint_copy / component)
    assert_rejected(lambda: load(checkpoint_copy), f"lacks its component '{component}'")


@pytest.mark.parametrize(
    ("file", "substrings"),
    [
        ("unet/diffusion_pytorch_model.safetensors", ("lacks the weights", "'unet'")),
        ("text_encoder/model.safetensors", ("lacks the weights", "'text_encoder'")),
        ("vae/config.json", ("lacks config.json in its component 'vae'",)),
        ("scheduler/scheduler_config.json", ("lacks scheduler_config.json in its component 'scheduler'",)),
        ("model_index.json", ("no model_index.json",)),
    ],
)
def test_missing_file(checkpoint_copy, file, substrings):
    (checkpoint_copy / file).unlink()
    assert_rejected(lambda: load(checkpoint_copy), *substrings)


def test_git_lfs_pointer_instead_of_weights(checkpoint_copy):
    file = checkpoint_copy / "unet" / WEIGHTS["unet"]
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    assert_rejected(lambda: load(checkpoint_copy), str(file), "Git LFS pointer", "git lfs pull")


def add_variant(folder, components):
    for component in components:
        path = folder / component / WEIGHTS[component]
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))


def test_missing_variant(checkpoint):
    assert_rejected(
        lambda: load(checkpoint, variant="fp16"), "no component with weights of the variant", "(*.fp16*.safetensors)"
    )


def test_all_weights_only_as_variant(checkpoint_copy, checkpoint):
    add_variant(checkpoint_copy, WEIGHTS)
    assert_rejected(lambda: load(checkpoint_copy), "variant fp16", "model.variant=fp16")
    assert load(checkpoint_copy, variant="fp16").fingerprint == load(checkpoint).fingerprint


@pytest.mark.parametrize("component", WEIGHTS)
def test_some_weights_only_as_variant(checkpoint_copy, checkpoint, component):
    add_variant(checkpoint_copy, [component])
    assert_rejected(lambda: load(checkpoint_copy), "variant fp16", component)
    assert load(checkpoint_copy, variant="fp16").fingerprint == load(checkpoint).fingerprint


def save_in_shards(folder, component):
    """Save the weights of ``component`` in several files; return these files and their index."""
    network = getattr(StableDiffusionPipeline.from_pretrained(folder), component)
    for file in (folder / component).glob("*.safetensors"):
        file.unlink()
    network.save_pretrained(folder / component, max_shard_size="50KB")
    return sorted((folder / component).glob("*.safetensors")), next((folder / component).glob("*.index.json"))


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_sharded_weights(checkpoint_copy, checkpoint, component):
    shards, index = save_in_shards(checkpoint_copy, component)
    assert len(shards) > 1
    assert load(checkpoint_copy).fingerprint == load(checkpoint).fingerprint
    shards[1].rename(checkpoint_copy / "moved")
    assert_rejected(lambda: load(checkpoint_copy), component, shards[1].name, index.name)
    (checkpoint_copy / "moved").rename(shards[1])
    index.unlink()
    assert_rejected(lambda: load(checkpoint_copy), component, shards[0].name, index.name)
    index.write_text("{}")
    assert_rejected(lambda: load(checkpoint_copy), component)
