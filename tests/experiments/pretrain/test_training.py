"""The trainings run, resume, and save models that load in diffusers and transformers."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN

from experiments.data.augmentations import jitter
from experiments.evaluation.classifier import load_classifier
from experiments.pretrain.denoiser import CaptionedLatents, build_tokenizer
from experiments.pretrain.training import fastest_precision
from seedselect import ClipFeatures
from tests.experiments.pretrain.configured import prepare, pretrain
from tests.experiments.pretrain.conftest import CONCEPTS

pytestmark = pytest.mark.slow


def unseen(corpus: Path, *splits: str) -> int:
    return sum(pq.read_metadata(corpus / f"drawings-{split}.parquet").num_rows for split in splits)


def test_autoencoder_resumes_from_its_checkpoint(corpus, tmp_path):
    pretrain("autoencoder", corpus, tmp_path)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=False)["global_step"] == 2
    result = pretrain("autoencoder", corpus, tmp_path, steps=3)
    assert torch.load(checkpoint, weights_only=False)["global_step"] == 3
    assert result["n"] == unseen(corpus, "reference", "fid")
    assert AutoencoderKL.from_pretrained(tmp_path / "run" / "model").config.scaling_factor == result["scaling_factor"]


def test_denoiser_is_a_complete_stable_diffusion_pipeline(corpus, tmp_path):
    vae = Path("assets/models/emoji/vae").resolve()
    pretrain("denoiser", corpus, tmp_path, f"task.vae={vae}", "task.prompts=[a drawing of a camel]")
    grid = Image.open(tmp_path / "run" / "samples" / "step000002.png")
    assert grid.size == (64, 64)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "model")
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    assert pipeline("a drawing of an owl", num_inference_steps=2, output_type="pt").images.shape == (1, 3, 64, 64)


def test_rebuilt_tokenizer_has_the_same_ids():
    captions = [
        f"a drawing of {a} {b} in {c} style"
        for a in ("an old", "a", "x")
        for b in "abcdefgh"
        for c in ("noto", "emoji")
    ]
    first, second = build_tokenizer(captions), build_tokenizer(captions)
    assert len(first) == len(second)
    for caption in captions:
        assert first(caption).input_ids == second(caption).input_ids
        assert len(first(caption).input_ids) == len(caption.split()) + 2  # one token per word, start and end


def test_denoiser_starts_from_saved_weights(corpus, tmp_path):
    start = Path("assets/models/emoji").resolve()
    pretrain("denoiser", corpus, tmp_path, f"task.init_from={start}", "task.prompts=[a camel]", "task.lr=0", steps=1)
    first, second = (StableDiffusionPipeline.from_pretrained(path) for path in (start, tmp_path / "run" / "model"))
    for a, b in zip(first.unet.parameters(), second.unet.parameters(), strict=True):
        assert torch.equal(a, b)


SMALL_CLIP = ("task.architecture=mobilenetv3_small_050", "task.image_size=64", "task.width=32")


def test_clip_loads_as_features(corpus, tmp_path):
    assert pretrain("clip", corpus, tmp_path, *SMALL_CLIP)["n"] == unseen(corpus, "reference")
    clip = ClipFeatures.from_pretrained(
        tmp_path / "run" / "model", device="cpu", dtype=torch.float32, local_files_only=True
    )
    assert clip.size == 64
    assert clip.mean.flatten().tolist() == pytest.approx(IMAGENET_DEFAULT_MEAN)  # of the timm model
    assert clip(torch.rand(2, 3, 64, 64)).shape == clip.text(["a camel", "an owl"]).shape == (2, 32)


def test_clip_starts_from_the_weights_of_a_file(corpus, tmp_path):
    start = timm.create_model("mobilenetv3_small_050")
    torch.save(start.state_dict(), tmp_path / "start.pth")
    pretrain("clip", corpus, tmp_path, *SMALL_CLIP, f"task.init_from={tmp_path}/start.pth", "task.body_lr=1e-12")
    clip = ClipFeatures.from_pretrained(
        tmp_path / "run" / "model", device="cpu", dtype=torch.float32, local_files_only=True
    )
    expected = start.state_dict()["conv_stem.weight"]
    saved = clip.model.vision_model.timm_model.state_dict()["conv_stem.weight"]
    torch.testing.assert_close(saved, expected, rtol=0, atol=1e-3)  # saved as float16


@pytest.mark.parametrize("override", ["task.architecture=vit_of_nobody", "task.width=7"])
def test_clip_settings_without_a_network_are_an_error(corpus, tmp_path, override):
    key = override.partition("=")[0]
    with pytest.raises(ValueError, match=rf"{key}=.*cannot build this network"):
        prepare("clip", corpus, tmp_path, *SMALL_CLIP, override)


@pytest.mark.parametrize("excluded", [["twemoji", "emojione"], []])
def test_classifier_reports_accuracy_on_excluded_designers(corpus, tmp_path, excluded):
    result = pretrain("classifier", corpus, tmp_path, f"task.excluded=[{','.join(excluded)}]")
    assert set(result) - {"loss"} == {"steps", *excluded, *(["accuracy", "n"] if excluded else [])}
    assert len(load_classifier(tmp_path / "run" / "model").labels) == CONCEPTS
    if not excluded:  # a finished training can be run again
        assert pretrain("classifier", corpus, tmp_path, "task.excluded=[]")["steps"] == result["steps"] == 2


def test_missing_corpus_fails_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"has no drawings-corpus\.parquet"):
        pretrain("clip", tmp_path / "nowhere", tmp_path)


def test_jitter_output_is_a_valid_image():
    torch.manual_seed(0)
    images = torch.rand(8, 3, 64, 64)
    changed = jitter(images)
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    assert (changed - images).abs().flatten(1).mean(1).min() > 0.01


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx2": True}, "32-true"), ({"avx512_bf16": True}, "bf16-mixed"), ({"bf16": True}, "bf16-mixed")],
    ids=["none", "x86", "arm"],
)
def test_bfloat16_is_used_only_with_native_support(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fastest_precision() == precision


def test_latents_in_the_cache_are_used_only_with_the_same_vae_and_images(corpus, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained("assets/models/emoji")
    vae = pipeline.vae.eval()

    def latents(**options: int) -> torch.Tensor:
        cache = tmp_path / "latents.safetensors"
        return CaptionedLatents(str(corpus), vae, pipeline.tokenizer, cache=cache, **options).latents

    first = latents(max_images=4)
    changed = tmp_path.joinpath("latents.safetensors").stat().st_mtime_ns
    assert torch.equal(latents(max_images=4), first)
    assert tmp_path.joinpath("latents.safetensors").stat().st_mtime_ns == changed
    assert len(latents(max_images=3)) == 3
    with torch.no_grad():
        vae.quant_conv.bias += 1
    assert not torch.equal(latents(max_images=4), first)
