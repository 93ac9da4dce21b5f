"""Inversion and reconstruction with every solver: errors agree with the reported residuals."""

import pytest
import torch

from rnri import (
    Anderson,
    AveragedFixedPoint,
    FixedPoint,
    ForwardStep,
    ImplicitInverter,
    LatentDiffusion,
    NewtonKrylov,
    NoisePredictor,
    ReNoise,
    RNRIMeanSign,
    RNRIMinimumNorm,
    RNRIPaper,
    SafeguardedAnderson,
    anderson_inverter,
    sample,
    with_measured_residuals,
)
from tests.problems import gaussian, schedule
from tests.rnri.test_inversion import SOLVER_IDS, SOLVERS


@pytest.mark.parametrize("solver", SOLVERS, ids=SOLVER_IDS)
def test_reconstruction_error_is_bounded_by_residuals(solver):
    """On Gaussian data a sampler step multiplies the error by a known gain and adds ``(z - f(z)) / A``."""
    denoiser, z0 = gaussian(batch=4)
    steps = schedule(10)
    inverter = ImplicitInverter(solver)
    path = []
    inversion = inverter.invert(z0, NoisePredictor(denoiser), steps, lambda k, z: path.append(z))
    inversion = with_measured_residuals(inversion, path, NoisePredictor(denoiser), steps, tolerance=solver.tolerance)
    error = torch.zeros(len(z0), dtype=torch.float64)
    for i in range(len(steps)):  # noisy to clean
        a_t, a_s = steps.alpha_bar[i].item(), steps.alpha_bar_next[i].item()
        gain = denoiser.step(torch.ones_like(z0), a_t, a_s) - denoiser.step(torch.zeros_like(z0), a_t, a_s)
        error = gain.flatten(1).max(1).values * error + inversion.residuals[-1 - i] / steps.coefficients(i)[0]
    reconstruction = inverter.reconstruct(inversion, NoisePredictor(denoiser), steps)
    assert ((reconstruction - z0).abs().flatten(1).mean(1) <= error + 1e-9).all()


@pytest.mark.parametrize(
    "solver",
    [
        RNRIPaper(400, prior_weight=0),
        RNRIMeanSign(400, prior_weight=0),
        RNRIMinimumNorm(400, tolerance=1e-8, prior_weight=0),
        ReNoise(30, tolerance=0, average_from=25, clean_below=0),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_gaussian_round_trip_is_within_tolerance(solver):
    """Solvers that only approach the root; ``test_gaussian_seeds_are_exact`` tests the others."""
    denoiser, z0 = gaussian(batch=3)
    steps = schedule(10)
    inverter = ImplicitInverter(solver, "fitted")
    path = []
    inversion = inverter.invert(z0, NoisePredictor(denoiser), steps, lambda k, z: path.append(z))
    inversion = with_measured_residuals(inversion, path, NoisePredictor(denoiser), steps, tolerance=solver.tolerance)
    reconstruction = inverter.reconstruct(inversion, NoisePredictor(denoiser), steps)
    tolerance = solver.tolerance or 1e-6
    assert inversion.residual_converged.all() or solver.tolerance == 0
    assert (reconstruction - z0).abs().mean() < 2 * len(steps) * tolerance


@pytest.mark.parametrize("kind", [RNRIPaper, RNRIMeanSign, RNRIMinimumNorm])
def test_two_rnri_iterations_beat_ddim_inversion(kind):
    denoiser, z0 = gaussian(batch=16)
    steps = schedule(10)
    errors = []
    for solver in (kind(2, prior_weight=0.1), FixedPoint(1)):
        seed = ImplicitInverter(solver).invert(z0, NoisePredictor(denoiser), steps).seed
        errors.append((sample(seed, NoisePredictor(denoiser), steps) - z0).abs().mean())
    assert errors[0] < 0.8 * errors[1]


@pytest.fixture(scope="module")
def embedded():
    """The embedded model, two prompts, and latents that it generates from them."""
    model = LatentDiffusion.from_pretrained("assets/models/emoji", device="cpu", dtype=torch.float32)
    prompts = ["a drawing of a camel", "a drawing of a red apple on a white background"]
    with torch.no_grad():
        z0 = model.sample(model.noise(["camel", "apple"], seed=0), model.predictor(prompts), model.schedule(10))
    return model, prompts, z0


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        FixedPoint(100),
        AveragedFixedPoint(100),
        Anderson(50),
        SafeguardedAnderson(50),
        ForwardStep(100),
        NewtonKrylov(80, krylov_dim=3),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_embedded_model_round_trip_is_within_tolerance(embedded, solver):
    model, prompts, z0 = embedded
    inverter = ImplicitInverter(solver, "fitted")
    steps = model.schedule(10)
    predictor = model.predictor(prompts[:1])
    inversion = inverter.invert(z0[:1], predictor, steps)
    reconstruction = inverter.reconstruct(inversion, predictor, steps)
    assert inversion.residual_converged.all() and (inversion.residual <= solver.tolerance).all()
    assert ((reconstruction - z0[:1]).abs().flatten(1).mean(1) < 20 * len(steps) * solver.tolerance).all()


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_embedded_model_result_does_not_depend_on_batch(embedded, guidance):
    """In float32; in half precision the last digits of the network's sums, which do depend on it, are visible."""
    model, prompts, z0 = embedded
    inverter = anderson_inverter()
    steps = model.schedule(5)
    batched = inverter.invert(z0, model.predictor(prompts, guidance), steps)
    images = inverter.reconstruct(batched, model.predictor(prompts, guidance), steps)
    for i, prompt in enumerate(prompts):
        predictor = model.predictor([prompt], guidance)
        alone = inverter.invert(z0[i : i + 1], predictor, steps)
        torch.testing.assert_close(batched.seed[i], alone.seed[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(images[i], inverter.reconstruct(alone, predictor, steps)[0], rtol=0, atol=1e-4)
        assert torch.equal(batched.nfe[:, i], alone.nfe[:, 0])
