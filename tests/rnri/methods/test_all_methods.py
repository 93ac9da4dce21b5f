"""Methods that solve no implicit equation: exactness, independence of the batch, counts and stored tensors."""

import pytest
import torch

from rnri import (
    Condition,
    FixedPoint,
    ImplicitInverter,
    LatentDiffusion,
    NoisePredictor,
    PromptAware,
    SafeguardedAnderson,
    Schedule,
    sample,
)
from rnri.methods import BDIA, EDICT, OBELM, DirectInversion, EditFriendly, NegativePrompt, NullText, SDEdit
from tests.pipelines import LATENT_SHAPE, tiny_stable_diffusion
from tests.problems import FunctionDenoiser, function_predictor, gaussian, schedule, scheduler, wavy

EXACT = [EDICT(), EDICT(mix=1.0), BDIA(), BDIA(gamma=0.5), OBELM(), DirectInversion(), EditFriendly(keep_last_map=True)]
ALL = [*EXACT, EditFriendly(), NegativePrompt(), NullText(iterations=3), SDEdit()]
ADJUSTED = PromptAware(ImplicitInverter(SafeguardedAnderson(8, tolerance=1e-4), "fitted"))


def name(method):
    return str(method)


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion(tiny_stable_diffusion())


@pytest.fixture(scope="module")
def exact_model():
    return LatentDiffusion(tiny_stable_diffusion().to(torch.float64))


def latents(batch=3):
    return torch.randn(batch, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("method", EXACT, ids=name)
def test_exact_methods_round_trip_on_gaussian_data(method, steps):
    denoiser, z0 = gaussian(batch=3)
    predictor = NoisePredictor(denoiser)
    inversion = method.invert(z0, predictor, schedule(steps))
    assert inversion.residual_converged.all() and not inversion.seed_only and inversion.residual.isnan().all()
    reconstruction = method.reconstruct(inversion, predictor, schedule(steps))
    torch.testing.assert_close(reconstruction, z0, rtol=0, atol=1e-6 if method == BDIA(gamma=0.5) else 1e-9)


@pytest.mark.parametrize("method", EXACT, ids=name)
def test_exact_methods_round_trip_through_a_network_with_guidance(model, method):
    z0 = latents()
    predictor = model.predictor(["a cat", "dog", "x"], 3.0)
    steps = model.schedule(5)
    inversion = method.invert(z0, predictor, steps)
    reconstruction = method.reconstruct(inversion, predictor, steps)
    torch.testing.assert_close(reconstruction.float(), z0, rtol=0, atol=2e-4)  # the network is float32


@pytest.mark.slow
@pytest.mark.parametrize("method", [*ALL, ADJUSTED], ids=name)
def test_result_does_not_depend_on_the_batch(exact_model, method):
    """In float64, because BDIA and O-BELM magnify rounding errors, as null-text's Adam does with tiny gradients."""
    z0 = latents(2)
    steps = exact_model.schedule(3)
    prompts = ["a cat", "dog"]
    together = method.invert(z0, exact_model.predictor(prompts, 3.0), steps)
    images = method.reconstruct(together, exact_model.predictor(prompts, 3.0), steps)
    for i, prompt in enumerate(prompts):
        predictor = exact_model.predictor([prompt], 3.0)
        alone = method.invert(z0[i : i + 1], predictor, steps)
        torch.testing.assert_close(together.seed[i], alone.seed[0], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(images[i], method.reconstruct(alone, predictor, steps)[0], rtol=1e-6, atol=1e-6)
        assert torch.equal(together.nfe[:, i], alone.nfe[:, 0])


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16, torch.float64], ids=str)
def converted_model(request):
    return LatentDiffusion(tiny_stable_diffusion().to(request.param))


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL, ids=name)
def test_every_network_dtype(converted_model, method):
    """Exact methods reconstruct in every dtype, because both directions round equally."""
    z0 = latents(1)
    predictor = converted_model.predictor(["a cat"], 3.0)
    steps = converted_model.schedule(3)
    inversion = method.invert(z0, predictor, steps)
    reconstruction = method.reconstruct(inversion, predictor, steps)
    assert inversion.seed.dtype == reconstruction.dtype == torch.float64 and reconstruction.isfinite().all()
    if method in EXACT:
        torch.testing.assert_close(reconstruction.float(), z0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ALL, ids=name)
def test_counts_equal_the_predictors_counts(model, method):
    predictor = model.predictor(["a cat", "dog", "x"], 3.0)
    steps = []
    inversion = method.invert(latents(), predictor, model.schedule(4), lambda k, z: steps.append((k, z.shape)))
    assert inversion.nfe.sum() == predictor.forward_evaluations
    assert inversion.backward.sum() == predictor.backward_evaluations
    assert inversion.nfe.shape == (4, 3)
    assert steps == ([] if isinstance(method, SDEdit) else [(k, (3, *LATENT_SHAPE)) for k in range(4)])


