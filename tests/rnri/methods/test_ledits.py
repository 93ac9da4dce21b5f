"""LEDITS++ compared with its definition and with diffusers' pipeline."""

from itertools import cycle

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LEditsPPPipelineStableDiffusion
from diffusers.pipelines.ledits_pp import pipeline_leditspp_stable_diffusion as diffusers_module

from rnri import LatentDiffusion, NoisePredictor, Schedule, alpha_bar_table
from rnri.methods import EditFriendly, LEditsPP
from rnri.methods.noise_maps import draw_noise
from tests.pipelines import LATENT_SHAPE, tiny_stable_diffusion
from tests.problems import FunctionDenoiser, function_predictor, gaussian, schedule, scheduler, wavy


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion(tiny_stable_diffusion())


def latents(batch=3):
    return torch.randn(batch, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])  # the last step of linspace adds no noise, see below
def test_round_trip_on_gaussian_data(steps, spacing):
    denoiser, z0 = gaussian(batch=3)
    predictor = NoisePredictor(denoiser)
    levels = Schedule.from_scheduler(scheduler(timestep_spacing=spacing), steps)
    inversion = LEditsPP().invert(z0, predictor, levels)
    assert inversion.residual_converged.all() and not inversion.seed_only and inversion.residual.isnan().all()
    assert inversion.aux["maps"].shape == (3, steps, *z0.shape[1:])
    reconstruction = LEditsPP().reconstruct(inversion, predictor, levels)
    torch.testing.assert_close(reconstruction, z0, rtol=0, atol=1e-6)  # diffusers computes the step in float32


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_round_trip_through_a_network_with_guidance(dtype):
    model = LatentDiffusion(tiny_stable_diffusion("v_prediction").to(dtype))
    predictor = model.predictor(["a cat", "dog", "x"], 3.0)
    steps = model.schedule(6)
    inversion = LEditsPP().invert(latents(), predictor, steps)
    assert inversion.seed.dtype == torch.float64 and inversion.nfe.sum() == predictor.forward_evaluations
    assert inversion.aux_bytes == 6 * 8 * torch.Size(LATENT_SHAPE).numel()
    reconstruction = LEditsPP().reconstruct(inversion, predictor, steps)
    torch.testing.assert_close(reconstruction.float(), latents(), rtol=0, atol=1e-4)


def test_second_order_step_by_hand():
    """Sigma 2 -> 1 -> 1/2 with constant predictions: lambda = -log sigma, so h = h_0 = log 2 and r = 1."""
    levels = torch.tensor([1 / 5, 1 / 2], dtype=torch.float64)
    steps = Schedule.diffusion(torch.tensor([9, 5]), levels, torch.tensor([1 / 2, 4 / 5], dtype=torch.float64))
    z0 = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    n_9, n_5 = draw_noise(z0, 2, 7)
    first = 0.2**0.5 * z0 + 0.8**0.5 * n_9
    second = 0.5**0.5 * (z0 + n_5)
    clean_9 = first / 0.2**0.5
    clean_5 = second / 0.5**0.5  # with eps = 0
    # exp(-h) = 1/2, so with V = 1 - a: sqrt(V_s / V_t) / 2 of the sample, 3/4 sqrt(a_s) of the prediction,
    # sqrt(3/4 V_s) of the map.
    mean_5 = (0.5 / 0.8) ** 0.5 / 2 * first + 0.5**0.5 * 0.75 * clean_9
    mean_0 = (0.2 / 0.5) ** 0.5 / 2 * second + 0.8**0.5 * 0.75 * (clean_5 + (clean_5 - clean_9) / 2)
    maps = LEditsPP(seed=7).invert(z0, function_predictor(lambda z, _: 0 * z, 1), steps).aux["maps"]
    torch.testing.assert_close(maps[:, 0], (second - mean_5) / (0.75 * 0.5) ** 0.5, rtol=0, atol=1e-5)
    torch.testing.assert_close(maps[:, 1], (z0 - mean_0) / (0.75 * 0.2) ** 0.5, rtol=0, atol=1e-5)


@pytest.mark.parametrize("final", ["sigma_min", "zero"])
def test_matches_diffusers_without_source_prompt(monkeypatch, final):
    """Diffusers inverts with our random draws and samples from its maps, both without guidance."""
    pipeline, inversion, predictor, steps = inverted_by_both(monkeypatch, final)
    assert_equal(inversion, pipeline)
    assert bool((inversion.aux["maps"][:, -1] == 0).all()) == (final == "zero")
    reconstruction = LEditsPP().reconstruct(inversion, predictor, steps)
    torch.testing.assert_close(reconstruction.float(), pipeline(output_type="latent").images, rtol=0, atol=1e-3)


