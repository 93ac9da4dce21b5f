"""Damaged, incomplete and foreign checkpoints: one sentence that names the part and the remedy."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from rnri import LatentDiffusion
from tests.pipelines import tiny_stable_diffusion, tiny_stable_diffusion_xl

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def load(path, **options):
    return LatentDiffusion.from_pretrained(path, device="cpu", dtype="float32", local_files_only=True, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "sd"
    tiny_stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved_xl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "xl"
    tiny_stable_diffusion_xl().save_pretrained(folder)
    return folder


@pytest.fixture
def broken(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "broken")


def refused(path, *words, **options):
    with pytest.raises(ValueError) as error:
        load(path, **options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value), str(error.value)


def strip_vocabulary(part):
    for file in part.iterdir():
        if file.name in ("tokenizer.json", "vocab.json", "merges.txt"):
            file.unlink()


def test_a_tokenizer_without_its_vocabulary(broken):
    strip_vocabulary(broken / "tokenizer")
    refused(broken, "vocabulary of its part 'tokenizer'")


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_of_every_part_that_has_one(saved_xl, tmp_path, part):
    copy = shutil.copytree(saved_xl, tmp_path / "xl")
    strip_vocabulary(copy / part)
    refused(copy, f"vocabulary of its part {part!r}")


def test_half_a_slow_tokenizer(broken):
    strip_vocabulary(broken / "tokenizer")
    (broken / "tokenizer" / "vocab.json").write_text("{}")
    refused(broken, "merges.txt")


def test_a_truncated_tokenizer(broken):
    file = next((broken / "tokenizer").glob("*.json"))
    file.write_text(file.read_text()[:20])
    refused(broken, file.name, "JSON")


def test_a_vocabulary_of_special_tokens_alone(saved):
    pipe = tiny_stable_diffusion()
    pipe.tokenizer = type(pipe.tokenizer)(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
    with pytest.raises(ValueError, match="tokenizer makes the same tokens"):
        LatentDiffusion(pipe)


def test_a_vocabulary_of_another_text_encoder():
    pipe = tiny_stable_diffusion()
    pipe.tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="do not belong together"):
        LatentDiffusion(pipe)
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))  # as textual inversion does
    assert LatentDiffusion(pipe).predictor(["a <new>"]) is not None


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_lack_a_key(broken, part):
    path = broken / part / WEIGHTS[part]
    weights = load_file(path)
    key = sorted(weights)[3]
    del weights[key]
    save_file(weights, path, {"format": "pt"})
    refused(broken, part, key)


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_of_another_shape(broken, part):
    path = broken / part / WEIGHTS[part]
    weights = load_file(path)
    key = next(key for key in sorted(weights) if weights[key].ndim > 1)
    weights[key] = weights[key][:-1].contiguous()
    save_file(weights, path, {"format": "pt"})
    refused(broken, "could not be loaded")


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_damaged_json(broken, file, content):
    (broken / file).write_text(content)
    refused(broken, file.rsplit("/")[-1])


@pytest.mark.parametrize(
    "kind", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionInpaintPipeline", "NoSuchPipeline"]
)
def test_an_index_of_another_class(broken, kind):
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
    refused(broken, kind, "_class_name")


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (tiny_stable_diffusion, StableDiffusionImg2ImgPipeline),
        (tiny_stable_diffusion_xl, StableDiffusionXLImg2ImgPipeline),
    ],
)
def test_a_pipeline_in_memory_of_another_class(made, kind):
    components = {name: part for name, part in made().components.items() if name != "image_encoder"}
    pipe = kind(**components, **({"requires_safety_checker": False} if "safety_checker" in components else {}))
    with pytest.raises(ValueError, match=f"{kind.__name__} is no text-to-image pipeline"):
        LatentDiffusion(pipe)


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_a_single_file(tmp_path, name):
    refused(tmp_path / name, "does not exist")
    (tmp_path / name).write_bytes(b"weights")
    refused(tmp_path / name, "single file", "from_single_file")


def rename(folder, parts):
    for part in parts:
        path = folder / part / WEIGHTS[part]
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))


def test_a_folder_with_nothing_but_a_variant(broken, saved):
    rename(broken, WEIGHTS)
    refused(broken, "variant fp16", "model.variant=fp16")
    assert load(broken, variant="fp16").fingerprint == load(saved).fingerprint


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_variant_in_some_parts_only(broken, saved, part):
    rename(broken, [part])
    refused(broken, "variant fp16", part)
    assert load(broken, variant="fp16").fingerprint == load(saved).fingerprint


def test_the_fingerprint_knows_adapters_their_scale_and_whether_they_are_on():
    pipe = tiny_stable_diffusion()
    model = LatentDiffusion(pipe)
    plain = model.fingerprint
    for name, seed in (("x", 0), ("y", 1)):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        pipe.unet.add_adapter(config, adapter_name=name)
    seen = [plain]
    for change in (
        lambda: pipe.set_adapters(["x"], [1.0]),
        lambda: pipe.set_adapters(["x"], [0.3]),
        lambda: pipe.set_adapters(["y"], [0.3]),
        lambda: pipe.set_adapters(["x", "y"], [0.3, 0.3]),
        pipe.unet.disable_adapters,
    ):
        change()
        seen.append(model.fingerprint)
    assert len(set(seen)) == len(seen)
    pipe.unet.enable_adapters()
    pipe.set_adapters(["x"], [0.3])
    assert model.fingerprint == seen[2]


def test_the_fingerprint_follows_what_changes_the_output():
    pipe = tiny_stable_diffusion()
    model = LatentDiffusion(pipe)
    seen = [model.fingerprint]
    with torch.no_grad():
        pipe.unet.conv_in.weight.add_(1e-3)
    seen.append(model.fingerprint)
    pipe.unet.conv_in.weight.data.add_(1e-3)  # as adapters are fused, which leaves no sign on the tensor
    seen.append(model.fingerprint)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    seen.append(model.fingerprint)
    pipe.vae.enable_tiling()
    seen.append(model.fingerprint)
    assert len(set(seen)) == len(seen)
