"""A user's pipeline is used on its device and is not modified."""

import copy

import pytest
import torch

from rnri import LatentDiffusion, anderson_inverter
from rnri.models.eval_mode import eval_no_grad
from tests.pipelines import tiny_stable_diffusion, tiny_stable_diffusion_xl

PROMPTS = ["a cat", "a dog"]
PIPELINES = {"sd": tiny_stable_diffusion, "sdxl": tiny_stable_diffusion_xl}


def state(pipe) -> dict:
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        name: (
            module.dtype,
            module.device,
            [part.training for part in module.modules()],
            [weight.requires_grad for weight in module.parameters()],
            [weight.clone() for weight in module.parameters()],
        )
        for name, module in modules.items()
    } | {"scheduler": (type(pipe.scheduler), dict(pipe.scheduler.config), copy.deepcopy(pipe.scheduler.timesteps))}


def assert_same(before: dict, after: dict) -> None:
    for name in before:
        for left, right in zip(before[name], after[name], strict=True):
            if isinstance(left, list) and left and isinstance(left[0], torch.Tensor):
                assert all(map(torch.equal, left, right)), name
            elif isinstance(left, torch.Tensor):
                assert torch.equal(left, right), name
            else:
                assert left == right, name


def use_model(pipe) -> None:
    model = LatentDiffusion(pipe)
    predictor, schedule = model.predictor(PROMPTS, 2.0), model.schedule(3)
    with torch.no_grad():
        images = model.decode(model.sample(model.noise([0, 1], 0), predictor, schedule))
    inversion = anderson_inverter().invert(model.encode(images), predictor, schedule)
    seed = inversion.seed.float().requires_grad_()
    model.decode(model.sample(seed, predictor, schedule)).sum().backward()


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("training", [False, True])
def test_pipeline_is_not_modified(name, training):
    pipe = PIPELINES[name]()
    pipe.unet.train(training)
    pipe.vae.requires_grad_(training)
    before = state(pipe)
    use_model(pipe)
    assert_same(before, state(pipe))
    assert all(weight.grad is None for weight in (*pipe.unet.parameters(), *pipe.vae.parameters()))


def test_pipeline_is_restored_after_an_exception():
    pipe = tiny_stable_diffusion()
    pipe.unet.train()
    before = state(pipe)
    with pytest.raises(RuntimeError, match="expected input"):
        LatentDiffusion(pipe).predictor(PROMPTS)(torch.zeros(2, 5, 8, 8), 1)
    assert_same(before, state(pipe))


def test_training_mode_has_no_effect():
    pipe = tiny_stable_diffusion()
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = LatentDiffusion(pipe).predictor(PROMPTS)(z, 500)
    for part in (pipe.unet, pipe.text_encoder):
        part.train()
    assert torch.equal(LatentDiffusion(pipe).predictor(PROMPTS)(z, 500), expected)


def test_changes_of_modes_between_calls_are_respected(monkeypatch):
    """Every entry scans the modules, without ``modules()``, which is slower than a small network's evaluation."""
    pipe = tiny_stable_diffusion()
    module = pipe.unet.mid_block
    for method in ("modules", "parameters"):
        monkeypatch.setattr(torch.nn.Module, method, lambda *_: pytest.fail("slow scan of all modules"))
    for training, gradient in ((True, True), (False, True), (True, False)):
        module.training = module.resnets[0].training = training
        weight = module.resnets[0].conv1.weight
        weight.requires_grad = gradient
        with eval_no_grad(pipe.unet):
            assert not (module.training or module.resnets[0].training or weight.requires_grad)
            with eval_no_grad(pipe.unet):  # a block inside a block of the same network changes nothing
                pass
            assert not (module.training or weight.requires_grad)
        assert (module.training, module.resnets[0].training, weight.requires_grad) == (training, training, gradient)


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
def test_auto_dtype_is_float16_only_on_gpu(device, monkeypatch):
    arguments = {}

    def fake_load_pipeline(path, **options):
        arguments.update(options)
        raise ValueError("stop here")

    monkeypatch.setattr("rnri.models.diffusion.load_pipeline", fake_load_pipeline)
    with pytest.raises(ValueError, match="stop here"):
        LatentDiffusion.from_pretrained("folder", device=device, dtype="auto")
    assert arguments["dtype"] == (torch.float16 if device == "cuda" else torch.float32)


@pytest.mark.parametrize("upcast", [True, False])
def test_overflowing_float16_vae_is_copied_to_float32(upcast):
    pipe = tiny_stable_diffusion().to(torch.float16)
    pipe.vae.register_to_config(force_upcast=upcast)
    model = LatentDiffusion(pipe)
    assert model._vae.dtype == (torch.float32 if upcast else torch.float16)
    assert (model._vae is pipe.vae) == (not upcast)
    model.encode(torch.rand(1, 3, 16, 16))
    assert pipe.vae.dtype == torch.float16


