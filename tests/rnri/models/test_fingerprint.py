"""The fingerprint changes with everything that changes the output, and with nothing else."""

import json
import shutil

import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig

from rnri import LatentDiffusion
from tests.pipelines import tiny_stable_diffusion
from tests.rnri.models.checkpoints import bpe_tokenizer, load, with_tokenizer


class RenamedScheduler(DDIMScheduler):
    """Another class with the same config."""


class ScaledProcessor(AttnProcessor):
    """An attention processor with a setting."""

    def __init__(self, scale):
        self.scale = scale


def doubled(module, inputs, output):
    return 2 * output


def test_depends_on_content_not_location(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "elsewhere")
    expected = load(checkpoint).fingerprint
    assert load(folder).fingerprint == expected and len(expected) == 64
    other = load(folder)
    other.pipeline.unet.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    assert other.fingerprint != expected
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"set_alpha_to_one": True}))
    assert load(folder).fingerprint != expected


def test_depends_on_active_adapters_and_scales():
    pipe = tiny_stable_diffusion()
    model = LatentDiffusion(pipe)
    without_adapters = model.fingerprint
    for name, seed in (("x", 0), ("y", 1)):
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        pipe.unet.add_adapter(config, adapter_name=name)
    fingerprints = [without_adapters]
    for change in (
        lambda: pipe.set_adapters(["x"], [1.0]),
        lambda: pipe.set_adapters(["x"], [0.3]),
        lambda: pipe.set_adapters(["y"], [0.3]),
        lambda: pipe.set_adapters(["x", "y"], [0.3, 0.3]),
        pipe.unet.disable_adapters,
    ):
        change()
        fingerprints.append(model.fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)
    pipe.unet.enable_adapters()
    pipe.set_adapters(["x"], [0.3])
    assert model.fingerprint == fingerprints[2]


def test_depends_on_weights_freeu_and_tiling():
    pipe = tiny_stable_diffusion()
    model = LatentDiffusion(pipe)
    fingerprints = [model.fingerprint]
    with torch.no_grad():
        pipe.unet.conv_in.weight.add_(1e-3)
    fingerprints.append(model.fingerprint)
    pipe.unet.conv_in.weight.data.add_(1e-3)  # does not increase the tensor's version, as when fusing adapters
    fingerprints.append(model.fingerprint)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    fingerprints.append(model.fingerprint)
    pipe.vae.enable_tiling()
    fingerprints.append(model.fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


def test_depends_on_tokenizer_scheduler_processors_and_hooks():
    pipe = with_tokenizer(bpe_tokenizer())
    model = LatentDiffusion(pipe)
    fingerprints = [model.fingerprint]

    def assert_changes(change):
        change()
        assert model.fingerprint not in fingerprints
        fingerprints.append(model.fingerprint)

    model.predictor(["a cat"])  # sets truncation and padding in the tokenizer
    assert model.fingerprint == fingerprints[0]
    assert_changes(lambda: setattr(pipe.tokenizer, "model_max_length", 8))
    assert_changes(lambda: setattr(pipe, "tokenizer", bpe_tokenizer(merges=20)))  # same vocabulary, other tokens
    offset_scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, steps_offset=2)
    assert_changes(lambda: setattr(pipe, "scheduler", offset_scheduler))
    assert_changes(lambda: pipe.scheduler.alphas_cumprod.mul_(0.99))
    assert_changes(lambda: setattr(pipe, "scheduler", RenamedScheduler.from_config(pipe.scheduler.config)))
    assert_changes(lambda: pipe.unet.set_attn_processor(ScaledProcessor(0.5)))
    assert_changes(lambda: pipe.unet.set_attn_processor(ScaledProcessor(0.7)))
    assert_changes(lambda: pipe.unet.conv_in.register_forward_hook(doubled))


def test_ignores_unused_components():
    pipe = tiny_stable_diffusion()
    model = LatentDiffusion(pipe)
    expected = model.fingerprint
    pipe.safety_checker = torch.nn.Linear(2, 2)
    pipe.feature_extractor = torch.nn.Linear(2, 2)
    pipe.register_to_config(requires_safety_checker=True)
    pipe.unet.set_attn_processor(AttnProcessor())
    assert model.fingerprint == expected
