"""ClipFeatures of a small random CLIP model, compared with the processor and model of transformers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    TimmWrapperConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from seedselect import ClipFeatures
from seedselect.features import view_features

SIDE = 32
MEAN, STD = (
    [0.4, 0.5, 0.6],
    [0.2, 0.25, 0.3],
)  # not CLIP's defaults: must be read from the checkpoint


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
    """Random images, uint8 ``[n,3,H,W]``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def model_input(clip: ClipFeatures, images: torch.Tensor, monkeypatch) -> torch.Tensor:
    seen, original = [], clip.model.get_image_features

    def recording(pixel_values: torch.Tensor) -> object:
        seen.append(pixel_values)
        return original(pixel_values=pixel_values)

    monkeypatch.setattr(clip.model, "get_image_features", recording)
    clip(images)
    return seen[0]


def test_preprocessing_equals_the_processor_at_the_model_size(clip, folder, monkeypatch):
    images = photographs(3)
    expected = CLIPImageProcessor.from_pretrained(folder)(
        images=list(images),
        return_tensors="pt",
    ).pixel_values
    pixels = model_input(clip, images / 255, monkeypatch)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (41, 87), (64, 64), (20, 27)])
def test_preprocessing_of_other_sizes_equals_the_processor_up_to_rounding(clip, folder, monkeypatch, size):
    # low contrast, because the processor clips bicubic overshoot between the two axes
    images = 64 + photographs(2, *size) // 2
    expected = CLIPImageProcessor.from_pretrained(folder)(
        images=list(images),
        return_tensors="pt",
    ).pixel_values
    pixels = model_input(clip, images / 255, monkeypatch)
    # the processor resizes uint8 values: its rounding error is up to 1/255, divided by the standard deviation
    torch.testing.assert_close(pixels, expected, rtol=0, atol=2 / 255 / min(STD))


def test_features_are_the_normalized_features_of_the_model(clip, folder):
    images = photographs(4)
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=list(images), return_tensors="pt").pixel_values
    expected = clip.model.get_image_features(pixel_values=pixels).pooler_output
    features = clip(images / 255)
    assert features.shape == (4, 24)
    torch.testing.assert_close(features, expected / expected.norm(dim=-1, keepdim=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4))


def test_features_of_a_batch_are_independent(clip):
    images = photographs(3, 40, 50) / 255
    alone = torch.cat([clip(image[None]) for image in images])
    torch.testing.assert_close(clip(images), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(32, 32, 0, 0), (64, 64, 0, 0), (48, 96, 0, 22)],
)
def test_gradient_is_nonzero_exactly_inside_the_center_crop(clip, height, width, top, left):
    images = (0.1 + 0.8 * photographs(2, height, width) / 255).requires_grad_()
    clip(images)[:, 0].sum().backward()
    assert torch.isfinite(images.grad).all()
    reached = (images.grad != 0).any(1)
    inside = slice(left + 8, width - left - 8)
    assert reached[:, top : height - top, inside].float().mean() > 0.99
    assert not reached[..., :left].any() and not reached[..., width - left :].any()


def test_gradient_equals_a_finite_difference(clip):
    images = (0.1 + 0.8 * photographs(1) / 255).requires_grad_()
    (slope,) = torch.autograd.grad(clip(images)[0, 0], images)
    step = 0.02 * slope / slope.norm()
    with torch.no_grad():
        rise = clip(images + step)[0, 0] - clip(images - step)[0, 0]
    assert rise.item() == pytest.approx(0.04 * slope.norm().item(), rel=0.05)


def test_model_is_frozen_and_in_evaluation_mode(clip):
    assert not clip.model.training
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_text_features_are_the_normalized_features_of_the_model(clip):
    words = tokenizer()
    prompts = ["a bad cab", "h"]
    features = clip.text(prompts)
    for row, prompt in zip(features, prompts, strict=True):  # without padding, one at a time
        tokens = words(prompt, return_tensors="pt")
        expected = clip.model.get_text_features(**tokens).pooler_output[0]
        torch.testing.assert_close(row, expected / expected.norm(), rtol=0, atol=1e-5)
    assert features.shape == clip(photographs(2) / 255).shape
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))
    assert (features[0] - features[1]).norm() > 1e-3


