"""Checkpoints whose parts do not fit together, or that are no text-to-image ones: one sentence, before any work."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rnri import LatentDiffusion
from tests.pipelines import (
    TOKENS,
    tiny_flux,
    tiny_sd3,
    tiny_stable_diffusion,
    tiny_stable_diffusion_xl,
    tiny_tokenizer,
)

WORDS = ("cat", "dog", "owl", "car", "hat", "cow", "box", "bird", "fish", "tree", "moon", "star", "ship", "lamp")


class Renamed(DDIMScheduler):
    """Another class with the same configuration."""


class Scaled(AttnProcessor):
    """A processor with a setting."""

    def __init__(self, scale):
        self.scale = scale


def load(path, **options):
    return LatentDiffusion.from_pretrained(path, device="cpu", dtype="float32", local_files_only=True, **options)


def refused(made, *words):
    with pytest.raises(ValueError) as error:
        made()
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value), str(error.value)


def byte_pairs(merges=None):
    """A tokenizer whose vocabulary holds ``WORDS``, each made by its merges; only the first ``merges`` of them."""
    vocabulary, pairs = dict(tiny_tokenizer().get_vocab()), []
    for word in WORDS:
        left = word[0]
        for i, letter in enumerate(word[1:], start=2):
            right = letter + ("</w>" if i == len(word) else "")
            if (left, right) not in pairs:
                pairs.append((left, right))
                vocabulary.setdefault(left + right, len(vocabulary))
            left += right
    return CLIPTokenizer(vocab=vocabulary, merges=pairs[:merges], model_max_length=TOKENS)


def with_tokenizer(tokenizer, rows=None):
    pipe = tiny_stable_diffusion()
    pipe.tokenizer = tokenizer
    pipe.text_encoder.resize_token_embeddings(rows or len(tokenizer))
    return pipe


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "sd"
    with_tokenizer(byte_pairs()).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Tokenizers


def test_half_a_vocabulary(copied):
    assert load(copied).predictor(["a cat"]) is not None
    refused(lambda: LatentDiffusion(with_tokenizer(tiny_tokenizer(), rows=150)), "tokenizer", "74 entries", "150")


@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_merges_that_are_lost(copied, share):
    file = copied / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    merges = content["model"]["merges"]
    content["model"]["merges"] = merges[: int(share * len(merges))]
    file.write_text(json.dumps(content))
    refused(lambda: load(copied), "merges", "'lamp</w>'")


@pytest.mark.parametrize("lines", [1, 10])
def test_half_a_merges_file(copied, lines):
    part = copied / "tokenizer"
    model = json.loads((part / "tokenizer.json").read_text())["model"]
    (part / "tokenizer.json").unlink()
    (part / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (part / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    assert load(copied) is not None
    (part / "merges.txt").write_text("\n".join(["#version: 0.2", *merges[:lines]]) + "\n")
    refused(lambda: load(copied), "merges.txt")


def test_a_tokenizer_that_spells_its_own_words():
    tokenizer = byte_pairs()
    tokenizer.backend_tokenizer.pre_tokenizer = Split(Regex("."), "isolated")  # every merge is there, and none is used
    refused(lambda: LatentDiffusion(with_tokenizer(tokenizer)), "whole words of its own vocabulary")


def test_a_tokenizer_without_a_length_has_its_text_encoders(copied):
    expected = load(copied)
    change(copied / "tokenizer" / "tokenizer_config.json", model_max_length=int(1e30))
    model = load(copied)
    assert model.pipeline.tokenizer.model_max_length == TOKENS
    text = [m.predictor(["a cat and a dog, a very long prompt"]).denoiser.positive.text for m in (model, expected)]
    assert torch.equal(*text)
    pipe = expected.pipeline
    pipe.tokenizer.model_max_length = 2 * TOKENS
    refused(lambda: LatentDiffusion(pipe), "model_max_length=32", f"pipe.tokenizer.model_max_length = {TOKENS}")


def test_a_pipeline_that_keeps_the_length_is_told(tmp_path):
    tiny_sd3(t5=False).save_pretrained(tmp_path / "sd3")
    change(tmp_path / "sd3" / "tokenizer" / "tokenizer_config.json", model_max_length=int(1e30))
    assert load(tmp_path / "sd3").predictor(["a cat"]) is not None


# Weights


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ],
)
def test_weights_that_no_config_describes(copied, part, file):
    weights = load_file(copied / part / file)
    save_file(weights | {"mid_block.more.weight": torch.ones(2)}, copied / part / file, {"format": "pt"})
    refused(lambda: load(copied), part, "mid_block.more.weight", "config.json")


def test_the_rest_of_clip_is_no_fault(copied):
    path = copied / "text_encoder" / "model.safetensors"
    more = {"text_projection.weight": torch.ones(2, 2), "logit_scale": torch.ones(()), "vision_model.x": torch.ones(1)}
    prefix = next(iter(load_file(path))).split("embeddings")[0].split("encoder")[0]
    more[f"{prefix}embeddings.position_ids"] = torch.arange(TOKENS)[None]
    save_file(load_file(path) | more, path, {"format": "pt"})
    assert load(copied).predictor(["a cat"]) is not None


def test_old_names_of_the_vaes_attention_are_read(copied, saved):
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
    assert any(".query." in key for key in weights)
    save_file(weights, path, {"format": "pt"})
    assert load(copied).fingerprint == load(saved).fingerprint


def sharded(folder, part="unet"):
    """The weights of ``part`` in several files."""
    network = getattr(StableDiffusionPipeline.from_pretrained(folder), part)
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    network.save_pretrained(folder / part, max_shard_size="50KB")
    return sorted((folder / part).glob("*.safetensors")), next((folder / part).glob("*.index.json"))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_in_several_files(copied, saved, part):
    shards, index = sharded(copied, part)
    assert len(shards) > 1
    assert load(copied).fingerprint == load(saved).fingerprint
    shards[1].rename(copied / "away")
    refused(lambda: load(copied), part, shards[1].name, index.name)
    (copied / "away").rename(shards[1])
    index.unlink()
    refused(lambda: load(copied), part, shards[0].name, index.name)
    index.write_text("{}")
    refused(lambda: load(copied), index.name, "weight_map")


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_a_truncated_file_is_of_a_part(copied, file):
    path = copied / file
    path.write_bytes(path.read_bytes()[:1000])
    refused(lambda: load(copied), f"part {file.split('/')[0]!r}")


# Parts that do not fit together


def test_a_text_encoder_of_another_width():
    pipe = tiny_stable_diffusion()
    config = CLIPTextConfig(**{**pipe.text_encoder.config.to_dict(), "hidden_size": 64})
    pipe.text_encoder = CLIPTextModel(config)
    refused(lambda: LatentDiffusion(pipe), "cross_attention_dim=32", "64")


def test_text_that_is_projected_first():
    pipe = tiny_stable_diffusion(unet={"encoder_hid_dim": 32, "cross_attention_dim": 24})
    assert LatentDiffusion(pipe).predictor(["a cat"]) is not None
    pipe = tiny_stable_diffusion(unet={"encoder_hid_dim": 16})
    refused(lambda: LatentDiffusion(pipe), "encoder_hid_dim=16", "32")


@pytest.mark.parametrize(
    ("made", "field"),
    [
        (tiny_stable_diffusion_xl, "cross_attention_dim"),
        (tiny_sd3, "joint_attention_dim"),
        (tiny_sd3, "pooled_projection_dim"),
        (tiny_flux, "joint_attention_dim"),
        (tiny_flux, "pooled_projection_dim"),
    ],
)
def test_two_text_encoders_of_another_width(made, field):
    pipe = made()
    network = getattr(pipe, "unet", None) or pipe.transformer
    network.register_to_config(**{field: 40})
    refused(lambda: LatentDiffusion(pipe), f"{field}=40")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 9}, ("in_channels=9", "inpainting", "supported are")),
        ({"in_channels": 5}, ("in_channels=5", "depth", "supported are")),
        ({"out_channels": 8}, ("out_channels=8", "supported are")),
        ({"num_class_embeds": 10}, ("num_class_embeds=10", "supported are")),
        (
            {"encoder_hid_dim_type": "ip_image_proj", "encoder_hid_dim": 32},
            ("encoder_hid_dim_type='ip_image_proj'", "IP-Adapter", "supported are"),
        ),
    ],
)
def test_networks_that_take_more_than_text(changes, words):
    pipe = tiny_stable_diffusion()
    pipe.unet.register_to_config(**changes)
    refused(lambda: LatentDiffusion(pipe), *words)


def test_the_refiner_of_sdxl(tmp_path):
    pipe = tiny_stable_diffusion_xl()
    pipe.unet.register_to_config(projection_class_embeddings_input_dim=5 * 8 + 32)
    refused(lambda: LatentDiffusion(pipe), "projection_class_embeddings_input_dim=72", "refiner", "supported are")
    index = {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "requires_aesthetics_score": True,
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    refused(lambda: load(tmp_path), "refiner", "supported are")


def test_a_network_of_sdxl_in_a_pipeline_of_stable_diffusion():
    pipe = tiny_stable_diffusion()
    pipe.unet.register_to_config(addition_embed_type="text_time")
    refused(lambda: LatentDiffusion(pipe), "addition_embed_type", "StableDiffusionXLPipeline")


def test_an_autoencoder_without_a_posterior():
    pipe = tiny_stable_diffusion()
    pipe.vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    refused(lambda: LatentDiffusion(pipe), "AutoencoderTiny", "AutoencoderKL")


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "vae", "unet", "scheduler"])
def test_a_part_that_is_none(part):
    pipe = tiny_stable_diffusion()
    setattr(pipe, part, None)
    refused(lambda: LatentDiffusion(pipe), f"lacks its {part}")


def test_the_second_text_encoder_is_none():
    pipe = tiny_stable_diffusion_xl()
    pipe.text_encoder_2 = None
    refused(lambda: LatentDiffusion(pipe), "lacks its text_encoder_2")


# The index, and hub ids


@pytest.mark.parametrize(
    "entry", [["diffusers"], [], ["diffusers", "UNet2DConditionModel", "x"], ["diffusers", None], [1, 2]]
)
def test_an_entry_of_the_index_that_is_no_pair(copied, entry):
    change(copied / "model_index.json", unet=entry)
    refused(lambda: load(copied), "model_index.json", "unet")


@pytest.mark.parametrize("entry", [["diffusers", "NoSuchModel"], ["transformers", "UNet2DConditionModel"]])
def test_a_class_that_does_not_exist(copied, entry):
    change(copied / "model_index.json", unet=entry)
    refused(lambda: load(copied), "model_index.json", "unet", entry[1], entry[0])


@pytest.mark.parametrize("kind", [["pipeline", "Own"], None, 3])
def test_a_class_name_that_is_none(copied, kind):
    change(copied / "model_index.json", _class_name=kind)
    refused(lambda: load(copied), "model_index.json", "_class_name")


@pytest.fixture
def hub(copied, tmp_path, monkeypatch):
    """``owner/name`` in a hub cache of its own, and its snapshot's folder."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    copied.rename(snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_a_hub_id_is_checked_as_a_folder_is(hub, saved):
    assert load("owner/name").fingerprint == load(saved).fingerprint
    shutil.rmtree(hub / "vae")
    refused(lambda: load("owner/name"), "lacks its part 'vae'")
    (hub / "tokenizer" / "tokenizer.json").unlink()
    refused(lambda: load("owner/name"), "vocabulary of its part 'tokenizer'")


