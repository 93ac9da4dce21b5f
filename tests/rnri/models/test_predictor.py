import pytest
import torch

from rnri import Condition, LatentDiffusion, UNetDenoiser
from tests.pipelines import LATENT_SHAPE, tiny_flux, tiny_sd3, tiny_stable_diffusion, tiny_stable_diffusion_xl
from tests.problems import function_predictor, wavy


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion(tiny_stable_diffusion())


def latents(batch):
    return torch.randn(batch, *LATENT_SHAPE, generator=torch.Generator().manual_seed(1))


def network(model, z, t, predictor):
    """The bare UNet under the prompts of a predictor."""
    return model.pipeline.unet(z, t, predictor.denoiser.positive.text).sample


def test_without_guidance_it_is_the_network(model):
    z, predictor = latents(2), model.predictor(["cat", "a dog"])
    torch.testing.assert_close(predictor(z, 300), network(model, z, 300, predictor))


def test_guidance_is_the_standard_formula(model):
    z, guided = latents(2), model.predictor(["cat", "a dog"], guidance=7.5, negative_prompt="fog")
    towards, away = model.predictor(["cat", "a dog"])(z, 300), model.predictor(["fog", "fog"])(z, 300)
    assert (towards - away).abs().max() > 1e-3
    torch.testing.assert_close(guided(z, 300), away + 7.5 * (towards - away), rtol=1e-4, atol=1e-4)


def test_v_and_sample_are_converted_where_the_network_ran(model):
    z = latents(1)
    predictor = model.predictor(["cat"])
    a = float(model.alpha_bar[300])
    output = network(model, z, 300, predictor)
    for kind, expected in {
        "v_prediction": a**0.5 * output + (1 - a) ** 0.5 * z,
        "sample": (z - a**0.5 * output) / (1 - a) ** 0.5,
    }.items():
        denoiser = UNetDenoiser(model.pipeline.unet, kind, model.alpha_bar, positive=predictor.denoiser.positive)
        torch.testing.assert_close(denoiser(z, 300), expected)


def test_v_is_the_scheduler_s_noise():
    model = LatentDiffusion(tiny_stable_diffusion("v_prediction"))
    z, predictor = latents(1), model.predictor(["cat"])
    output = network(model, z, 300, predictor)
    scheduler = model.pipeline.scheduler
    scheduler.set_timesteps(10)
    x0 = scheduler.step(output, 300, z).pred_original_sample
    a = float(model.alpha_bar[300])
    torch.testing.assert_close(predictor(z, 300), (z - a**0.5 * x0) / (1 - a) ** 0.5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_of_the_state_is_kept(model, dtype):
    eps = model.predictor(["cat"], guidance=3)(latents(1).to(dtype), 300)
    assert eps.dtype == dtype and eps.isfinite().all()


def test_select_keeps_each_samples_prompt_and_the_counts(model):
    z, predictor = latents(3), model.predictor(["cat", "a dog", "x"], guidance=2)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(predictor.select(rows)(z[rows], 300), predictor(z, 300)[rows], rtol=1e-4, atol=1e-5)
    assert (predictor.forward_evaluations, predictor.calls) == (5, 2)


def test_select_of_sdxl_conditions():
    model = LatentDiffusion(tiny_stable_diffusion_xl())
    z, predictor = latents(2), model.predictor(["cat", "a dog"], guidance=2)
    rows = torch.tensor([1])
    torch.testing.assert_close(predictor.select(rows)(z[rows], 300), predictor(z, 300)[rows], rtol=1e-4, atol=1e-5)


def test_backward_is_counted_when_it_happens():
    predictor = function_predictor(wavy, 3)
    z = torch.randn(3, 2, 3, 3, requires_grad=True)
    eps = predictor(z, 1)
    assert predictor.backward_evaluations == 0
    eps.sum().backward()
    assert predictor.backward_evaluations == 3
    with torch.no_grad():
        predictor(z, 1)
    assert (predictor.forward_evaluations, predictor.backward_evaluations, predictor.calls) == (6, 3, 2)


def test_gradient_passes_through_the_network(model):
    z = latents(1).double().requires_grad_()
    predictor = model.predictor(["cat"], guidance=2)
    predictor(z, 300).square().sum().backward()
    # directional derivative by finite differences through the same float32 network
    direction = latents(1).double().flip(-1)
    with torch.no_grad():
        up, down = (predictor(z + h * direction, 300).square().sum() for h in (1e-2, -1e-2))
    assert ((z.grad * direction).sum() - (up - down) / 2e-2).abs() < 2e-2 * (z.grad * direction).sum().abs()


def test_distilled_guidance_is_an_input_not_a_second_row():
    model = LatentDiffusion(tiny_stable_diffusion(unet={"time_cond_proj_dim": 16}))
    rows = []
    hook = model.pipeline.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    weak, strong = model.predictor(["cat"], guidance=1), model.predictor(["cat"], guidance=8)
    difference = (weak(latents(1), 300) - strong(latents(1), 300)).abs().max()
    hook.remove()
    assert rows == [1, 1] and difference > 1e-6
    embedding = model.pipeline.get_guidance_scale_embedding(torch.tensor([7.0]), embedding_dim=16)
    torch.testing.assert_close(strong.denoiser.guidance_embedding, embedding)
    with pytest.raises(ValueError, match="negative_prompt"):
        model.predictor(["cat"], guidance=8, negative_prompt="fog")


def test_bad_input(model):
    with pytest.raises(ValueError, match=r"guidance=0\.5 must be a finite number of at least 1"):
        model.predictor(["cat"], guidance=0.5)
    for prompts in ("cat", []):
        with pytest.raises(ValueError, match="prompts="):
            model.predictor(prompts)
    with pytest.raises(ValueError, match=r"3 rows.*2 prompts"):
        model.predictor(["a", "b"])(latents(3), 1)
    with pytest.raises(ValueError, match="prediction_type='flow'"):
        UNetDenoiser(model.pipeline.unet, "flow", model.alpha_bar, positive=Condition(torch.zeros(1, 1, 1)))
    with pytest.raises(ValueError, match="negative condition"):
        UNetDenoiser(
            model.pipeline.unet, "epsilon", model.alpha_bar, positive=Condition(torch.zeros(1, 1, 1)), guidance=2
        )


@pytest.mark.parametrize("made", [tiny_stable_diffusion, tiny_sd3, tiny_flux])
def test_a_networks_dtype_is_asked_once(made, monkeypatch):
    """Diffusers walks all weights for it, at every question."""
    model = LatentDiffusion(made())
    predictor, asked = model.predictor(["cat"]), []
    known = model.dtype
    monkeypatch.setattr(type(model.family.network), "dtype", property(lambda _: asked.append(1) or known))
    for _ in range(3):
        predictor(model.noise(["a"], seed=0), model.schedule(2).timestep(0))
    assert len(asked) <= 1