def upcast_pipe():
    pipe = tiny_stable_diffusion().to(torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    return pipe


def write_in_place(pipe) -> None:
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.add_(0.25)


def load_state_dict(pipe) -> None:
    weights = pipe.vae.state_dict()
    pipe.vae.load_state_dict(weights | {"decoder.conv_out.bias": weights["decoder.conv_out.bias"] + 0.25})


def replace_vae(pipe) -> None:
    pipe.vae = copy.deepcopy(pipe.vae)
    pipe.vae.decoder.conv_out.bias.data += 0.25


def replace_weight(pipe) -> None:
    pipe.vae.decoder.conv_out.bias = torch.nn.Parameter(pipe.vae.decoder.conv_out.bias.detach() + 0.25)


@pytest.mark.parametrize("change", [write_in_place, load_state_dict, replace_vae, replace_weight])
def test_float32_copy_follows_the_vae(change):
    model = LatentDiffusion(upcast_pipe())
    latents = model.noise([0], 0)
    vae_copy = model._vae
    before = model.decode(latents, clamp=False)
    assert model._vae is vae_copy
    change(model.pipeline)
    after = model.decode(latents, clamp=False)
    torch.testing.assert_close(after, before + 0.125, rtol=0, atol=1e-3)  # images are half of the decoder's output


def test_float32_copy_has_tiling_options_of_vae():
    model = LatentDiffusion(upcast_pipe())
    assert not model._vae.use_tiling
    model.pipeline.vae.enable_tiling()
    model.pipeline.vae.tile_latent_min_size = 4
    assert model._vae.use_tiling and model._vae.tile_latent_min_size == 4
    model.pipeline.vae.disable_tiling()
    assert not model._vae.use_tiling


def test_offloaded_vae_that_cannot_be_copied():
    pipe = tiny_stable_diffusion().to(torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    pipe.vae.to("meta")
    with pytest.raises(ValueError, match="enable_model_cpu_offload"):
        _ = LatentDiffusion(pipe)._vae


def test_device_is_that_of_pipeline():
    pipe = tiny_stable_diffusion()
    assert LatentDiffusion(pipe).device == torch.device("cpu")
    type(pipe)._execution_device.fget(pipe)  # a private property of diffusers that must exist


@pytest.mark.parametrize("name", PIPELINES)
def test_one_negative_prompt_per_sample(name):
    model = LatentDiffusion(PIPELINES[name]())
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ugly, none = (model.predictor(PROMPTS, 3.0, text)(z, 500) for text in ("ugly", ""))
    mixed = model.predictor(PROMPTS, 3.0, ["ugly", ""])(z, 500)
    torch.testing.assert_close(mixed[0], ugly[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1], none[1], rtol=1e-5, atol=1e-5)
    assert (ugly - none).abs().max() > 1e-4
    assert torch.allclose(model.predictor(PROMPTS, 3.0, ["ugly", "ugly"])(z, 500), ugly, atol=1e-6)


@pytest.mark.parametrize("negative", [["ugly"], ["ugly"] * 3, 1, None, ["ugly", None], [["ugly"], ["ugly"]]])
def test_invalid_negative_prompts(negative):
    with pytest.raises(ValueError, match="negative_prompt="):
        LatentDiffusion(tiny_stable_diffusion()).predictor(PROMPTS, 3.0, negative)


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), 0.5, -1, "3", True, None])
def test_invalid_guidance(guidance):
    with pytest.raises(ValueError, match="guidance="):
        LatentDiffusion(tiny_stable_diffusion()).predictor(PROMPTS, guidance)


@pytest.mark.parametrize("prompts", [[None], [1, 2], [], "a cat", [["a cat"]]])
def test_invalid_prompts(prompts):
    with pytest.raises(ValueError, match="prompts="):
        LatentDiffusion(tiny_stable_diffusion()).predictor(prompts)


def test_default_size_of_unet_without_sample_size():
    pipe = tiny_stable_diffusion(unet={"sample_size": None})
    assert LatentDiffusion(pipe).latent_shape == (4, 8, 8) and LatentDiffusion(pipe).image_size == (16, 16)
    pipe.vae.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match="sample_size"):
        _ = LatentDiffusion(pipe).image_size


def test_checkpoint_for_images_that_are_not_square():
    model = LatentDiffusion(tiny_stable_diffusion(unet={"sample_size": (8, 12)}))
    assert model.latent_shape == (4, 8, 12) and model.image_size == (16, 24)
    predictor, schedule = model.predictor(PROMPTS), model.schedule(3)
    with torch.no_grad():
        images = model.decode(model.sample(model.noise([0, 1], 0), predictor, schedule))
    assert images.shape == (2, 3, 16, 24)
    assert anderson_inverter().invert(model.encode(images), predictor, schedule).seed.shape == (2, 4, 8, 12)
