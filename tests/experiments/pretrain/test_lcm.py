"""Training of the consistency model: teacher, timesteps, training and error messages."""

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from experiments.pretrain.distillation import text_states
from experiments.pretrain.lcm import (
    DDIMTeacher,
    alpha_sigma,
    boundary_scalings,
    build_lcm_scheduler,
    save_lora,
    timestep_distribution,
)
from experiments.pretrain.low_rank import LowRank
from tests.experiments.pretrain.configured import DISTILLATION, prepare, pretrain
from tests.experiments.pretrain.conftest import CONCEPTS
from tests.experiments.pretrain.test_low_rank import as_if_trained


def test_alpha_sigma_are_signal_and_noise_levels():
    alpha, sigma = alpha_sigma(torch.tensor([1.0, 0.36], dtype=torch.float64), torch.tensor([0, 1]))
    torch.testing.assert_close(alpha.flatten(), torch.tensor([1.0, 0.6]))
    torch.testing.assert_close(sigma.flatten(), torch.tensor([0.0, 0.8]))


def test_teacher_steps_equal_ddim(pipeline):
    """diffusers' DDIM with 25 trailing steps has a stride of 40 timesteps."""
    z, text = torch.randn(2, 4, 16, 16), text_states(pipeline, ["a camel", "a drawing"])

    def network(z, t, text):
        return pipeline.unet(z, t, text).sample

    alpha_bar = pipeline.scheduler.alphas_cumprod.double()
    teacher = DDIMTeacher(network, alpha_bar, text_states(pipeline, [""]), stride=40, strides=3, guidance=(2.5, 2.5))
    t = torch.tensor([959, 499])
    latents, s = teacher.denoise(z, t, text)
    assert s.tolist() == [839, 379]
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(25)
    for row, start in enumerate(t.tolist()):
        x = z[row : row + 1]
        conditional = text[row : row + 1]
        empty = text_states(pipeline, [""])
        with torch.no_grad():
            for now in (start, start - 40, start - 80):
                unconditional, with_text = (network(x, torch.tensor([now]), states) for states in (empty, conditional))
                x = scheduler.step(unconditional + 2.5 * (with_text - unconditional), now, x).prev_sample
        torch.testing.assert_close(latents[row : row + 1], x, atol=1e-4, rtol=1e-4)


def test_teacher_stops_at_the_clean_latent(pipeline):
    teacher = DDIMTeacher(
        lambda z, t, text: pipeline.unet(z, t, text).sample,
        pipeline.scheduler.alphas_cumprod.double(),
        text_states(pipeline, [""]),
        stride=40,
        strides=3,
        guidance=(1.0, 1.0),
    )
    z = torch.randn(1, 4, 16, 16)
    first, s = teacher.denoise(z, torch.tensor([19]), text_states(pipeline, ["a camel"]))
    assert s.tolist() == [0] and not torch.equal(first, z)
    rest, _ = teacher.denoise(first, s, text_states(pipeline, ["a camel"]))
    torch.testing.assert_close(rest, first)  # no steps left
    skip, out = boundary_scalings(s)
    assert (skip.item(), out.item()) == (1.0, 0.0)


def test_few_step_timesteps_are_more_probable(pipeline):
    grid, weights = timestep_distribution(build_lcm_scheduler(pipeline))
    share = dict(zip(grid.tolist(), weights.tolist(), strict=True))
    assert len(share) == 50 and sum(share.values()) == pytest.approx(1)
    assert share[999] == pytest.approx(0.5 / 50 + 0.5 * 4 / 15)  # all samplers with 1, 2, 4 and 8 steps start there
    assert share[499] == pytest.approx(0.5 / 50 + 0.5 * 3 / 15)
    assert share[19] == pytest.approx(0.5 / 50)


def test_lcm_scheduler_has_the_noise_levels_of_the_base(pipeline):
    scheduler = build_lcm_scheduler(pipeline)
    torch.testing.assert_close(scheduler.alphas_cumprod, pipeline.scheduler.alphas_cumprod)


@pytest.mark.slow
def test_training_saves_a_lora_and_resumes(corpus, base, tmp_path):
    result = pretrain("lcm", corpus, tmp_path, f"task.model={base}", *DISTILLATION, "task.rank=2")
    assert result["steps"] == 2
    assert [(row["method"], row["steps"]) for row in result["rows"]] == [
        (method, steps) for method in ("lcm", "ddim") for steps in (1, 2, 4)
    ]
    assert sum(result["rows"][0][bucket]["n"] for bucket in ("head", "medium", "tail")) == CONCEPTS
    model = tmp_path / "run" / "model"
    assert any(tensor.any() for name, tensor in load_file(model / "pytorch_lora_weights.safetensors").items()
               if "lora_B" in name)  # fmt: skip
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipe.load_lora_weights(model)
    pipe.scheduler = LCMScheduler.from_pretrained(model)
    images = pipe("a camel", num_inference_steps=2, guidance_scale=1.0, output_type="pt").images
    assert images.shape == (1, 3, 64, 64)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    pretrain("lcm", corpus, tmp_path, f"task.model={base}", *DISTILLATION, "task.rank=2", steps=3)
    state = torch.load(checkpoint, weights_only=False)
    assert state["global_step"] == 3 and not any("unet" in name for name in state["state_dict"])


@pytest.mark.slow
def test_zero_learning_rate_keeps_a_saved_lora(corpus, base, pipeline, tmp_path):
    start = tmp_path / "start"
    save_lora(as_if_trained(LowRank(pipeline.unet, 2)), pipeline, start)
    options = ("task.rank=2", f"task.init_from={start}", "task.lr=0", "task.accuracy_probe=null")
    pretrain("lcm", corpus, tmp_path, f"task.model={base}", *DISTILLATION, *options, steps=1)
    before, after = (load_file(f / "pytorch_lora_weights.safetensors") for f in (start, tmp_path / "run" / "model"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_invalid_settings_fail_before_training(corpus, base, tmp_path):
    with pytest.raises(ValueError, match=r"task\.guidance=\[3\.0, 2\.0\] is not a range \[low, high\]: write"):
        prepare("lcm", corpus, tmp_path, f"task.model={base}", *DISTILLATION, "task.guidance=[3.0,2.0]")
    with pytest.raises(ValueError, match=r"task\.model='nowhere' cannot be loaded as StableDiffusionPipeline"):
        prepare("lcm", corpus, tmp_path, "task.model=nowhere", *DISTILLATION)
