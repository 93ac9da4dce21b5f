"""Every scheduler of diffusers is either reproduced at its own timesteps or rejected with a remedy."""

import inspect

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from rnri import LatentDiffusion, Schedule
from rnri.models.diffusers_schedulers import check_scheduler
from tests.pipelines import tiny_stable_diffusion

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER_CLASSES = sorted(
    {
        scheduler_class
        for name in dir(diffusers)
        if name.endswith("Scheduler")
        and inspect.isclass(scheduler_class := getattr(diffusers, name))
        and issubclass(scheduler_class, SchedulerMixin)
    },
    key=lambda scheduler_class: scheduler_class.__name__,
)
SUPPORTED = {
    "CogVideoXDDIMScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
}  # fmt: skip


def make_scheduler(scheduler_class: type) -> SchedulerMixin:
    """Return a scheduler with those of Stable Diffusion's settings that its class has."""
    parameters = inspect.signature(scheduler_class.__init__).parameters
    config = {**BETAS, "clip_sample": False, "skip_prk_steps": True, "timestep_spacing": "leading", "steps_offset": 1}
    return scheduler_class(**{name: value for name, value in config.items() if name in parameters})


def timesteps_of(scheduler: SchedulerMixin, steps: int) -> list[int]:
    scheduler.set_timesteps(steps)
    return list(dict.fromkeys(int(t) for t in scheduler.timesteps))


@pytest.mark.parametrize("scheduler_class", SCHEDULER_CLASSES, ids=lambda scheduler_class: scheduler_class.__name__)
def test_every_scheduler_is_reproduced_or_rejected(scheduler_class):
    try:
        scheduler = make_scheduler(scheduler_class)
    except (ImportError, TypeError, ValueError) as error:
        pytest.skip(f"cannot be constructed: {error}")
    if scheduler_class is FlowMatchEulerDiscreteScheduler:
        scheduler.set_timesteps(4)
        assert (
            Schedule.from_scheduler(make_scheduler(scheduler_class), 4).timesteps.tolist()
            == scheduler.timesteps.tolist()
        )
    elif scheduler_class.__name__ in SUPPORTED:
        for steps in (4, 10):
            assert Schedule.from_scheduler(scheduler, steps).timesteps.tolist() == timesteps_of(
                make_scheduler(scheduler_class), steps
            )
    else:
        with pytest.raises(ValueError) as error:
            Schedule.from_scheduler(scheduler, 4)
        message = str(error.value)
        assert scheduler_class.__name__ in message and "\n" not in message


def test_supported_schedulers_exist():
    assert {scheduler_class.__name__ for scheduler_class in SCHEDULER_CLASSES} >= SUPPORTED


def test_tcd_timesteps():
    assert Schedule.from_scheduler(make_scheduler(TCDScheduler), 4).timesteps.tolist() == [999, 759, 499, 259]


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        ({"use_lu_lambdas": True}, "use_lu_lambdas"),
        ({"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, "use_flow_sigmas"),
    ],
)
def test_custom_noise_levels_are_rejected(options, option):
    with pytest.raises(ValueError, match=f"set {option} to false"):
        Schedule.from_scheduler(DPMSolverMultistepScheduler(**BETAS, **options), 10)


@pytest.mark.parametrize(
    "scheduler_class", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, LCMScheduler]
)
def test_zero_terminal_snr_with_epsilon_prediction_is_rejected(scheduler_class):
    parameters = inspect.signature(scheduler_class.__init__).parameters
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    options = {name: value for name, value in options.items() if name in parameters}
    scheduler = scheduler_class(**BETAS, prediction_type="epsilon", **options)
    for check in (lambda: Schedule.from_scheduler(scheduler, 4), lambda: check_scheduler(scheduler)):
        with pytest.raises(ValueError, match="prediction_type='epsilon' with rescale_betas_zero_snr=True"):
            check()


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_with_other_predictions(prediction):
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    schedule = Schedule.from_scheduler(DDIMScheduler(**BETAS, prediction_type=prediction, **options), 4)
    assert schedule.timesteps[0] == 999


def test_unsupported_scheduler_is_rejected_at_construction():
    pipe = tiny_stable_diffusion(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        LatentDiffusion(pipe)


@pytest.mark.parametrize("steps", [7.0, 4.5, True, "4", None, float("nan"), torch.tensor(4.0)])
def test_steps_must_be_integers(steps):
    with pytest.raises(ValueError, match="must be an integer"):
        Schedule.from_scheduler(make_scheduler(DDIMScheduler), steps)


def test_scheduler_is_not_modified():
    scheduler = make_scheduler(EulerDiscreteScheduler)
    scheduler.set_timesteps(7)
    timesteps = scheduler.timesteps.clone()
    sigmas = scheduler.sigmas.clone()
    Schedule.from_scheduler(scheduler, 4)
    assert torch.equal(scheduler.timesteps, timesteps) and torch.equal(scheduler.sigmas, sigmas)


def test_last_step_of_tcd_and_lcm():
    z, eps = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scheduler_class in (TCDScheduler, LCMScheduler):
        for to_one in (True, False):
            scheduler = scheduler_class(**BETAS, set_alpha_to_one=to_one)
            steps = Schedule.from_scheduler(scheduler, 4)
            if scheduler_class is LCMScheduler:
                assert steps.alpha_bar_next[-1] == 1
                continue
            scheduler.set_timesteps(4)
            for i in range(4):
                a, b = steps.coefficients(i)
                expected = scheduler.step(eps, scheduler.timesteps[i], z, eta=0.0).prev_sample
                torch.testing.assert_close((z - b * eps) / a, expected, rtol=1e-4, atol=1e-4)
