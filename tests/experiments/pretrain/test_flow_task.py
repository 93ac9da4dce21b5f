"""Training of the flow-matching model: saved pipelines and error messages."""

import pytest
import torch
from diffusers import DiffusionPipeline

from experiments.pretrain.flow_model import (
    WITHOUT_T5,
    MergedPaddingAttention,
    attention_processor,
    clip_states,
    sample_images,
)
from tests.experiments.pretrain.configured import DISTILLATION, prepare, pretrain

pytestmark = pytest.mark.slow

TINY_FLOW = ("task.width=24", "task.heads=2", "task.layers=2", "task.hint_layer=up_blocks.0.resnets.0")


def test_training_saves_a_complete_sd3_pipeline(corpus, base, tmp_path):
    result = pretrain("flow", corpus, tmp_path, f"task.model={base}", *DISTILLATION, f"task.teacher={base}", *TINY_FLOW)
    assert result["steps"] == 2
    assert [row["guidance"] for row in result["rows"]] == [6.0]
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "run" / "model")
    assert type(pipe).__name__ == "StableDiffusion3Pipeline"
    without = DiffusionPipeline.from_pretrained(tmp_path / "run" / "model", **WITHOUT_T5)
    first, second = (p.encode_prompt(["a camel"], None, None) for p in (pipe, without))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # the third encoder outputs zeros
    for part in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer"):
        assert getattr(pipe, part).dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.1)
    without.register_modules(transformer=pipe.transformer)
    seeds = torch.randn(2, 4, 16, 16)
    prompts = ["a camel", "a drawing of a camel"]
    images = pipe(prompts, num_inference_steps=3, guidance_scale=2.0, latents=seeds, output_type="pt").images
    with attention_processor(pipe.transformer, MergedPaddingAttention()):
        sampled = sample_images(without, prompts, seeds, steps=3, guidance=2.0)
    torch.testing.assert_close(sampled, images, atol=2e-3, rtol=0)


def test_training_from_data_and_from_a_saved_model(corpus, base, tmp_path):
    options = (f"task.model={base}", *DISTILLATION, "task.teacher=null", "task.accuracy_probe=null", *TINY_FLOW)
    pretrain("flow", corpus, tmp_path / "first", *options)
    start = tmp_path / "first" / "run" / "model"
    pretrain(
        "flow",
        corpus,
        tmp_path / "second",
        f"task.model={base}",
        *DISTILLATION,
        *options,
        f"task.init_from={start}",
        "task.lr=0",
        steps=1,
    )
    first, second = (
        DiffusionPipeline.from_pretrained(p, **WITHOUT_T5) for p in (start, tmp_path / "second" / "run" / "model")
    )
    for a, b in zip(first.transformer.parameters(), second.transformer.parameters(), strict=True):
        assert torch.equal(a, b)
    assert clip_states(first, ["a camel"])[0].shape == (1, 24, 32)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.width=25", r"task\.width=25 must be a multiple of task\.heads=2"),
        ("task.hint_layer=nothing", r"task\.hint_layer='nothing' is not a layer of the teacher's U-Net"),
        ("task.hint_layer=conv_in", r"task\.hint_layer='conv_in' has a feature map with 256 positions, .* 64 tokens"),
        ("task.teacher=nowhere", r"task\.teacher='nowhere' cannot be loaded as StableDiffusionPipeline"),
    ],
)
def test_invalid_settings_fail_before_training(corpus, base, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        prepare(
            "flow", corpus, tmp_path, f"task.model={base}", *DISTILLATION, f"task.teacher={base}", *TINY_FLOW, override
        )
