"""Schedules reproduce the steps of diffusers' schedulers."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    VQDiffusionScheduler,
)

from rnri import Schedule
from tests.problems import flow_schedule, schedule, scheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("to_one", [True, False])
def test_steps_equal_ddim(steps, spacing, offset, to_one):
    ddim = scheduler(timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=to_one)
    schedule = Schedule.from_scheduler(ddim, steps)
    ddim.set_timesteps(steps)
    z, eps = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert len(schedule) == steps
    for i in range(steps):
        a, b = schedule.coefficients(i)
        assert int(schedule.timesteps[i]) == int(ddim.timesteps[i])
        expected = ddim.step(eps, schedule.timesteps[i], z).prev_sample
        # scheduler.step works with float32 coefficients
        torch.testing.assert_close((z - b * eps) / a, expected, rtol=1e-5, atol=1e-5)


def test_coefficients_of_one_step():
    steps = Schedule.diffusion(torch.tensor([10]), torch.tensor([0.36]).double(), torch.tensor([0.64]).double())
    a, b = steps.coefficients(0)
    assert a == pytest.approx(math.sqrt(0.36 / 0.64), abs=1e-7)  # 3/4
    assert b == pytest.approx(0.8 - 0.6 * 0.75, abs=1e-7)  # sqrt(1 - a_t) - sqrt(a_t) psi_s, psi_s = 0.6 / 0.8


def test_scheduler_is_not_modified():
    ddim = scheduler()
    ddim.set_timesteps(7)
    timesteps = ddim.timesteps.clone()
    Schedule.from_scheduler(ddim, 50)
    assert ddim.num_inference_steps == 7 and torch.equal(ddim.timesteps, timesteps)


def test_linspace_steps_have_fixed_stride():
    steps = Schedule.from_scheduler(scheduler(timestep_spacing="linspace"), 10)
    assert steps.timesteps[:2].tolist() == [999, 888]
    assert steps.alpha_bar_next[0] == scheduler().alphas_cumprod[899]


def test_pndm_equals_ddim():
    pndm = PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
    schedule = Schedule.from_scheduler(pndm, 50)
    expected = Schedule.from_scheduler(scheduler(), 50)
    assert schedule.timesteps[0] == 981 and torch.equal(schedule.timesteps, expected.timesteps)
    assert torch.equal(schedule.alpha_bar_next, expected.alpha_bar_next)


@pytest.mark.parametrize("scheduler_class", [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_turbo_is_ddim_on_trailing_timesteps(scheduler_class):
    turbo = scheduler_class(**BETAS, timestep_spacing="trailing", steps_offset=1)
    steps = Schedule.from_scheduler(turbo, 4)
    assert steps.timesteps.tolist() == [999, 749, 499, 249]
    assert torch.equal(steps.alpha_bar_next[:-1], steps.alpha_bar[1:]) and steps.alpha_bar_next[-1] == 1


def test_step_equals_euler():
    euler = EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    steps = Schedule.from_scheduler(euler, 4)
    euler.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    a, b = steps.coefficients(0)
    sigma = float((1 / steps.alpha_bar[0] - 1).sqrt())  # Euler's variance-exploding state is z / sqrt(a)
    euler_sample = euler.step(eps, euler.timesteps[0], z * math.sqrt(1 + sigma**2)).prev_sample
    expected = euler_sample.double() * float(steps.alpha_bar_next[0].sqrt())
    torch.testing.assert_close((z - b * eps) / a, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler_class", [LMSDiscreteScheduler, DPMSolverMultistepScheduler])
def test_sigma_schedulers_step_to_next_entry(scheduler_class):
    steps = Schedule.from_scheduler(scheduler_class(**BETAS), 10)
    assert len(steps) == 10 and torch.equal(steps.alpha_bar_next[:-1], steps.alpha_bar[1:])


def test_lcm_timesteps():
    steps = Schedule.from_scheduler(LCMScheduler(**BETAS), 4)
    assert steps.timesteps.tolist() == [999, 759, 499, 259]
    with pytest.raises(ValueError, match="1 to 50"):
        Schedule.from_scheduler(LCMScheduler(**BETAS), 51)


def test_zero_terminal_snr_is_finite():
    steps = Schedule.from_scheduler(
        scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"), 10
    )
    a, b = steps.coefficients(0)
    assert 0 < steps.alpha_bar[0] < 1e-9 and 0 < a < 1e-4 and b == pytest.approx(1, abs=1e-4)


def test_tail_returns_cleanest_steps():
    steps = Schedule.from_scheduler(scheduler(), 10)
    tail = steps.tail(3)
    assert torch.equal(tail.timesteps, steps.timesteps[7:])
    assert [tail.coefficients(i) for i in range(3)] == [steps.coefficients(i) for i in range(7, 10)]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_invalid_number_of_steps(steps):
    with pytest.raises(ValueError, match=f"steps={steps}"):
        Schedule.from_scheduler(scheduler(), steps)


@pytest.mark.parametrize("make", [schedule, flow_schedule])
def test_clean_estimate_follows_from_the_latents_before_and_after_a_step(make):
    steps = make(4)
    z = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i in range(4):
        prediction = torch.sin(3 * z)
        clean, _ = steps.clean_and_noise(i, z, prediction)
        a, b = steps.coefficients(i)
        torch.testing.assert_close(steps.clean_estimate(i, z, (z - b * prediction) / a), clean)


@pytest.mark.parametrize("k", [0, 11])
def test_invalid_tail(k):
    with pytest.raises(ValueError, match=f"tail\\({k}\\)"):
        Schedule.from_scheduler(scheduler(), 10).tail(k)


def test_unsupported_schedules_are_rejected():
    with pytest.raises(ValueError, match="no betas"):
        Schedule.from_scheduler(VQDiffusionScheduler(num_vec_classes=8), 4)
    with pytest.raises(ValueError, match="clip_sample"):
        Schedule.from_scheduler(DDIMScheduler(), 4)
    with pytest.raises(ValueError, match="must be between 0 and the last timestep"):
        Schedule.from_scheduler(scheduler(steps_offset=1), 1000)
    with pytest.raises(ValueError, match="descend"):
        Schedule.diffusion(torch.tensor([1, 2]), torch.tensor([0.1, 0.2]), torch.tensor([0.2, 0.3]))
    with pytest.raises(ValueError, match="from more to less noise in every step"):
        Schedule.diffusion(torch.tensor([2]), torch.tensor([0.5]), torch.tensor([0.4]))
