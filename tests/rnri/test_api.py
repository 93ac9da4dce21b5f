"""``rnri.invert``: a standard pipeline call regenerates the image, for every family; invalid arguments."""

import contextlib

import numpy as np
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
)
from PIL import Image

import rnri
from rnri.methods import EDICT
from tests.pipelines import tiny_flux, tiny_sd3, tiny_stable_diffusion, tiny_stable_diffusion_xl

PROMPTS = ["a cat", "two dogs"]


def with_scheduler(pipe, kind, **options):
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
    return pipe


def lcm():
    pipe = tiny_stable_diffusion(unet={"time_cond_proj_dim": 8})
    parts = {**pipe.components, "scheduler": LCMScheduler.from_config(pipe.scheduler.config)}
    return LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


PIPES = {
    "sd": tiny_stable_diffusion,
    "sd pndm": lambda: with_scheduler(tiny_stable_diffusion(), PNDMScheduler, skip_prk_steps=True),
    "sd v": lambda: tiny_stable_diffusion("v_prediction"),
    "turbo": lambda: with_scheduler(
        tiny_stable_diffusion(), EulerAncestralDiscreteScheduler, timestep_spacing="trailing"
    ),
    "lcm lora": lambda: with_scheduler(tiny_stable_diffusion(), LCMScheduler),
    "lcm": lcm,
    "sdxl": tiny_stable_diffusion_xl,
    "sd3": tiny_sd3,
    "sd3 without t5": lambda: tiny_sd3(t5=False),
    "flux dev": tiny_flux,
    "flux schnell": lambda: tiny_flux(guidance_embeds=False),
}


def small_outputs(name):
    """Return a pipeline whose network has small outputs, so that its steps are invertible."""
    pipe = PIPES[name]()
    last = pipe.unet.conv_out if getattr(pipe, "unet", None) else pipe.transformer.proj_out
    with torch.no_grad():
        for weight in last.parameters():
            weight.mul_(0.02)
    return pipe


def images(height=16, width=16):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def regenerated_latents(pipe, inversion):
    """Return the latents of a standard pipeline call with the scheduler of ``scheduler_for``."""
    scheduler = pipe.scheduler
    pipe.scheduler = rnri.scheduler_for(pipe)
    pipe.set_progress_bar_config(disable=True)
    try:
        family = rnri.LatentDiffusion(pipe).family
        calls = [inversion] if family.batch_independent else list(inversion)
        latents = torch.cat([pipe(**call.pipe_kwargs, output_type="latent").images for call in calls])
    finally:
        pipe.scheduler = scheduler
    return output_latents(family, latents, inversion.seed.shape[-2:])


def output_latents(family, output, size):
    """Return ``[B,C,h,w]`` from the latents that a pipeline returns.

    Their layout is that of ``latents=`` except in FLUX.2. FLUX.2 dev returns image tokens. FLUX.2 klein returns the
    input of the VAE.
    """
    pipe = family.pipeline
    if isinstance(pipe, Flux2KleinPipeline):
        mean, std = family.latent_statistics(output)
        return (pipe._patchify_latents(output) - mean) / std
    if isinstance(pipe, Flux2Pipeline):
        return output.transpose(1, 2).unflatten(2, size)
    return family.unpack(output, size)


def assert_regenerates(pipe, inversion):
    """Assert that the pipeline call equals our sampler up to rounding and regenerates the latents of the image."""
    regenerated = regenerated_latents(pipe, inversion).double()
    model = rnri.LatentDiffusion(pipe, image_size=inversion.image_size)
    predictor = model.predictor(inversion.prompts, inversion.guidance_scale, list(inversion.negative_prompts))
    expected = model.sample(inversion.seed, predictor, model.schedule(inversion.num_inference_steps))
    torch.testing.assert_close(regenerated, expected, rtol=0, atol=2e-4)
    assert (regenerated - inversion.z0).abs().max() < 0.02 * inversion.z0.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPES)
