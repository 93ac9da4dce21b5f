"""The predictor is the guided network, in every parameterization, with its evaluations counted."""

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
    """Output of the UNet for the prompts of a predictor."""
    return model.pipeline.unet(z, t, predictor.denoiser.positive.text).sample


def test_without_guidance_equals_network(model):
    z = latents(2)
    predictor = model.predictor(["cat", "a dog"])
    torch.testing.assert_close(predictor(z, 300), network(model, z, 300, predictor))


def test_guidance_is_classifier_free_guidance(model):
    z = latents(2)
    guided = model.predictor(["cat", "a dog"], guidance=7.5, negative_prompt="fog")
    positive = model.predictor(["cat", "a dog"])(z, 300)
    negative = model.predictor(["fog", "fog"])(z, 300)
    assert (positive - negative).abs().max() > 1e-3
    torch.testing.assert_close(guided(z, 300), negative + 7.5 * (positive - negative), rtol=1e-4, atol=1e-4)


def test_v_and_sample_predictions_are_converted_to_noise(model):
    z = latents(1)
    predictor = model.predictor(["cat"])
    a = float(model.alpha_bar[300])
    output = network(model, z, 300, predictor)
    for prediction_type, expected in {
        "v_prediction": a**0.5 * output + (1 - a) ** 0.5 * z,
        "sample": (z - a**0.5 * output) / (1 - a) ** 0.5,
    }.items():
        denoiser = UNetDenoiser(
            model.pipeline.unet, prediction_type, model.alpha_bar, positive=predictor.denoiser.positive
        )
        torch.testing.assert_close(denoiser(z, 300), expected)


def test_v_prediction_equals_scheduler():
    model = LatentDiffusion(tiny_stable_diffusion("v_prediction"))
    z = latents(1)
    predictor = model.predictor(["cat"])
    output = network(model, z, 300, predictor)
    scheduler = model.pipeline.scheduler
    scheduler.set_timesteps(10)
    x0 = scheduler.step(output, 300, z).pred_original_sample
    a = float(model.alpha_bar[300])
    torch.testing.assert_close(predictor(z, 300), (z - a**0.5 * x0) / (1 - a) ** 0.5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_prediction_has_dtype_of_state(model, dtype):
    eps = model.predictor(["cat"], guidance=3)(latents(1).to(dtype), 300)
    assert eps.dtype == dtype and eps.isfinite().all()


def test_select_rows_with_shared_counts(model):
    z = latents(3)
    predictor = model.predictor(["cat", "a dog", "x"], guidance=2)
    rows = torch.tensor([2, 0])
    torch.testing.assert_close(predictor.select(rows)(z[rows], 300), predictor(z, 300)[rows], rtol=1e-4, atol=1e-5)
    assert (predictor.forward_evaluations, predictor.calls) == (5, 2)


def test_select_rows_of_sdxl_conditions():
    model = LatentDiffusion(tiny_stable_diffusion_xl())
    z = latents(2)
    predictor = model.predictor(["cat", "a dog"], guidance=2)
    rows = torch.tensor([1])
    torch.testing.assert_close(predictor.select(rows)(z[rows], 300), predictor(z, 300)[rows], rtol=1e-4, atol=1e-5)


def test_backward_evaluations_are_counted():
    predictor = function_predictor(wavy, 3)
    z = torch.randn(3, 2, 3, 3, requires_grad=True)
    eps = predictor(z, 1)
    assert predictor.backward_evaluations == 0
    eps.sum().backward()
    assert predictor.backward_evaluations == 3
    with torch.no_grad():
        predictor(z, 1)
    assert (predictor.forward_evaluations, predictor.backward_evaluations, predictor.calls) == (6, 3, 2)


def test_gradient_through_network(model):
    z = latents(1).double().requires_grad_()
    predictor = model.predictor(["cat"], guidance=2)
    predictor(z, 300).square().sum().backward()
    # directional derivative by finite differences through the same float32 network
    direction = latents(1).double().flip(-1)
    with torch.no_grad():
        up, down = (predictor(z + h * direction, 300).square().sum() for h in (1e-2, -1e-2))
    assert ((z.grad * direction).sum() - (up - down) / 2e-2).abs() < 2e-2 * (z.grad * direction).sum().abs()


def test_distilled_guidance_is_a_network_input():
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


def test_invalid_input(model):
    with pytest.raises(ValueError, match=r"guidance=0\.5: must be a finite number >= 1"):
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


@pytest.mark.parametrize("make_pipeline", [tiny_stable_diffusion, tiny_sd3, tiny_flux])
def test_dtype_of_network_is_read_once(make_pipeline, monkeypatch):
    """Diffusers iterates over all weights to return it."""
    model = LatentDiffusion(make_pipeline())
    predictor = model.predictor(["cat"])
    reads = []
    dtype = model.dtype
    monkeypatch.setattr(type(model.family.network), "dtype", property(lambda _: reads.append(1) or dtype))
    for _ in range(3):
        predictor(model.noise(["a"], seed=0), model.schedule(2).timestep(0))
    assert len(reads) <= 1