def test_matches_diffusers_with_fixed_embedding_order(monkeypatch):
    pipeline, inversion, predictor, steps = inverted_by_both(monkeypatch, "sigma_min", "a cat")
    assert_equal(inversion, pipeline)
    z0 = LEditsPP().reconstruct(inversion, predictor, steps)
    torch.testing.assert_close(z0, inversion.z0, rtol=0, atol=1e-6)


def inverted_by_both(monkeypatch, final, prompt=""):
    """Return diffusers' pipeline after inverting two images with our draws; our inversion, predictor and schedule."""
    ours = LatentDiffusion(tiny_stable_diffusion(unet={"sample_size": 16}))  # the pipeline requires images of 32 pixels
    pipeline = leditspp_pipeline(final)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = list(draw_noise(ours.encode(images), 6, 0))  # the pipeline draws from clean to noisy
    monkeypatch.setattr(diffusers_module, "randn_tensor", lambda shape, **_: draws.pop().expand(shape))
    predictor = ours.predictor([prompt] * 2, 3.5 if prompt else 1.0)
    if prompt:
        fix_embedding_order(monkeypatch, pipeline.unet, predictor.denoiser)
    pipeline.invert(images, source_prompt=prompt, source_guidance_scale=3.5, num_inversion_steps=6, skip=0)

    timesteps = pipeline.inversion_steps
    table = alpha_bar_table(scheduler())
    last = table[:1] if final == "sigma_min" else table.new_ones(1)
    steps = Schedule.diffusion(timesteps, table[timesteps], torch.cat([table[timesteps[1:]], last]))
    return pipeline, LEditsPP().invert(ours.encode(images), predictor, steps), predictor, steps


def fix_embedding_order(monkeypatch, unet, denoiser):
    """Pass the UNet the embedding of the empty prompt, then that of the source prompt, in every step of ``invert``.

    Diffusers 0.42.1 swaps the two.
    """
    forward = unet.forward
    embeddings = cycle([denoiser.negative.text, denoiser.positive.text])
    monkeypatch.setattr(unet, "forward", lambda z, timestep, **_: forward(z, timestep, next(embeddings)))


def assert_equal(inversion, pipeline):
    torch.testing.assert_close(inversion.seed.float(), pipeline.init_latents, rtol=1e-4, atol=1e-4)
    maps = inversion.aux["maps"].transpose(0, 1)  # [N,B,C,h,w]
    torch.testing.assert_close(maps.float(), pipeline.zs, rtol=0, atol=2e-3)  # the last map is divided by 0.03


def leditspp_pipeline(final):
    components = tiny_stable_diffusion(unet={"sample_size": 16}).components
    components["scheduler"] = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, lower_order_final=False,
        algorithm_type="sde-dpmsolver++", solver_order=2, final_sigmas_type=final,
    )  # fmt: skip
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    pipeline = LEditsPPPipelineStableDiffusion(
        **{name: components[name] for name in names}, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("method", [LEditsPP(), EditFriendly(keep_last_map=True)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"set_alpha_to_one": True},
        {"steps_offset": 0},  # the last step starts at timestep 0, whose alpha equals the final alpha
        {"timestep_spacing": "linspace"},
    ],
    ids=str,
)
def test_last_step_without_noise_is_unconverged(method, options):
    denoiser, z0 = gaussian(batch=2)
    steps = Schedule.from_scheduler(scheduler(**options), 10)
    inversion = method.invert(z0, NoisePredictor(denoiser), steps)
    reconstruction = method.reconstruct(inversion, NoisePredictor(denoiser), steps)
    assert not inversion.residual_converged.any() and inversion.seed.isfinite().all()
    assert 1e-4 < (reconstruction - z0).abs().mean() < 0.1  # the noise of the cleanest level remains


def test_result_does_not_depend_on_the_batch(model):
    z0 = latents()
    prompts = ["a cat", "dog", "x"]
    steps = model.schedule(4)
    together = LEditsPP().invert(z0, model.predictor(prompts, 3.0), steps)
    for i, prompt in enumerate(prompts):
        alone = LEditsPP().invert(z0[i : i + 1], model.predictor([prompt], 3.0), steps)
        assert torch.equal(together.seed[i], alone.seed[0])
        torch.testing.assert_close(together.aux["maps"][i], alone.aux["maps"][0], rtol=1e-3, atol=1e-3)


def test_nan_sample_is_unconverged_and_isolated():
    def nan_in_second_sample(z, number):
        return torch.where(number == 1, torch.full_like(z, torch.nan), wavy(z, number))

    z0 = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inversion = LEditsPP().invert(z0, function_predictor(nan_in_second_sample, 3), schedule(5))
    assert inversion.residual_converged.tolist() == [True, False, True]
    rows = torch.tensor([0, 2])
    alone = LEditsPP().invert(z0[rows], NoisePredictor(FunctionDenoiser(wavy, rows)), schedule(5))
    torch.testing.assert_close(inversion.aux["maps"][rows], alone.aux["maps"], rtol=1e-5, atol=1e-5)
