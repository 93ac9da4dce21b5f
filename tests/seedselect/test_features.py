"""CLIP features of a small random model, against the processor and the model of transformers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from seedselect import ClipFeatures

SIDE = 32
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]  # not CLIP's own, so that the checkpoint's have to be read


def tokenizer() -> CLIPTokenizer:
    pieces = [letter + end for letter in "abcdefgh" for end in ("", "</w>")]
    vocabulary = {piece: k for k, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[])


def model(words: CLIPTokenizer) -> CLIPModel:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    text = tower | ids | {"vocab_size": len(words), "max_position_embeddings": 12}
    vision = tower | {"image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path, words = tmp_path_factory.mktemp("clip"), tokenizer()
    model(words).save_pretrained(path)
    words.save_pretrained(path)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(path)
    return path


def load(path: Path, dtype: torch.dtype = torch.float32) -> ClipFeatures:
    return ClipFeatures.from_pretrained(path, device="cpu", dtype=dtype, local_files_only=True)


@pytest.fixture
def clip(folder) -> ClipFeatures:
    return load(folder)


def photographs(n: int, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """Bytes ``[n, 3, H, W]``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def pixels_given_to(clip: ClipFeatures, images: torch.Tensor, monkeypatch) -> torch.Tensor:
    seen, original = [], clip.model.get_image_features

    def watched(pixel_values: torch.Tensor) -> object:
        seen.append(pixel_values)
        return original(pixel_values=pixel_values)

    monkeypatch.setattr(clip.model, "get_image_features", watched)
    clip(images)
    return seen[0]


def test_pixels_of_the_models_size_are_the_processors(clip, folder, monkeypatch):
    images = photographs(3)
    expected = CLIPImageProcessor.from_pretrained(folder)(
        images=list(images),
        return_tensors="pt",
    ).pixel_values
    pixels = pixels_given_to(clip, images / 255, monkeypatch)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (41, 87), (64, 64), (20, 27)])
def test_pixels_of_other_sizes_are_the_processors_but_for_its_rounding(clip, folder, monkeypatch, size):
    # low contrast, because the processor cuts off bicubic overshoot between both axes
    images = 64 + photographs(2, *size) // 2
    expected = CLIPImageProcessor.from_pretrained(folder)(
        images=list(images),
        return_tensors="pt",
    ).pixel_values
    pixels = pixels_given_to(clip, images / 255, monkeypatch)
    # the processor resizes bytes, so it is off by up to a step of 1/255, divided by the deviation
    torch.testing.assert_close(pixels, expected, rtol=0, atol=2 / 255 / min(STD))


def test_features_have_unit_length_and_are_the_models(clip, folder):
    images = photographs(4)
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=list(images), return_tensors="pt").pixel_values
    expected = clip.model.get_image_features(pixel_values=pixels).pooler_output
    found = clip(images / 255)
    assert found.shape == (4, 24)
    torch.testing.assert_close(found, expected / expected.norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))


def test_features_do_not_depend_on_neighbors(clip):
    images = photographs(3, 40, 50) / 255
    alone = torch.cat([clip(image[None]) for image in images])
    torch.testing.assert_close(clip(images), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(32, 32, 0, 0), (64, 64, 0, 0), (48, 96, 0, 22)],
)
def test_gradient_reaches_every_pixel_that_is_seen_and_no_other(clip, height, width, top, left):
    images = (0.1 + 0.8 * photographs(2, height, width) / 255).requires_grad_()
    clip(images)[:, 0].sum().backward()
    assert torch.isfinite(images.grad).all()
    reached = (images.grad != 0).any(1)
    inside = slice(left + 8, width - left - 8)
    assert reached[:, top : height - top, inside].float().mean() > 0.99
    assert not reached[..., :left].any() and not reached[..., width - left :].any()


def test_gradient_is_the_slope_along_itself(clip):
    images = (0.1 + 0.8 * photographs(1) / 255).requires_grad_()
    (slope,) = torch.autograd.grad(clip(images)[0, 0], images)
    step = 0.02 * slope / slope.norm()
    with torch.no_grad():
        rise = clip(images + step)[0, 0] - clip(images - step)[0, 0]
    assert rise.item() == pytest.approx(0.04 * slope.norm().item(), rel=0.05)


def test_model_is_frozen_and_in_evaluation_mode(clip):
    assert not clip.model.training
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_text_features_are_the_models_in_the_same_space(clip):
    words = tokenizer()
    prompts = ["a bad cab", "h"]
    found = clip.text(prompts)
    for row, prompt in zip(found, prompts, strict=True):  # without padding, one at a time
        tokens = words(prompt, return_tensors="pt")
        expected = clip.model.get_text_features(**tokens).pooler_output[0]
        torch.testing.assert_close(row, expected / expected.norm(), rtol=0, atol=1e-5)
    assert found.shape == clip(photographs(2) / 255).shape
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2))
    assert (found[0] - found[1]).norm() > 1e-3


def test_prompts_longer_than_the_model_reads_are_cut(clip):
    long = " ".join("abcdefgh" * 4)
    torch.testing.assert_close(clip.text([long]), clip.text([long + " a b c"]))


def test_half_precision_gives_float32_features_of_unit_length(folder, clip):
    images = photographs(2) / 255
    found = load(folder, torch.bfloat16)(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2))
    assert (torch.cosine_similarity(found, clip(images)) > 0.99).all()


@pytest.mark.parametrize("local", [True, False])
def test_folder_without_a_model_is_named(tmp_path, local, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="CLIP model") as caught:
        ClipFeatures.from_pretrained(tmp_path, device="cpu", dtype=torch.float32, local_files_only=local)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_folder_without_weights_or_with_a_broken_config_is_named(folder, tmp_path):
    for name, spoil in [
        ("weights", lambda path: (path / "model.safetensors").unlink()),
        ("config", lambda path: (path / "config.json").write_text("{")),
        ("kind", lambda path: (path / "config.json").write_text(json.dumps({"hidden_size": 8}))),
    ]:
        copy = shutil.copytree(folder, tmp_path / name)
        spoil(copy)
        with pytest.raises(ValueError, match="cannot load a CLIP model") as caught:
            load(copy)
        assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def test_model_of_another_kind_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "bert")
    (copy / "model.safetensors").unlink()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(**sizes, vocab_size=18)).save_pretrained(copy)
    with pytest.raises(ValueError, match="'bert'"):
        load(copy)
