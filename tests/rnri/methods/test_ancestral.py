"""Inversion of the ancestral sampler with kept noise, against diffusers' scheduler and its own round trip."""

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from diffusers.schedulers import scheduling_euler_ancestral_discrete as diffusers_module

from rnri import FixedPoint, ReNoise, Schedule
from rnri.methods import Ancestral
from rnri.methods.ancestral import ancestral_schedule, renoise_ancestral, rnri_ancestral
from tests.problems import flow_schedule, function_predictor, schedule, wavy
from tests.rnri.methods.test_published_methods import STEPS, assert_close, predictor, value

CONVERGED = FixedPoint(200, 1e-13)


def latents(batch):
    return torch.randn(batch, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def turbo(steps):
    """Return diffusers' ancestral scheduler of turbo checkpoints and its schedule."""
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    return scheduler, Schedule.from_scheduler(scheduler, steps)


def test_sampler_equals_diffusers_scheduler(monkeypatch):
    scheduler, steps = turbo(4)
    method = Ancestral(CONVERGED)
    inversion = method.invert(latents(2), function_predictor(wavy, 2), steps)
    noises = iter(inversion.aux["noises"].unbind(1))
    monkeypatch.setattr(diffusers_module, "randn_tensor", lambda shape, **_: next(noises).float())
    x = inversion.seed / steps.alpha[0]
    for i, t in enumerate(scheduler.timesteps):
        noise = function_predictor(wavy, 2)(steps.alpha[i] * x, t)
        x = scheduler.step(noise.float(), t, x.float()).prev_sample.double()
    expected = method.reconstruct(inversion, function_predictor(wavy, 2), steps)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("make_steps", [schedule, lambda count: turbo(count)[1]], ids=["sd", "turbo"])
def test_round_trip_with_the_same_noises_is_exact(make_steps, count):
    z0, steps = latents(2), make_steps(count)
    method = Ancestral(FixedPoint(3000, 1e-13), seed=3)
    predictor = function_predictor(lambda z, n: 0.3 * wavy(z, n), 2)
    inversion = method.invert(z0, predictor, steps)
    assert inversion.solved.all() and not inversion.seed_only and inversion.residual.isnan().all()
    assert inversion.aux["noises"].shape == (2, count, 4, 8, 8)
    torch.testing.assert_close(method.reconstruct(inversion, predictor, steps), z0, rtol=0, atol=1e-8)


def test_levels_of_the_noise_add_up():
    steps = schedule(5)
    down, sigma_up = ancestral_schedule(steps)
    torch.testing.assert_close(down.sigma_next.square() + sigma_up.square(), steps.sigma_next.square())
    ratio = steps.alpha / steps.alpha_next  # by hand, in Euler's coordinates
    from_sigma, to_sigma = steps.sigma / steps.alpha, steps.sigma_next / steps.alpha_next
    up = (to_sigma**2 * (from_sigma**2 - to_sigma**2) / from_sigma**2).sqrt()
    torch.testing.assert_close(sigma_up, up * steps.alpha / ratio, rtol=1e-9, atol=1e-9)


def test_noise_correction_makes_every_noisy_step_exact():
    z0, steps = latents(2), schedule(4)  # this schedule ends at a noise level above 0: every step adds noise
    predictor = function_predictor(wavy, 2)
    rough = Ancestral(FixedPoint(1, 0))
    corrected = Ancestral(FixedPoint(1, 0), correct_noise=True)
    error = rough.reconstruct(rough.invert(z0, predictor, steps), predictor, steps) - z0
    inversion = corrected.invert(z0, predictor, steps)
    assert error.abs().mean() > 1e-2
    torch.testing.assert_close(corrected.reconstruct(inversion, predictor, steps), z0, rtol=0, atol=1e-10)
    assert inversion.nfe.tolist() == [[2, 2]] * 4 and corrected.nfe_per_step == 2 and rough.nfe_per_step == 1


def test_step_without_noise_is_not_corrected():
    _, steps = turbo(3)
    inversion = renoise_ancestral().invert(latents(1), function_predictor(wavy, 1), steps)
    uncorrected = Ancestral(ReNoise()).invert(latents(1), function_predictor(wavy, 1), steps)
    assert inversion.aux["noises"].isfinite().all()
    assert torch.equal(inversion.aux["noises"][:, -1], uncorrected.aux["noises"][:, -1])


@pytest.mark.parametrize("make", [rnri_ancestral, renoise_ancestral])
def test_sample_does_not_depend_on_its_batch(make):
    z0, steps = latents(3), schedule(4)
    batched = make().invert(z0, function_predictor(wavy, 3), steps)
    alone = make().invert(z0[:1], function_predictor(wavy, 1), steps)
    torch.testing.assert_close(batched.seed[:1], alone.seed, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(batched.aux["noises"][:1], alone.aux["noises"], rtol=1e-9, atol=1e-9)


def test_flow_matching_is_rejected():
    with pytest.raises(ValueError, match="ancestral sampler needs a model that predicts noise"):
        rnri_ancestral().invert(latents(1), function_predictor(wavy, 1), flow_schedule(3))


UP = 0.75 * 0.4375**0.5
"""``sigma_up`` of the step from noise level 0.8 to 0.6; ``sigma_down`` is 0.3375, and the last step adds no noise."""


def test_ancestral_steps_by_hand():
    """The last step leads to 0.8 + 0.6; the first step has A = 0.75 and B = 0.8 - 0.75 * 0.3375."""
    method = Ancestral(FixedPoint(1, 0))
    inversion = method.invert(value(1), predictor(), STEPS)
    noise = inversion.aux["noises"].flatten()[0].item()
    assert_close(inversion.seed, (0.75 + 2 * 0.546875) * (1.4 - UP * noise))
    # (z - 0.546875 * 2 z) / 0.75 + UP n, then (z - 0.6 z) / 0.8
    middle = -0.125 * inversion.seed.item() + UP * noise
    assert_close(method.reconstruct(inversion, predictor(), STEPS), middle / 2)


def test_noise_correction_by_hand():
    """The corrected noise leads from the seed to 1.4: 1.4 = -0.125 z + UP n."""
    plain = Ancestral(FixedPoint(1, 0)).invert(value(1), predictor(), STEPS)
    corrected = Ancestral(FixedPoint(1, 0), correct_noise=True).invert(value(1), predictor(), STEPS)
    assert torch.equal(corrected.seed, plain.seed)
    noise, last = corrected.aux["noises"].flatten().tolist()
    assert noise == pytest.approx((1.4 + 0.125 * plain.seed.item()) / UP)
    assert last == plain.aux["noises"].flatten()[1].item()  # the last step adds no noise
    assert corrected.nfe.flatten().tolist() == [2, 2]