def test_long_prompts_are_truncated(clip):
    long = " ".join("abcdefgh" * 4)
    torch.testing.assert_close(clip.text([long]), clip.text([long + " a b c"]))


def test_half_precision_model_gives_float32_features(folder, clip):
    images = photographs(2) / 255
    features = load(folder, torch.bfloat16)(images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))
    assert (torch.cosine_similarity(features, clip(images)) > 0.99).all()


@pytest.mark.parametrize("local", [True, False])
def test_error_names_a_folder_without_a_model(tmp_path, local, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="CLIP model") as caught:
        ClipFeatures.from_pretrained(tmp_path, device="cpu", dtype=torch.float32, local_files_only=local)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_error_names_a_folder_that_cannot_be_loaded(folder, tmp_path):
    for name, corrupt in [
        ("weights", lambda path: (path / "model.safetensors").unlink()),
        ("config", lambda path: (path / "config.json").write_text("{")),
        ("kind", lambda path: (path / "config.json").write_text(json.dumps({"hidden_size": 8}))),
    ]:
        copy = shutil.copytree(folder, tmp_path / name)
        corrupt(copy)
        with pytest.raises(ValueError, match="cannot load a CLIP model") as caught:
            load(copy)
        assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


def dual_encoder(words: CLIPTokenizer, **vision: object) -> VisionTextDualEncoderModel:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {name: getattr(words, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text_config = CLIPTextConfig(**text, **ids, vocab_size=len(words), max_position_embeddings=12)
    vision_config = TimmWrapperConfig(
        architecture="resnet10t", do_pooling=True, hidden_size=512, num_labels=0, **vision
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision_config, text_config, projection_dim=24)
    return VisionTextDualEncoderModel(config)


def test_model_with_a_timm_image_encoder(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "timm")
    network = dual_encoder(tokenizer(), image_size=SIDE).eval()
    network.save_pretrained(copy)
    clip = load(copy)
    assert clip.size == SIDE
    images = photographs(2)
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=list(images), return_tensors="pt").pixel_values
    expected = network.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(clip(images / 255), torch.nn.functional.normalize(expected), rtol=0, atol=1e-4)
    assert clip.text(["a bad cab"]).shape == (1, 24)


def test_model_without_an_image_size_is_an_error(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "timm")
    dual_encoder(tokenizer()).save_pretrained(copy)
    with pytest.raises(ValueError, match=r"no vision_config\.image_size: add the side of the input images in pixels"):
        load(copy)


def test_other_model_types_are_rejected(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "bert")
    (copy / "model.safetensors").unlink()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(**sizes, vocab_size=18)).save_pretrained(copy)
    with pytest.raises(ValueError, match="'bert'"):
        load(copy)


def unit_colors(images: torch.Tensor) -> torch.Tensor:
    """Return the unit-length mean colors of the left halves of images, as features."""
    return torch.nn.functional.normalize(images[..., : images.shape[-1] // 2].mean((2, 3)), dim=-1)


def test_one_view_is_the_image():
    images = torch.rand(2, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(view_features(unit_colors, images, views=1), unit_colors(images))


def test_views_are_the_same_in_every_call_and_for_every_image():
    images = torch.rand(3, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    seen = []

    def recorded(views: torch.Tensor) -> torch.Tensor:
        assert views.shape[1:] == images.shape[1:]
        assert views.min() >= 0 and views.max() <= 1
        seen.append(views)
        return unit_colors(views)

    together = view_features(recorded, images, views=4)
    expected = torch.stack([unit_colors(view) for view in seen]).mean(0)
    torch.testing.assert_close(together, expected)
    assert len(seen) == 4 and torch.equal(seen[0], images)
    assert not any(torch.allclose(seen[i], seen[j]) for i in range(4) for j in range(i))
    alone = torch.cat([view_features(unit_colors, image[None], views=4) for image in images])
    torch.testing.assert_close(together, alone)


def test_gradient_passes_through_every_view():
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    one = torch.autograd.grad(unit_colors(images)[0, 0], images)[0]
    four = torch.autograd.grad(view_features(unit_colors, images, views=4)[0, 0], images)[0]
    assert four.isfinite().all() and not torch.allclose(one, four)
