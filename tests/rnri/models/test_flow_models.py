"""Flow-matching families against their own pipelines."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from peft import LoraConfig

from rnri import LatentDiffusion, Schedule
from rnri.models.flux import pack, unpack
from tests.pipelines import LATENT_SHAPE, tiny_flux, tiny_sd3

PROMPTS = ["a cat", "two dogs"]


def seeds(height=8, width=8):
    return torch.randn(2, LATENT_SHAPE[0], height, width, generator=torch.Generator().manual_seed(3))


def ours(pipeline, noise, steps, guidance, size=None, **options):
    model = LatentDiffusion(pipeline, image_size=size)
    return model.sample(noise, model.predictor(PROMPTS, guidance, **options), model.schedule(steps))


def theirs(pipeline, noise, steps, guidance, size=(16, 16), **options):
    pipeline.set_progress_bar_config(disable=True)
    family = LatentDiffusion(pipeline).family
    images = pipeline(
        PROMPTS, num_inference_steps=steps, guidance_scale=guidance, latents=family.pack(noise), output_type="latent",
        height=size[0], width=size[1], **options,
    ).images  # fmt: skip
    return family.unpack(images, noise.shape[-2:])


SCHEDULERS = {
    "static": {"shift": 3.0},
    "unshifted": {"shift": 1.0},
    "dynamic": {"use_dynamic_shifting": True},
    "linear dynamic": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "to a terminal": {"use_dynamic_shifting": True, "shift_terminal": 0.1},
    "karras": {"use_karras_sigmas": True, "use_dynamic_shifting": False},
}


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("t5", [True, False])
def test_sd3_samples_as_its_pipeline(t5, guidance, steps):
    pipeline = tiny_sd3(t5=t5)
    expected = theirs(pipeline, seeds(), steps, guidance)
    torch.testing.assert_close(ours(pipeline, seeds(), steps, guidance), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("make", [tiny_sd3, tiny_flux])
def test_every_shift_is_the_schedulers_own(make, options):
    pipeline = make(**options)
    expected = theirs(pipeline, seeds(), 4, 1.0)
    torch.testing.assert_close(ours(pipeline, seeds(), 4, 1.0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize(("dev", "guidance"), [(True, 1.0), (True, 3.5), (False, 1.0)])
def test_flux_samples_as_its_pipeline(dev, guidance, steps):
    pipeline = tiny_flux(guidance_embeds=dev)
    expected = theirs(pipeline, seeds(), steps, guidance)
    torch.testing.assert_close(ours(pipeline, seeds(), steps, guidance), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [tiny_sd3, tiny_flux])
def test_a_size_that_is_no_square(make):
    pipeline, size = make(), (16, 24)
    expected = theirs(pipeline, seeds(8, 12), 4, 1.0, size)
    torch.testing.assert_close(ours(pipeline, seeds(8, 12), 4, 1.0, size), expected, rtol=1e-4, atol=1e-4)


def test_negative_prompts_guide_away_from_each_samples_own():
    pipeline = tiny_sd3()
    expected = theirs(pipeline, seeds(), 4, 5.0, negative_prompt=["fog", ""])
    result = ours(pipeline, seeds(), 4, 5.0, negative_prompt=["fog", ""])
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [tiny_sd3, tiny_flux])
def test_a_sample_does_not_depend_on_its_neighbors(make):
    model = LatentDiffusion(make())
    predictor, z = model.predictor(PROMPTS, 1.0), seeds().double()
    together = predictor(z, 600.0)
    for row in range(2):
        alone = predictor.select(torch.tensor([row]))(z[row : row + 1], 600.0)
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_sd3, tiny_flux])
def test_saved_and_loaded_again_it_samples_the_same(make, tmp_path):
    pipeline = make()
    pipeline.save_pretrained(tmp_path / "model")
    model = LatentDiffusion.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    if make is tiny_flux:
        model = LatentDiffusion(model.pipeline, image_size=(16, 16))
    expected = ours(pipeline, seeds(), 2, 1.0)
    result = model.sample(seeds(), model.predictor(PROMPTS), model.schedule(2))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_packing_is_undone():
    z = seeds(6, 10)
    assert pack(z).shape == (2, 15, 16)
    assert torch.equal(unpack(pack(z), (6, 10)), z)


def test_flow_coefficients_are_eulers():
    steps = LatentDiffusion(tiny_sd3()).schedule(4)
    sigmas = torch.cat([steps.sigma, steps.sigma_next[-1:]]).tolist()
    assert sigmas[0] == 1 and sigmas[-1] == 0 and steps.predicts == "flow"
    for i in range(4):
        a, b = steps.coefficients(i)
        assert a == pytest.approx(1, abs=1e-15)
        assert b == pytest.approx(sigmas[i] - sigmas[i + 1], abs=1e-12)
        assert steps.timestep(i) == pytest.approx(1000 * sigmas[i], rel=1e-6)


REFUSED = {
    "another solver": (lambda: tiny_sd3(), lambda p: FlowMatchHeunDiscreteScheduler(), "FlowMatchHeun"),
    "diffusion": (lambda: tiny_sd3(), lambda p: DDIMScheduler(), "DDIMScheduler"),
    "noise": (
        lambda: tiny_flux(),
        lambda p: FlowMatchEulerDiscreteScheduler.from_config(p.scheduler.config, stochastic_sampling=True),
        "stochastic_sampling",
    ),
}


@pytest.mark.parametrize(("make", "change", "word"), REFUSED.values(), ids=REFUSED)
def test_schedulers_that_cannot_be_followed(make, change, word):
    pipeline = make()
    pipeline.scheduler = change(pipeline)
    with pytest.raises(ValueError, match=word):
        LatentDiffusion(pipeline)


def test_combinations_that_mean_nothing():
    dev, schnell = LatentDiffusion(tiny_flux()), LatentDiffusion(tiny_flux(guidance_embeds=False))
    with pytest.raises(ValueError, match="schnell"):
        schnell.predictor(PROMPTS, 3.5)
    with pytest.raises(ValueError, match="negative_prompt has no effect"):
        dev.predictor(PROMPTS, 3.5, "fog")
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="give mu"):
        Schedule.from_scheduler(dynamic, 4)
    with pytest.raises(ValueError, match="mu has no effect"):
        Schedule.from_scheduler(FlowMatchEulerDiscreteScheduler(), 4, mu=0.5)
    with pytest.raises(ValueError, match="leave them out"):
        Schedule.from_scheduler(DDIMScheduler(clip_sample=False), 4, mu=0.5)
    for steps in (0, 1001, 2.5, True):
        for model in (dev, schnell):
            with pytest.raises(ValueError, match="steps"):
                model.schedule(steps)
    for size in ((16, 18), (0, 16), (16, 17.0), (16,)):
        with pytest.raises(ValueError, match="image_size"):
            LatentDiffusion(tiny_sd3(), image_size=size)


@pytest.mark.parametrize("make", [tiny_sd3, tiny_flux])
def test_a_lora_counts_as_in_the_pipeline(make):
    pipeline, plain = make(), ours(make(), seeds(), 2, 1.0)
    torch.manual_seed(0)
    pipeline.transformer.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    expected = theirs(pipeline, seeds(), 2, 1.0)
    torch.testing.assert_close(ours(pipeline, seeds(), 2, 1.0), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, plain, atol=1e-3)