def test_a_hub_id_that_is_not_there(hub):
    refused(lambda: load("owner/other"), "owner/other")


# The fingerprint


def test_the_fingerprint_follows_tokenizer_scheduler_processors_and_hooks():
    pipe = with_tokenizer(byte_pairs())
    model = LatentDiffusion(pipe)
    seen = [model.fingerprint]

    def changed(change):
        change()
        assert model.fingerprint not in seen
        seen.append(model.fingerprint)

    model.predictor(["a cat"])  # leaves truncation and padding in the tokenizer
    assert model.fingerprint == seen[0]
    changed(lambda: setattr(pipe.tokenizer, "model_max_length", 8))
    changed(lambda: setattr(pipe, "tokenizer", byte_pairs(merges=20)))  # the same words, other tokens
    changed(lambda: setattr(pipe, "scheduler", type(pipe.scheduler).from_config(pipe.scheduler.config, steps_offset=2)))
    changed(lambda: pipe.scheduler.alphas_cumprod.mul_(0.99))
    changed(lambda: setattr(pipe, "scheduler", Renamed.from_config(pipe.scheduler.config)))
    changed(lambda: pipe.unet.set_attn_processor(Scaled(0.5)))
    changed(lambda: pipe.unet.set_attn_processor(Scaled(0.7)))
    changed(lambda: pipe.unet.conv_in.register_forward_hook(doubled))


def test_the_fingerprint_passes_by_what_is_not_used():
    pipe = tiny_stable_diffusion()
    model = LatentDiffusion(pipe)
    plain = model.fingerprint
    pipe.safety_checker = torch.nn.Linear(2, 2)
    pipe.feature_extractor = torch.nn.Linear(2, 2)
    pipe.register_to_config(requires_safety_checker=True)
    pipe.unet.set_attn_processor(AttnProcessor())
    assert model.fingerprint == plain


def doubled(module, inputs, output):
    return 2 * output
