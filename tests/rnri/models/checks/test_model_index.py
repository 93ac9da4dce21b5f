"""``model_index.json`` of unsupported pipelines is rejected, for folders and hub ids."""

import json
import shutil

import huggingface_hub
import pytest
from diffusers import HunyuanDiTPipeline, KandinskyPriorPipeline

from tests.rnri.models.checkpoints import assert_rejected, load, update_json


@pytest.mark.parametrize(
    "class_name", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionInpaintPipeline", "NoSuchPipeline"]
)
def test_unsupported_class(checkpoint_copy, class_name):
    update_json(checkpoint_copy / "model_index.json", _class_name=class_name)
    assert_rejected(lambda: load(checkpoint_copy), class_name, "_class_name")


@pytest.mark.parametrize("class_name", [["pipeline", "Custom"], None, 3])
def test_invalid_class_name(checkpoint_copy, class_name):
    update_json(checkpoint_copy / "model_index.json", _class_name=class_name)
    assert_rejected(lambda: load(checkpoint_copy), "model_index.json", "_class_name")


@pytest.mark.parametrize("entry", [["diffusers", "NoSuchModel"], ["transformers", "UNet2DConditionModel"]])
def test_unknown_component_class(checkpoint_copy, entry):
    update_json(checkpoint_copy / "model_index.json", unet=entry)
    assert_rejected(lambda: load(checkpoint_copy), "unet", entry[1], entry[0])


@pytest.mark.parametrize(
    "entry", [["diffusers"], [], ["diffusers", "UNet2DConditionModel", "x"], ["diffusers", None], [1, 2]]
)
def test_malformed_entry(checkpoint_copy, entry):
    update_json(checkpoint_copy / "model_index.json", unet=entry)
    assert_rejected(lambda: load(checkpoint_copy), str(checkpoint_copy))


def test_pipelines_without_supported_network(checkpoint_copy):
    path = checkpoint_copy / "model_index.json"
    index = json.loads(path.read_text())
    del index["unet"]
    index |= {"_class_name": KandinskyPriorPipeline.__name__, "prior": ["diffusers", "PriorTransformer"]}
    path.write_text(json.dumps(index))
    expected = "KandinskyPriorPipeline without a UNet or transformer; load a supported model ("
    assert_rejected(lambda: load(checkpoint_copy), expected, "Stable Diffusion 1.x")
    update_json(path, _class_name=HunyuanDiTPipeline.__name__, transformer=["diffusers", "HunyuanDiT2DModel"])
    expected = "HunyuanDiTPipeline, which is not a supported text-to-image pipeline"
    assert_rejected(lambda: load(checkpoint_copy), expected)


def test_sdxl_refiner(tmp_path):
    index = {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "requires_aesthetics_score": True,
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert_rejected(lambda: load(tmp_path), "refiner", "supported model")


@pytest.fixture
def hub_snapshot(checkpoint_copy, tmp_path, monkeypatch):
    """Snapshot folder of ``owner/name`` in a temporary hub cache."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    checkpoint_copy.rename(snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_hub_ids_are_checked_like_folders(hub_snapshot, checkpoint):
    assert load("owner/name").fingerprint == load(checkpoint).fingerprint
    shutil.rmtree(hub_snapshot / "vae")
    assert_rejected(lambda: load("owner/name"), "lacks its component 'vae'")
    (hub_snapshot / "tokenizer" / "tokenizer.json").unlink()
    assert_rejected(lambda: load("owner/name"), "vocabulary of its component 'tokenizer'")


def test_unknown_hub_id(hub_snapshot):
    assert_rejected(lambda: load("owner/other"), "owner/other")


def test_unreachable_hub_id():
    assert_rejected(lambda: load("owner/name"), "neither a local folder nor a reachable hub id")
