"""Weights that are missing, unknown, damaged or of another shape are rejected."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pipelines import TOKENS
from tests.rnri.models.checkpoints import WEIGHTS, assert_rejected, load


def save(weights, path):
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize("component", WEIGHTS)
def test_missing_key(checkpoint_copy, component):
    path = checkpoint_copy / component / WEIGHTS[component]
    weights = load_file(path)
    key = sorted(weights)[3]
    del weights[key]
    save(weights, path)
    assert_rejected(lambda: load(checkpoint_copy), component, key)


@pytest.mark.parametrize("component", WEIGHTS)
def test_wrong_shape(checkpoint_copy, component):
    path = checkpoint_copy / component / WEIGHTS[component]
    weights = load_file(path)
    key = next(key for key in sorted(weights) if weights[key].ndim > 1)
    weights[key] = weights[key][:-1].contiguous()
    save(weights, path)
    assert_rejected(lambda: load(checkpoint_copy), "could not be loaded", component, f"wrong shape for {key}")


@pytest.mark.parametrize("component", WEIGHTS)
def test_unknown_key(checkpoint_copy, component):
    path = checkpoint_copy / component / WEIGHTS[component]
    save(load_file(path) | {"mid_block.more.weight": torch.ones(2)}, path)
    assert_rejected(lambda: load(checkpoint_copy), component, "mid_block.more.weight", "config.json")


def test_other_weights_of_clip_are_accepted(checkpoint_copy):
    path = checkpoint_copy / "text_encoder" / "model.safetensors"
    more = {"text_projection.weight": torch.ones(2, 2), "logit_scale": torch.ones(()), "vision_model.x": torch.ones(1)}
    prefix = next(iter(load_file(path))).split("embeddings")[0].split("encoder")[0]
    more[f"{prefix}embeddings.position_ids"] = torch.arange(TOKENS)[None]
    save(load_file(path) | more, path)
    assert load(checkpoint_copy).predictor(["a cat"]) is not None


def test_old_names_of_vae_attention_are_accepted(checkpoint_copy, checkpoint):
    path = checkpoint_copy / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    for new, name in old.items():
        weights = {key.replace(f".{new}.", f".{name}."): value for key, value in weights.items()}
    assert any(".query." in key for key in weights)
    save(weights, path)
    assert load(checkpoint_copy).fingerprint == load(checkpoint).fingerprint


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_truncated_file(checkpoint_copy, file):
    path = checkpoint_copy / file
    path.write_bytes(path.read_bytes()[:1000])
    assert_rejected(lambda: load(checkpoint_copy), f"component {file.split('/')[0]!r}")


def test_corrupt_file(checkpoint_copy):
    (checkpoint_copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not a tensor")
    assert_rejected(lambda: load(checkpoint_copy), "could not be loaded")
