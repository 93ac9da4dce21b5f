"""Reads the noise levels and the timesteps of the steps of a diffusers scheduler.

A copy of the scheduler computes the timesteps and noise levels, so that they equal the values that a pipeline uses. A
scheduler is rejected if deterministic DDIM or Euler steps cannot reproduce its steps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from rnri.models.checks.schedulers import (
    check_clipping,
    check_flow_scheduler,
    check_flow_sigmas,
    check_mu,
    check_sigmas,
    check_signal,
    check_steps,
    check_terminal_shift,
    check_timesteps,
    not_ddim_message,
)
from rnri.models.fingerprint import tensor_digest
from rnri.validation import first_line

ALPHA_BAR_FLOOR = 2.0**-40
"""Value that replaces a zero in ``alphas_cumprod`` at the last timestep of a zero-terminal-SNR schedule.

For ``alphas_cumprod = 0``, a DDIM step would divide by zero. With latents in float64, replacing 0 by 2^-40 changes a
sampled latent by a relative amount of about 1e-6.
"""

FIXED_STRIDE_SCHEDULERS = (
    CogVideoXDDIMScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    PNDMScheduler,
)
"""Schedulers whose steps reduce the timestep by a fixed amount instead of going to the next entry of ``timesteps``."""

CONSISTENCY_SCHEDULERS = (LCMScheduler, TCDScheduler)


def base_scheduler(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Return the scheduler from which a ``DeterministicScheduler`` was created, or any other scheduler unchanged."""
    return getattr(scheduler, "source", scheduler)


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Return whether ``scheduler`` is a flow-matching scheduler, which may be one that inversion does not support."""
    return type(scheduler).__name__.startswith("FlowMatch")


def alpha_bar_table(scheduler: SchedulerMixin) -> Tensor:
    """Return the scheduler's ``alphas_cumprod`` for all training timesteps, float64 ``[num_train_timesteps]``.

    All values are in (0, 1]. The values are the scheduler's float32 values, including any rescaling and shift,
    converted to float64. A zero at the last timestep (zero terminal SNR, Lin et al. 2024,
    https://arxiv.org/abs/2305.08891) is replaced by ``ALPHA_BAR_FLOOR``.

    Raises:
        ValueError: the scheduler has no table of betas (for example, a flow-matching scheduler).
    """
    scheduler = base_scheduler(scheduler)
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, Tensor) or table.ndim != 1 or "beta_schedule" not in scheduler.config:
        raise ValueError(
            f"{type(scheduler).__name__} has no betas, so it is not a DDIM-like diffusion schedule; "
            "use a Stable Diffusion checkpoint (DDIM, PNDM, Euler, DPM, LMS or LCM scheduler)."
        )
    return table.detach().cpu().double().clamp(min=ALPHA_BAR_FLOOR)


def max_steps(scheduler: SchedulerMixin) -> int:
    """Return the largest number of sampling steps that the diffusion scheduler supports."""
    if isinstance(scheduler, CONSISTENCY_SCHEDULERS):
        return scheduler.config.original_inference_steps
    return len(alpha_bar_table(scheduler))


def scheduler_settings(scheduler: SchedulerMixin) -> dict[str, object]:
    """Return all settings that determine a scheduler's steps: its class, its config, and hashes of its tables."""
    source = base_scheduler(scheduler)
    config = {key: value for key, value in source.config.items() if not key.startswith("_")}
    tables = {name: getattr(source, name, None) for name in ("alphas_cumprod", "final_alpha_cumprod")}
    digests = {name: tensor_digest(table) for name, table in tables.items() if isinstance(table, Tensor)}
    return {"class": type(scheduler).__name__, "of": type(source).__name__, "config": config, "tables": digests}


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Raise ValueError if a diffusion scheduler is not supported, independent of the number of sampling steps.

    Raises:
        ValueError: the scheduler has no betas; the network predicts a velocity of flow matching; the scheduler clips
            the latent at every step; or the network predicts noise and the latent at the first timestep is pure noise.
    """
    scheduler = base_scheduler(scheduler)
    if scheduler.config.get("prediction_type") == "flow_prediction":
        raise ValueError(
            f"prediction_type='flow_prediction' in the config of {type(scheduler).__name__}: networks of this pipeline "
            "class predict noise; set prediction_type to epsilon, v_prediction or sample."
        )
    table = alpha_bar_table(scheduler)
    check_clipping(scheduler)
    try:
        _, timesteps = _set_timesteps(scheduler, min(4, max_steps(scheduler)))
    except ValueError:
        return  # diffusion_steps raises the error for the number of steps that the user requests
    first_timestep = timesteps.max().long().clamp(0, len(table) - 1)
    check_signal(scheduler.config, table, first_timestep.view(1))


def diffusion_steps(scheduler: SchedulerMixin, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(timesteps, alpha_bar, alpha_bar_next)``, each ``[N]`` for N sampling steps.

    The three tensors are the arguments of :meth:`Schedule.diffusion`.

    Raises:
        ValueError: the scheduler or the number of steps is not supported, see ``Schedule.from_scheduler``.
    """
    scheduler = base_scheduler(scheduler)
    table = alpha_bar_table(scheduler)
    check_steps(steps, max_steps(scheduler))
    check_clipping(scheduler)
    configured, timesteps = _set_timesteps(scheduler, int(steps))
    timesteps = _integer_timesteps(scheduler, timesteps, table, steps)
    check_signal(scheduler.config, table, timesteps[:1])
    if isinstance(scheduler, FIXED_STRIDE_SCHEDULERS):
        next_timesteps = timesteps - len(table) // int(steps)
        final_alpha_bar = float(getattr(configured, "final_alpha_cumprod", 1.0))  # DDPM's last step ends at alpha 1
    elif isinstance(scheduler, TCDScheduler):
        next_timesteps = _next_entries(timesteps)
        final_alpha_bar = float(table[0])
    elif isinstance(scheduler, LCMScheduler):
        next_timesteps = _next_entries(timesteps)
        final_alpha_bar = 1.0  # the last step returns the clean latent for every config
    else:
        check_sigmas(configured, table, timesteps)
        next_timesteps = _next_entries(timesteps)
        final_alpha_bar = 1 / (1 + float(configured.sigmas[-1]) ** 2)
    alpha_bar_next = table[next_timesteps.clamp(min=0)].masked_fill(next_timesteps < 0, final_alpha_bar)
    return timesteps, table[timesteps], alpha_bar_next


def flow_steps(
    scheduler: FlowMatchEulerDiscreteScheduler,
    steps: int,
    *,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``(timesteps [N], sigmas [N+1])``, float64, for N sampling steps.

    The two tensors are the arguments of :meth:`Schedule.flow`.

    A copy of the scheduler computes the timesteps and the sigmas in float32; both are then converted to float64.

    Raises:
        ValueError: the scheduler or the number of steps is not supported, see ``Schedule.from_scheduler``.
    """
    check_flow_scheduler(scheduler)
    check_steps(steps, scheduler.config.num_train_timesteps)
    check_mu(scheduler, mu)
    check_terminal_shift(scheduler, steps)
    configured = copy.deepcopy(scheduler)
    try:
        configured.set_timesteps(int(steps), sigmas=None if sigmas is None else list(sigmas), mu=mu)
    except Exception as error:  # the scheduler's errors have various types
        raise ValueError(f"steps={steps}: rejected by {type(scheduler).__name__}: {first_line(error)}") from error
    sigma_levels = configured.sigmas.detach().cpu().double()
    check_flow_sigmas(scheduler, steps, sigma_levels)
    return configured.timesteps.detach().cpu().double(), sigma_levels


def _set_timesteps(scheduler: SchedulerMixin, steps: int) -> tuple[SchedulerMixin, Tensor]:
    """Return a copy of ``scheduler`` after ``set_timesteps(steps)``, and the timesteps of the copy, float64 ``[N]``."""
    supported = isinstance(scheduler, (*FIXED_STRIDE_SCHEDULERS, *CONSISTENCY_SCHEDULERS))
    if not supported and not isinstance(getattr(scheduler, "sigmas", None), Tensor):
        raise ValueError(not_ddim_message(scheduler, "it has no list of sigmas"))
    if isinstance(scheduler, PNDMScheduler) and not scheduler.config.skip_prk_steps:
        reason = "its first steps are Runge-Kutta steps"
        raise ValueError(not_ddim_message(scheduler, reason, "set skip_prk_steps to true, or "))
    configured = copy.deepcopy(scheduler)
    try:
        configured.set_timesteps(steps)
    except Exception as error:  # the errors of schedulers have various types
        raise ValueError(f"steps={steps}: rejected by {type(scheduler).__name__}: {first_line(error)}") from error
    timesteps = configured.timesteps.detach().cpu().double()
    if isinstance(scheduler, PNDMScheduler):
        timesteps = timesteps.unique_consecutive()  # PNDM runs the network twice at its second timestep
    return configured, timesteps


def _integer_timesteps(scheduler: SchedulerMixin, timesteps: Tensor, table: Tensor, steps: int) -> Tensor:
    """Return ``timesteps`` as int64 ``[N]``.

    Raises:
        ValueError: ``timesteps`` are not descending integers, or are not indices of ``table``, which contains
            ``alphas_cumprod`` for all training timesteps.
    """
    if isinstance(scheduler, FIXED_STRIDE_SCHEDULERS):
        # For some numbers of steps, such as 61, diffusers' trailing spacing ends with a wrong timestep -1 due to
        # rounding.
        timesteps = timesteps[timesteps >= 0]
    check_timesteps(scheduler, timesteps, table, steps)
    return timesteps.long()


def _next_entries(timesteps: Tensor) -> Tensor:
    return torch.cat([timesteps[1:], timesteps.new_tensor([-1])])