@pytest.mark.parametrize(
    ("method", "elements"),
    [(EDICT(), 1), (OBELM(), 1), (DirectInversion(), 6), (EditFriendly(), 6), (NegativePrompt(), 0), (SDEdit(), 0)],
    ids=name,
)
def test_aux_bytes(model, method, elements):
    inversion = method.invert(latents(), model.predictor(["a", "b", "c"], 2.0), model.schedule(6))
    assert inversion.aux_bytes == elements * 8 * torch.Size(LATENT_SHAPE).numel()


@pytest.mark.parametrize("method", [*ALL, ADJUSTED], ids=name)
def test_nan_sample_is_unconverged_and_isolated(method):
    def nan_in_second_sample(z, number):
        return torch.where(number == 1, torch.full_like(z, torch.nan), 0.3 * wavy(z, number))

    z0 = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inversion = method.invert(z0, function_predictor(nan_in_second_sample, 3), schedule(5))
    solved = method in EXACT or method is ADJUSTED
    assert inversion.residual_converged.tolist() == [solved, False, solved]
    rows = torch.tensor([0, 2])
    others = NoisePredictor(FunctionDenoiser(lambda z, number: 0.3 * wavy(z, number), rows))
    alone = method.invert(z0[rows], others, schedule(5))
    torch.testing.assert_close(inversion.seed[rows], alone.seed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", [BDIA(), OBELM()], ids=name)
def test_two_step_samplers_require_contiguous_steps(method):
    steps = Schedule.from_scheduler(scheduler(timestep_spacing="linspace"), 7)
    denoiser, z0 = gaussian(batch=1)
    with pytest.raises(ValueError, match="a step that does not end at the noise level where the next step begins"):
        method.invert(z0, NoisePredictor(denoiser), steps)


def test_obelm_is_more_accurate_than_ddim():
    """Compared with the exact flow of Gaussian data, computed with 500 DDIM steps."""
    denoiser, z0 = gaussian(batch=4)
    fine = denoiser.seed(z0, schedule(500))
    errors = {}
    for method in (OBELM(), BDIA(gamma=1.0), ImplicitInverter(FixedPoint(1))):
        seed = method.invert(z0, NoisePredictor(denoiser), schedule(50)).seed
        errors[type(method)] = (seed - fine).square().mean()
    assert errors[OBELM] < 0.5 * errors[ImplicitInverter]


def test_negative_prompt_cancels_guidance(model):
    z0 = latents()
    steps = model.schedule(6)
    prompts = ["a cat", "dog", "x"]
    guided = model.predictor(prompts, 7.5)
    plain = model.predictor(prompts)
    method = NegativePrompt()
    canceled = method.reconstruct(method.invert(z0, guided, steps), guided, steps)
    ddim = ImplicitInverter(FixedPoint(1))
    expected = ddim.reconstruct(ddim.invert(z0, plain, steps), plain, steps)
    torch.testing.assert_close(canceled, expected)
    source = guided.with_negative(guided.denoiser.positive)
    inversion = method.invert(z0, guided, steps)
    assert inversion.residual.isnan().all()  # of the equation without guidance
    seed = inversion.seed
    torch.testing.assert_close(sample(seed, source, steps), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_null_text_optimization_reduces_the_error(model):
    z0 = latents()
    steps = model.schedule(3)
    predictor = model.predictor(["a cat", "dog", "x"], 7.5)
    errors = []
    for iterations in (1, 6):
        method = NullText(iterations=iterations, threshold=0)
        reconstruction = method.reconstruct(method.invert(z0, predictor, steps), predictor, steps)
        errors.append((reconstruction - z0).square().flatten(1).mean(1))
    plain = sample(method.invert(z0, predictor, steps).seed, predictor, steps)
    assert (errors[1] < errors[0]).all()
    assert (errors[1] < (plain - z0).square().flatten(1).mean(1)).all()


def test_null_text_without_guidance_is_ddim(model):
    z0 = latents()
    predictor = model.predictor(["a cat", "dog", "x"])
    steps = model.schedule(4)
    inversion = NullText().invert(z0, predictor, steps)
    assert torch.equal(inversion.seed, ImplicitInverter(FixedPoint(1)).invert(z0, predictor, steps).seed)
    assert not inversion.aux and inversion.backward.sum() == 0


def test_null_text_stops_per_sample(model):
    predictor = model.predictor(["a cat", "dog", "x"], 3.0)
    steps = model.schedule(4)
    z0 = latents()
    easy = NullText(iterations=8, threshold=1e9).invert(z0, predictor, steps)
    assert (easy.nfe == 1 + 1 + 1 + 1).all() and (easy.backward == 1).all()


def test_null_text_isolates_nan_samples(model):
    z0 = latents(2)
    steps = model.schedule(3)
    z0[1] = torch.nan
    method = NullText(iterations=2)
    both = method.invert(z0, model.predictor(["a cat", "dog"], 3.0), steps)
    alone = method.invert(z0[:1], model.predictor(["a cat"], 3.0), steps)
    assert both.aux["negative"][1].isnan().any()
    torch.testing.assert_close(both.aux["negative"][:1], alone.aux["negative"], rtol=0, atol=1e-3)


def test_negative_condition_requires_guidance(model):
    predictor = model.predictor(["a cat"])
    with pytest.raises(ValueError, match="guidance is off"):
        predictor.with_negative(Condition(torch.zeros(1, 16, 32)))


def test_sdedit_samples_part_of_the_schedule():
    denoiser, z0 = gaussian(batch=2)
    steps = schedule(10)
    method = SDEdit(strength=0.3)
    inversion = method.invert(z0, NoisePredictor(denoiser), steps)
    a = steps.alpha_bar[7].item()
    noise = (inversion.seed - a**0.5 * z0) / (1 - a) ** 0.5
    assert torch.allclose(noise[0], noise[1])  # the same for every image
    reconstruction = method.reconstruct(inversion, NoisePredictor(denoiser), steps)
    torch.testing.assert_close(reconstruction, sample(inversion.seed, NoisePredictor(denoiser), steps.tail(3)))
    assert not inversion.residual_converged.any()


def test_edit_friendly_maps_match_diffusers_ddpm():
    """Diffusers' DDIM scheduler with eta = 1 reconstructs the latent if its noise is replaced by the maps."""
    denoiser, z0 = gaussian(batch=2)
    reference = scheduler()
    steps = schedule(10)
    reference.set_timesteps(10)
    inversion = EditFriendly(keep_last_map=True).invert(z0, NoisePredictor(denoiser), steps)
    z = inversion.seed
    for i, t in enumerate(reference.timesteps):
        z = reference.step(denoiser(z, int(t)), t, z, eta=1.0, variance_noise=inversion.aux["maps"][:, i]).prev_sample
    torch.testing.assert_close(z, z0, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noising", "reuse", "iterations"),  # every pair of values
    [("inversion", True, 1), ("inversion", False, 2), ("random", True, 2), ("random", False, 1)],
)
def test_prompt_aware_inverts_adjusted_latents(model, noising, reuse, iterations):
    z0 = latents()
    predictor = model.predictor(["a cat", "dog", "x"], 3.0)
    steps = model.schedule(6)
    inner = ImplicitInverter(SafeguardedAnderson(40, tolerance=3e-6), "fitted")
    method = PromptAware(inner, noising=noising, reuse=reuse, iterations=iterations)
    path = []
    inversion = method.invert(z0, predictor, steps, lambda k, z: path.append((k, z)))
    assert inversion.nfe.shape == (6, 3) and [k for k, _ in path] == list(range(6))
    assert inversion.nfe.sum() == predictor.forward_evaluations
    reconstruction = method.reconstruct(inversion, predictor, steps)
    assert inversion.residual_converged.all()
    torch.testing.assert_close(reconstruction, inversion.z0, rtol=0, atol=2e-3)
    assert (inversion.z0 - z0).abs().mean() > 1e-4  # the adjustment changes the latents
    torch.testing.assert_close(sample(path[2][1], predictor, steps.tail(3)), inversion.z0, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_reuse_saves_evaluations_with_the_same_latent(model):
    z0 = latents(1)
    steps = model.schedule(6)
    inner = ImplicitInverter(SafeguardedAnderson(40, tolerance=1e-7), "fitted")
    inversions = {}
    for reuse in (True, False):
        predictor = model.predictor(["a cat"], 3.0)
        inversions[reuse] = PromptAware(inner, reuse=reuse).invert(z0, predictor, steps)
    torch.testing.assert_close(inversions[True].z0, inversions[False].z0)
    torch.testing.assert_close(inversions[True].seed, inversions[False].seed, rtol=0, atol=1e-3)
    assert (inversions[True].nfe.sum(0) < inversions[False].nfe.sum(0)).all()


def test_reuse_requires_seed_only_and_enough_steps(model):
    predictor = model.predictor(["a cat", "dog", "x"])
    with pytest.raises(ValueError, match="EDICT cannot start in the middle of a schedule"):
        PromptAware(EDICT()).invert(latents(), predictor, model.schedule(4))
    with pytest.raises(ValueError, match=r"steps: must be less than .* got 2"):
        PromptAware(ImplicitInverter(FixedPoint())).invert(latents(), predictor, model.schedule(2))


def test_adjustment_keeps_reachable_latents():
    denoiser, z0 = gaussian(batch=2)
    predictor = NoisePredictor(denoiser)
    steps = schedule(500)
    adjusted = PromptAware(ImplicitInverter(FixedPoint(1)), steps=2).adjust(z0, predictor, steps)
    torch.testing.assert_close(adjusted[0], z0, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: EDICT(mix=0), "mix: .*, got 0"),
        (lambda: BDIA(gamma=1.5), "gamma: .*, got 1.5"),
        (lambda: SDEdit(strength=0), "strength: .*, got 0"),
        (lambda: NullText(iterations=0), "iterations: .*, got 0"),
        (lambda: PromptAware(ImplicitInverter(FixedPoint()), noising="none"), "noising: .*, got 'none'"),
        (lambda: PromptAware(ImplicitInverter(FixedPoint()), steps=0), "steps: .*, got 0"),
    ],
)
def test_invalid_settings(factory, message):
    with pytest.raises(ValueError, match=message):
        factory()
