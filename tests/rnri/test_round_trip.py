"""Every solver inverts and reconstructs, on data with a closed form and on the embedded model, as well as it says."""

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
    with_measured_residuals,
    sample,
)
from tests.problems import gaussian, schedule
from tests.rnri.test_inversion import SOLVERS, names


@pytest.mark.parametrize("solver", SOLVERS, ids=names)
def test_the_reconstruction_errs_by_no_more_than_the_residuals_say(solver):
    """On Gaussian data a step of the sampler multiplies an error by a known gain, and adds ``(z - f(z)) / A``."""
    (denoiser, z0), steps = gaussian(batch=4), schedule(10)
    inverter, path = ImplicitInverter(solver), []
    inversion = inverter.invert(z0, NoisePredictor(denoiser), steps, lambda k, z: path.append(z))
    inversion = with_measured_residuals(inversion, path, NoisePredictor(denoiser), steps, solver.tolerance)
    error = torch.zeros(len(z0), dtype=torch.float64)
    for i in range(len(steps)):  # noisy to clean
        a_t, a_s = steps.alpha_bar[i].item(), steps.alpha_bar_next[i].item()
        gain = denoiser.step(torch.ones_like(z0), a_t, a_s) - denoiser.step(torch.zeros_like(z0), a_t, a_s)
        error = gain.flatten(1).max(1).values * error + inversion.residuals[-1 - i] / steps.coefficients(i)[0]
    again = inverter.reconstruct(inversion, NoisePredictor(denoiser), steps)
    assert ((again - z0).abs().flatten(1).mean(1) <= error + 1e-9).all()


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
def test_gaussian_data_round_trips_within_the_tolerance(solver):
    """The solvers that only approach the root; the others are exact (``test_gaussian_seeds_are_exact``)."""
    (denoiser, z0), steps = gaussian(batch=3), schedule(10)
    inverter, path = ImplicitInverter(solver, "fitted"), []
    inversion = inverter.invert(z0, NoisePredictor(denoiser), steps, lambda k, z: path.append(z))
    inversion = with_measured_residuals(inversion, path, NoisePredictor(denoiser), steps, solver.tolerance)
    again = inverter.reconstruct(inversion, NoisePredictor(denoiser), steps)
    allowed = solver.tolerance or 1e-6
    assert inversion.converged.all() or solver.tolerance == 0
    assert (again - z0).abs().mean() < 2 * len(steps) * allowed


@pytest.mark.parametrize("kind", [RNRIPaper, RNRIMeanSign, RNRIMinimumNorm])
def test_two_iterations_with_the_papers_prior_are_ahead_of_ddim(kind):
    (denoiser, z0), steps = gaussian(batch=16), schedule(10)
    errors = []
    for solver in (kind(2, prior_weight=0.1), FixedPoint(1)):
        seed = ImplicitInverter(solver).invert(z0, NoisePredictor(denoiser), steps).seed
        errors.append((sample(seed, NoisePredictor(denoiser), steps) - z0).abs().mean())
    assert errors[0] < 0.8 * errors[1]


@pytest.fixture(scope="module")
def embedded():
    """The embedded model and latents that it generates itself, of two prompts."""
    model = LatentDiffusion.from_pretrained("assets/models/emoji", device="cpu", dtype=torch.float32)
    prompts = ["a drawing of a camel", "a drawing of a red apple on a white background"]
    with torch.no_grad():
        z0 = model.sample(model.noise(["camel", "apple"], seed=0), model.predictor(prompts), model.schedule(10))
    return model, prompts, z0


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
def test_the_embedded_model_round_trips_within_the_tolerance(embedded, solver):
    model, prompts, z0 = embedded
    inverter, steps = ImplicitInverter(solver, "fitted"), model.schedule(10)
    inversion = inverter.invert(z0, model.predictor(prompts), steps)
    again = inverter.reconstruct(inversion, model.predictor(prompts), steps)
    assert inversion.converged.all() and (inversion.residual <= solver.tolerance).all()
    assert ((again - z0).abs().flatten(1).mean(1) < 20 * len(steps) * solver.tolerance).all()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_in_float32_an_image_of_the_embedded_model_does_not_depend_on_its_batch(embedded, guidance):
    """The network's sums do, in their last digits; half precision has few enough of them for that to show."""
    model, prompts, z0 = embedded
    inverter, steps = anderson_inverter(), model.schedule(5)
    together = inverter.invert(z0, model.predictor(prompts, guidance), steps)
    images = inverter.reconstruct(together, model.predictor(prompts, guidance), steps)
    for i, prompt in enumerate(prompts):
        predictor = model.predictor([prompt], guidance)
        alone = inverter.invert(z0[i : i + 1], predictor, steps)
        torch.testing.assert_close(together.seed[i], alone.seed[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(images[i], inverter.reconstruct(alone, predictor, steps)[0], rtol=0, atol=1e-4)
        assert torch.equal(together.nfe[:, i], alone.nfe[:, 0])
