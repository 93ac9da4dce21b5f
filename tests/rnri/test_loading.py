"""Networks whose files lack weights, weight files of other content, and incomplete tokenizers are rejected."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from experiments.evaluation.editing_networks import dino_structure, squeeze_lpips
from experiments.evaluation.inception import load_inception
from experiments.evaluation.lpips import load_lpips
from experiments.pretrain.classifier import load_in_order
from rnri.loading import read_weights
from seedselect import ClipFeatures
from seedselect.rewards import _load_clip
from tests.rnri.models.checkpoints import assert_rejected

CLIP = Path("assets/models/clip")


@pytest.fixture
def clip(tmp_path) -> Path:
    return shutil.copytree(CLIP, tmp_path / "clip")


@pytest.fixture
def dino(tmp_path) -> Path:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16
    )
    ViTModel(config, add_pooling_layer=True).save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


def load_clip(path: Path) -> ClipFeatures:
    return ClipFeatures.from_pretrained(path, device="cpu", dtype="float32", local_files_only=True)


def load_reward(path: Path) -> ClipFeatures:
    return _load_clip(str(path), "float32", True, "cpu")


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without(part: str):
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


@pytest.mark.parametrize("load", [load_clip, load_reward])
def test_clip_without_vision_model_is_rejected(clip, load):
    change_weights(clip, without("vision_model"))
    assert_rejected(lambda: load(clip), str(clip), "do not contain vision_model.", "(384 such weights)")


@pytest.mark.parametrize("name", ["visual_projection.weight", "text_model.final_layer_norm.bias"])
def test_clip_without_one_weight_is_rejected(clip, name):
    change_weights(clip, without(name))
    assert_rejected(lambda: load_clip(clip), str(clip), name, "(1 such weights)")


def test_clip_with_unknown_weights_is_rejected(clip):
    """A config with fewer layers than the file would silently use a part of the network."""
    change_weights(clip, lambda weights: weights | {"vision_model.encoder.layers.9.mlp.fc1.bias": torch.ones(2)})
    assert_rejected(lambda: load_clip(clip), "in addition", "layers.9.mlp.fc1.bias")


def test_clip_with_a_weight_of_another_shape_is_rejected(clip):
    name = "text_projection.weight"
    change_weights(clip, lambda weights: weights | {name: weights[name][:-1].contiguous()})
    assert_rejected(lambda: load_clip(clip), str(clip), f"wrong shape for {name}")


def test_clip_with_a_weight_that_is_not_finite_is_rejected(clip):
    name = "text_projection.weight"
    change_weights(clip, lambda weights: weights | {name: weights[name] * torch.nan})
    assert_rejected(lambda: load_clip(clip), str(clip), f"not finite, in {name}")


def test_unused_weights_of_clip_are_harmless(clip):
    expected = load_clip(CLIP).text(["a cat"])
    more = {"vision_model.embeddings.position_ids": torch.arange(2)[None]}
    change_weights(clip, lambda weights: without("logit_scale")(weights) | more)
    assert torch.equal(load_clip(clip).text(["a cat"]), expected)


def test_truncated_weights_of_clip_are_rejected(clip):
    path = clip / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    assert_rejected(lambda: load_clip(clip), str(clip))


@pytest.mark.parametrize("load", [load_clip, load_reward])
def test_clip_without_a_vocabulary_is_rejected(clip, load):
    (clip / "tokenizer.json").unlink()
    assert_rejected(lambda: load(clip), str(clip), "lacks the vocabulary", "tokenizer.json")


@pytest.mark.parametrize("content", ["{}", "{", '{"model": {"type": "BPE"}}'])
def test_damaged_vocabulary_of_clip_is_rejected(clip, content):
    (clip / "tokenizer.json").write_text(content)
    assert_rejected(lambda: load_clip(clip), str(clip), "download the tokenizer's files again")


def test_small_vocabulary_of_clip_is_rejected(clip):
    path = clip / "tokenizer.json"
    content = json.loads(path.read_text())
    special = {token["content"] for token in content["added_tokens"]}
    content["model"]["vocab"] = {word: k for word, k in content["model"]["vocab"].items() if word in special}
    content["model"]["merges"] = []
    path.write_text(json.dumps(content))
    assert_rejected(lambda: load_clip(clip), str(clip))


@pytest.mark.parametrize("values", [{"image_std": [0.2, 0.0, 0.2]}, {"image_mean": [0.5]}])
def test_invalid_normalization_of_clip_is_rejected(clip, values):
    path = clip / "processor_config.json"
    content = json.loads(path.read_text())
    content.get("image_processor", content).update(values)
    path.write_text(json.dumps(content))
    assert_rejected(lambda: load_clip(clip), str(clip), "image_std")


def test_dinov2_is_rejected(tmp_path):
    config = Dinov2Config(
        hidden_size=768, num_hidden_layers=1, num_attention_heads=12, image_size=28, patch_size=14, mlp_ratio=1
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    assert_rejected(lambda: dino_structure(str(tmp_path), "cpu"), "task.dino", str(tmp_path), "'vit', got 'dinov2'")


def test_dino_without_a_layer_norm_is_rejected(dino):
    assert dino_structure(str(dino), "cpu").fingerprint  # the pooler is harmless
    change_weights(dino, without("layernorm_before"))
    assert_rejected(lambda: dino_structure(str(dino), "cpu"), "task.dino", str(dino), "layernorm_before", "(4 such")


def test_transformers_fills_missing_weights(dino):
    """Without this behavior of transformers the checks are not needed."""
    change_weights(dino, without("layernorm_before"))
    assert ViTModel.from_pretrained(dino) is not None


CONTENTS = {
    "bare tensor": lambda path: torch.save(torch.ones(3), path),
    "list": lambda path: torch.save([torch.ones(3)], path),
    "nested": lambda path: torch.save({"state_dict": {"a": torch.ones(3)}}, path),
    "empty dict": lambda path: torch.save({}, path),
    "not finite": lambda path: torch.save({"a": torch.tensor([torch.inf])}, path),
    "empty file": lambda path: path.touch(),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "folder": lambda path: path.mkdir(),
    "missing": lambda path: None,
}
READERS = {
    "weights": read_weights,
    "ST-LPIPS": load_lpips,
    "task.lpips": lambda path: squeeze_lpips(str(path), "cpu"),
    "metrics.inception": load_inception,
    "task.init_from": lambda path: load_in_order(torch.nn.Identity(), str(path)),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_files_of_other_content_are_rejected(tmp_path, content, reader):
    path = tmp_path / "weights.pth"
    CONTENTS[content](path)
    assert_rejected(lambda: READERS[reader](path), str(path), reader if "." in reader else "")


def test_safetensors_files_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    assert read_weights(tmp_path / "weights.safetensors")["a"].tolist() == [1, 1]
    (tmp_path / "weights.safetensors").write_bytes(b"none")
    assert_rejected(lambda: read_weights(tmp_path / "weights.safetensors"), "cannot be read")
