"""What a flow-matching scheduler says of itself: its sigmas and its timesteps, as it shifts them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from numbers import Integral

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler is one of flow matching's; all but Euler's deterministic one are then refused."""
    return type(scheduler).__name__.startswith("FlowMatch")


def check_flow_scheduler(scheduler: SchedulerMixin) -> None:
    """Finds what is wrong with a flow-matching scheduler whatever the number of steps.

    Raises:
        ValueError: one that adds noise at every step, counts time upwards, or steps in a way of its own.
    """
    name, remedy = type(scheduler).__name__, "use FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)"
    if type(scheduler) is not FlowMatchEulerDiscreteScheduler:
        raise ValueError(f"{name} does not take Euler's steps of flow matching, which are what is inverted: {remedy}.")
    if scheduler.config.get("stochastic_sampling"):
        raise ValueError(
            f"stochastic_sampling is on in the config of {name}: it adds noise at every step, which no inversion can "
            "undo; set it to false in scheduler_config.json."
        )
    if scheduler.config.get("invert_sigmas"):
        raise ValueError(
            f"invert_sigmas is on in the config of {name}: its time runs from clean to noisy; turn it off."
        )


def check_steps(scheduler: SchedulerMixin, steps: int) -> None:
    """ValueError unless ``steps`` is a number of steps that the scheduler has."""
    most = scheduler.config.num_train_timesteps
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= most:
        raise ValueError(f"steps={steps!r} must be a whole number, 1 to {most}.")


def flow_steps(
    scheduler: FlowMatchEulerDiscreteScheduler,
    steps: int,
    *,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> tuple[Tensor, Tensor]:
    """``(timesteps [N], sigmas [N+1])``, float64, that a copy of the scheduler sets for ``steps`` steps.

    The single-precision values that the scheduler itself holds are kept to the bit, only widened.

    Raises:
        ValueError: as ``Schedule.from_scheduler``.
    """
    check_flow_scheduler(scheduler)
    check_steps(scheduler, steps)
    dynamic = bool(scheduler.config.use_dynamic_shifting)
    if dynamic and mu is None:
        raise ValueError(
            "the scheduler's shift depends on the image's size (use_dynamic_shifting): give mu, as the pipeline's "
            "calculate_shift makes it of the number of image tokens."
        )
    if not dynamic and mu is not None:
        raise ValueError("mu has no effect on a scheduler without use_dynamic_shifting: leave it out.")
    own = copy.deepcopy(scheduler)
    try:
        own.set_timesteps(int(steps), sigmas=None if sigmas is None else list(sigmas), mu=mu)
    except Exception as error:  # the scheduler refuses in its own ways
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ValueError(f"steps={steps}: {type(scheduler).__name__} refuses: {reason}") from error
    levels = own.sigmas.detach().cpu().double()
    if not ((levels[1:] < levels[:-1]).all() and levels[0] <= 1):
        shown = ", ".join(f"{level:.4g}" for level in levels[:4].tolist())
        raise ValueError(f"steps={steps}: the sigmas of {type(scheduler).__name__} must descend from 1 ({shown}, ...).")
    return own.timesteps.detach().cpu().double(), levels