def test_pipeline_call_regenerates_the_image(name):
    pipe = small_outputs(name)
    inversion = rnri.invert(
        pipe, images(), PROMPTS, num_inference_steps=3, method=rnri.anderson_inverter(8, 1e-9), round_trip=False
    )
    assert inversion.latents.dtype == torch.float32
    assert_regenerates(pipe, inversion)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux dev"])
def test_non_square_images_with_guidance(name):
    pipe = small_outputs(name)
    guidance = 2.0
    inversion = rnri.invert(
        pipe,
        images(16, 24),
        PROMPTS,
        num_inference_steps=3,
        guidance_scale=guidance,
        method=rnri.anderson_inverter(8, 1e-9),
        negative_prompt="" if name == "flux dev" else ["fog", "rain"],
        fit="exact",
        round_trip=False,
    )
    assert inversion.image_size == (16, 24)
    assert_regenerates(pipe, inversion)


def state(pipe):
    return {
        "scheduler": (id(pipe.scheduler), dict(pipe.scheduler.config), pipe.scheduler.timesteps.clone()),
        "modes": [module.training for part in pipe.components.values() if isinstance(part, torch.nn.Module)
                  for module in part.modules()],
        "weights": [(id(w), w.requires_grad, w.dtype) for part in pipe.components.values()
                    if isinstance(part, torch.nn.Module) for w in part.parameters()],
        "processors": {k: id(v) for k, v in getattr(pipe, "unet", None or pipe.components.get("transformer"))
                       .attn_processors.items()},
        "attributes": set(vars(pipe)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sd", "sd3", "flux dev"])
@pytest.mark.parametrize("fails", [False, True])
def test_pipe_is_unchanged(name, fails):
    pipe = PIPES[name]()
    network = pipe.components.get("unet") or pipe.components["transformer"]
    network.train()
    before = state(pipe)

    def callback(*_):
        if fails:
            raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            rnri.invert(pipe, images(), PROMPTS, num_inference_steps=2, callback_on_step_end=callback)
    else:
        rnri.invert(pipe, images(), PROMPTS, num_inference_steps=2, callback_on_step_end=callback)
    after = state(pipe)
    timesteps = before["scheduler"][2], after["scheduler"][2]
    assert torch.equal(*timesteps)
    assert before["scheduler"][:2] == after["scheduler"][:2]
    assert {k: v for k, v in before.items() if k != "scheduler"} == {k: v for k, v in after.items() if k != "scheduler"}


def test_all_types_of_images_have_the_same_seeds():
    pipe = tiny_stable_diffusion()
    values = (images() * 255).round().byte()
    pil = [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in values]
    tensors = values.float() / 255
    arrays = values.permute(0, 2, 3, 1).numpy()
    seeds = [
        rnri.invert(pipe, images, PROMPTS, num_inference_steps=2, round_trip=False).seed
        for images in (pil, tensors, list(tensors), tuple(pil), arrays, [pil[0], tensors[1]])
    ]
    for seed in seeds[1:]:
        torch.testing.assert_close(seed, seeds[0], rtol=0, atol=1e-6)
    one = rnri.invert(pipe, pil[0], PROMPTS[0], num_inference_steps=2, round_trip=False)
    torch.testing.assert_close(one.seed, seeds[0][:1], rtol=0, atol=1e-4)


def test_callback_is_called_after_every_step():
    pipe = tiny_flux()
    calls = []
    inversion = rnri.invert(
        pipe, images(), PROMPTS, num_inference_steps=3, callback_on_step_end=lambda *step: calls.append(step)
    )
    assert [k for _, k, _, _ in calls] == [0, 1, 2] and all(p is pipe for p, *_ in calls)
    assert [t for _, _, t, _ in calls] == inversion.timesteps.flip(0).tolist()
    assert torch.equal(calls[-1][3]["latents"], inversion.latents) and inversion.latents.shape == (2, 16, 16)


def test_deterministic_scheduler_uses_its_source():
    pipe = PIPES["turbo"]()
    expected = rnri.invert(pipe, images(), PROMPTS, num_inference_steps=2, round_trip=False).seed
    pipe.scheduler = rnri.scheduler_for(pipe)
    actual = rnri.invert(pipe, images(), PROMPTS, num_inference_steps=2, round_trip=False).seed
    assert torch.equal(actual, expected)
    assert not isinstance(rnri.scheduler_for(pipe).source, rnri.DeterministicScheduler)


@pytest.mark.parametrize("fails", [False, True])
def test_frees_offload_hooks(fails, monkeypatch):
    pipe = tiny_stable_diffusion()
    freed = []
    monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda self: freed.append(self))
    if fails:
        monkeypatch.setattr(pipe.vae, "encode", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        rnri.invert(pipe, images(), PROMPTS, num_inference_steps=2)
    assert freed == [pipe]


def test_sdxl_rejects_mixed_empty_negative_prompts():
    with pytest.raises(ValueError, match="some images have a negative prompt and others have none"):
        rnri.invert(
            tiny_stable_diffusion_xl(),
            images(),
            PROMPTS,
            num_inference_steps=2,
            guidance_scale=3,
            negative_prompt=["fog", ""],
        )


BAD = {
    "sizes": (dict(images=[torch.rand(3, 16, 16), torch.rand(3, 16, 18)], fit="exact"), "must have the same shape"),
    "bytes": (dict(images=torch.zeros(2, 3, 16, 16, dtype=torch.uint8)), "divide uint8 images by 255"),
    "range": (dict(images=torch.full((2, 3, 16, 16), 2.0)), r"\[0, 1\]"),
    "side": (dict(images=torch.rand(2, 3, 15, 16), fit="exact"), "multiples of 2"),
    "fit": (dict(fit="fill"), "fit: must be one of crop, pad, stretch, exact, got 'fill'"),
    "shape": (dict(images=torch.rand(2, 1, 16, 16)), "must have shape \\[3,H,W\\]"),
    "type": (dict(images=[1, 2]), "must be paths, PIL images, arrays or tensors, got int"),
    "url": (dict(images=["https://example.org/cat.png"] * 2), "URLs are not downloaded"),
    "empty": (dict(images=[], prompts=[]), "at least one image"),
    "array": (dict(images=np.zeros((16, 16), np.uint8)), "arrays must have shape"),
    "prompts": (dict(prompts=["one"]), "prompts: must be a string or a list of 2 strings, one per image"),
    "negative": (dict(negative_prompt=["one"]), "negative_prompt"),
    "method": (dict(method="newton"), "method: must be one of accelerated, .*, got 'newton'"),
    "not seed-only": (dict(method=EDICT()), "method: must be seed-only, got EDICT"),
    "not seed-only, by name": (dict(method="edict"), "method: must be seed-only, got EDICT"),
    "steps": (dict(num_inference_steps=0), "num_inference_steps: must be an integer >= 1, got 0"),
    "guidance": (dict(guidance_scale=0.5), "guidance_scale: must be a finite number >= 1, got 0.5"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_invalid_arguments(change, message):
    arguments = {"images": images(), "prompts": PROMPTS, "num_inference_steps": 2} | change
    with pytest.raises(ValueError, match=message) as error:
        rnri.invert(tiny_stable_diffusion(), **arguments)
    assert "\n" not in str(error.value)


def test_exact_size_of_a_network_without_default_size():
    pipe = tiny_stable_diffusion(unet={"sample_size": None})
    pipe.vae.register_to_config(sample_size=None)
    pipe.set_progress_bar_config(disable=True)
    inversion = rnri.invert(pipe, images(16, 24), PROMPTS, num_inference_steps=2, fit="exact")
    assert inversion.seed.shape == (2, 4, 8, 12)
    assert [image.size for image in inversion.reconstruct(pipe)] == [(24, 16)] * 2
