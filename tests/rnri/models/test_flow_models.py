"""Flow-matching models sample as their diffusers pipelines do."""

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


def sample_by_model(pipeline, noise, steps, guidance, size=None, **options):
    model = LatentDiffusion(pipeline, image_size=size)
    return model.sample(noise, model.predictor(PROMPTS, guidance, **options), model.schedule(steps))


def sample_by_pipeline(pipeline, noise, steps, guidance, size=(16, 16), **options):
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
    "terminal": {"use_dynamic_shifting": True, "shift_terminal": 0.1},
    "karras": {"use_karras_sigmas": True, "use_dynamic_shifting": False},
}


@pytest.mark.parametrize(
    ("t5", "guidance", "steps"), [(True, 1.0, 1), (True, 5.0, 7), (False, 1.0, 7), (False, 5.0, 1)]
)
def test_sd3_equals_diffusers(t5, guidance, steps):
    pipeline = tiny_sd3(t5=t5)
    expected = sample_by_pipeline(pipeline, seeds(), steps, guidance)
    torch.testing.assert_close(sample_by_model(pipeline, seeds(), steps, guidance), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("make_pipeline", [tiny_sd3, tiny_flux])
def test_shifts_of_the_scheduler(make_pipeline, options):
    pipeline = make_pipeline(**options)
    expected = sample_by_pipeline(pipeline, seeds(), 4, 1.0)
    torch.testing.assert_close(sample_by_model(pipeline, seeds(), 4, 1.0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize(("dev", "guidance"), [(True, 1.0), (True, 3.5), (False, 1.0)])
def test_flux_equals_diffusers(dev, guidance, steps):
    pipeline = tiny_flux(guidance_embeds=dev)
    expected = sample_by_pipeline(pipeline, seeds(), steps, guidance)
    torch.testing.assert_close(sample_by_model(pipeline, seeds(), steps, guidance), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make_pipeline", [tiny_sd3, tiny_flux])
def test_images_that_are_not_square(make_pipeline):
    pipeline = make_pipeline()
    size = (16, 24)
    expected = sample_by_pipeline(pipeline, seeds(8, 12), 4, 1.0, size)
    torch.testing.assert_close(sample_by_model(pipeline, seeds(8, 12), 4, 1.0, size), expected, rtol=1e-4, atol=1e-4)


def test_one_negative_prompt_per_sample():
    pipeline = tiny_sd3()
    expected = sample_by_pipeline(pipeline, seeds(), 4, 5.0, negative_prompt=["fog", ""])
    result = sample_by_model(pipeline, seeds(), 4, 5.0, negative_prompt=["fog", ""])
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make_pipeline", [tiny_sd3, tiny_flux])
def test_samples_of_a_batch_are_independent(make_pipeline):
    model = LatentDiffusion(make_pipeline())
    predictor = model.predictor(PROMPTS, 1.0)
    z = seeds().double()
    batch = predictor(z, 600.0)
    for row in range(2):
        single = predictor.select(torch.tensor([row]))(z[row : row + 1], 600.0)
        torch.testing.assert_close(single, batch[row : row + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make_pipeline", [tiny_sd3, tiny_flux])
def test_saved_checkpoint_samples_equally(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    model = LatentDiffusion.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    if make_pipeline is tiny_flux:
        model = LatentDiffusion(model.pipeline, image_size=(16, 16))
    expected = sample_by_model(pipeline, seeds(), 2, 1.0)
    result = model.sample(seeds(), model.predictor(PROMPTS), model.schedule(2))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_unpack_inverts_pack():
    z = seeds(6, 10)
    assert pack(z).shape == (2, 15, 16)
    assert torch.equal(unpack(pack(z), (6, 10)), z)


def test_coefficients_are_those_of_euler_steps():
    steps = LatentDiffusion(tiny_sd3()).schedule(4)
    sigmas = torch.cat([steps.sigma, steps.sigma_next[-1:]]).tolist()
    assert sigmas[0] == 1 and sigmas[-1] == 0 and steps.predicts == "flow"
    for i in range(4):
        a, b = steps.coefficients(i)
        assert a == pytest.approx(1, abs=1e-15)
        assert b == pytest.approx(sigmas[i] - sigmas[i + 1], abs=1e-12)
        assert steps.timestep(i) == pytest.approx(1000 * sigmas[i], rel=1e-6)


UNSUPPORTED_SCHEDULERS = {
    "another solver": (lambda: tiny_sd3(), lambda p: FlowMatchHeunDiscreteScheduler(), "FlowMatchHeun"),
    "diffusion": (lambda: tiny_sd3(), lambda p: DDIMScheduler(), "DDIMScheduler"),
    "noise": (
        lambda: tiny_flux(),
        lambda p: FlowMatchEulerDiscreteScheduler.from_config(p.scheduler.config, stochastic_sampling=True),
        "stochastic_sampling",
    ),
}


@pytest.mark.parametrize(
    ("make_pipeline", "change", "substring"), UNSUPPORTED_SCHEDULERS.values(), ids=UNSUPPORTED_SCHEDULERS
)
def test_unsupported_schedulers_are_rejected(make_pipeline, change, substring):
    pipeline = make_pipeline()
    pipeline.scheduler = change(pipeline)
    with pytest.raises(ValueError, match=substring):
        LatentDiffusion(pipeline)


@pytest.mark.parametrize(
    ("guidance_embeds", "arguments", "message"),
    [(False, (3.5,), "schnell"), (True, (3.5, "fog"), "negative_prompt has no effect")],
    ids=["guidance of schnell", "negative prompt of dev"],
)
def test_arguments_without_effect_on_flux(guidance_embeds, arguments, message):
    model = LatentDiffusion(tiny_flux(guidance_embeds=guidance_embeds))
    with pytest.raises(ValueError, match=message):
        model.predictor(PROMPTS, *arguments)


@pytest.mark.parametrize(
    ("scheduler", "mu", "message"),
    [
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), None, "pass mu"),
        (FlowMatchEulerDiscreteScheduler(), 0.5, "mu has no effect"),
        (DDIMScheduler(clip_sample=False), 0.5, "leave sigmas and mu out"),
    ],
    ids=["missing", "static shift", "diffusion"],
)
def test_mu_must_fit_the_scheduler(scheduler, mu, message):
    with pytest.raises(ValueError, match=message):
        Schedule.from_scheduler(scheduler, 4, mu=mu)


@pytest.mark.parametrize("steps", [0, 1001, 2.5, True])
@pytest.mark.parametrize("guidance_embeds", [True, False], ids=["dev", "schnell"])
def test_invalid_number_of_steps(guidance_embeds, steps):
    model = LatentDiffusion(tiny_flux(guidance_embeds=guidance_embeds))
    with pytest.raises(ValueError, match="steps"):
        model.schedule(steps)


@pytest.mark.parametrize("size", [(16, 18), (0, 16), (16, 17.0), (16,)], ids=str)
def test_invalid_image_size(size):
    with pytest.raises(ValueError, match="image_size"):
        LatentDiffusion(tiny_sd3(), image_size=size)


@pytest.mark.parametrize("make_pipeline", [tiny_sd3, tiny_flux])
def test_lora_equals_diffusers(make_pipeline):
    pipeline = make_pipeline()
    without_lora = sample_by_model(make_pipeline(), seeds(), 2, 1.0)
    torch.manual_seed(0)
    pipeline.transformer.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    expected = sample_by_pipeline(pipeline, seeds(), 2, 1.0)
    torch.testing.assert_close(sample_by_model(pipeline, seeds(), 2, 1.0), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, without_lora, atol=1e-3)
