"""Every scheduler of diffusers: its own timesteps are followed, or one sentence says why not and what to do."""

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
KINDS = sorted(
    {
        kind
        for name in dir(diffusers)
        if name.endswith("Scheduler")
        and inspect.isclass(kind := getattr(diffusers, name))
        and issubclass(kind, SchedulerMixin)
    },
    key=lambda kind: kind.__name__,
)
FOLLOWED = {
    "CogVideoXDDIMScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
}  # fmt: skip


def built(kind: type) -> SchedulerMixin:
    """``kind`` with Stable Diffusion's settings, as far as it knows them."""
    known = inspect.signature(kind.__init__).parameters
    wanted = {**BETAS, "clip_sample": False, "skip_prk_steps": True, "timestep_spacing": "leading", "steps_offset": 1}
    return kind(**{name: value for name, value in wanted.items() if name in known})


def own_timesteps(scheduler: SchedulerMixin, steps: int) -> list[int]:
    scheduler.set_timesteps(steps)
    return list(dict.fromkeys(int(t) for t in scheduler.timesteps))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_scheduler_is_followed_or_refused(kind):
    try:
        scheduler = built(kind)
    except (ImportError, TypeError, ValueError) as error:
        pytest.skip(f"cannot be made here: {error}")
    if kind is FlowMatchEulerDiscreteScheduler:
        scheduler.set_timesteps(4)
        assert Schedule.from_scheduler(built(kind), 4).timesteps.tolist() == scheduler.timesteps.tolist()
    elif kind.__name__ in FOLLOWED:
        for steps in (4, 10):
            assert Schedule.from_scheduler(scheduler, steps).timesteps.tolist() == own_timesteps(built(kind), steps)
    else:
        with pytest.raises(ValueError) as caught:
            Schedule.from_scheduler(scheduler, 4)
        assert kind.__name__ in str(caught.value) and "\n" not in str(caught.value)


def test_the_list_of_those_followed_is_of_this_version():
    assert {kind.__name__ for kind in KINDS} >= FOLLOWED


def test_tcd_keeps_its_own_timesteps():
    assert Schedule.from_scheduler(built(TCDScheduler), 4).timesteps.tolist() == [999, 759, 499, 259]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        ({"use_lu_lambdas": True}, "use_lu_lambdas"),
        ({"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, "use_flow_sigmas"),
    ],
)
def test_noise_levels_of_a_schedulers_own_are_refused_by_name(options, named):
    with pytest.raises(ValueError, match=f"set {named} to false"):
        Schedule.from_scheduler(DPMSolverMultistepScheduler(**BETAS, **options), 10)


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, LCMScheduler])
def test_zero_terminal_snr_with_a_network_that_predicts_noise_is_refused(kind):
    known = inspect.signature(kind.__init__).parameters
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    scheduler = kind(**BETAS, prediction_type="epsilon", **{k: v for k, v in options.items() if k in known})
    for check in (lambda: Schedule.from_scheduler(scheduler, 4), lambda: check_scheduler(scheduler)):
        with pytest.raises(ValueError, match="prediction_type='epsilon' with rescale_betas_zero_snr=True"):
            check()


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_with_another_network_is_followed(prediction):
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    schedule = Schedule.from_scheduler(DDIMScheduler(**BETAS, prediction_type=prediction, **options), 4)
    assert schedule.timesteps[0] == 999


def test_a_checkpoint_is_refused_when_it_is_loaded():
    pipe = tiny_stable_diffusion(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="rescale_betas_zero_snr"):
        LatentDiffusion(pipe)


@pytest.mark.parametrize("steps", [7.0, 4.5, True, "4", None, float("nan"), torch.tensor(4.0)])
def test_steps_are_whole_numbers(steps):
    with pytest.raises(ValueError, match="must be a whole number"):
        Schedule.from_scheduler(built(DDIMScheduler), steps)


def test_the_scheduler_is_left_as_it_was():
    scheduler = built(EulerDiscreteScheduler)
    scheduler.set_timesteps(7)
    before = scheduler.timesteps.clone(), scheduler.sigmas.clone()
    Schedule.from_scheduler(scheduler, 4)
    assert torch.equal(scheduler.timesteps, before[0]) and torch.equal(scheduler.sigmas, before[1])


def test_a_tcd_and_an_lcm_walk_ends_where_theirs_does():
    z, eps = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kind, options in [(TCDScheduler, {"eta": 0.0}), (LCMScheduler, {})]:
        for to_one in (True, False):
            scheduler = kind(**BETAS, set_alpha_to_one=to_one)
            steps = Schedule.from_scheduler(scheduler, 4)
            if kind is LCMScheduler:
                assert steps.alpha_bar_next[-1] == 1
                continue
            scheduler.set_timesteps(4)
            for i in range(4):
                a, b = steps.coefficients(i)
                expected = scheduler.step(eps, scheduler.timesteps[i], z, **options).prev_sample
                torch.testing.assert_close((z - b * eps) / a, expected, rtol=1e-4, atol=1e-4)
