"""What a diffusers scheduler says of itself: its table of noise levels, its timesteps, where each step ends.

Nothing is computed again from a scheduler's settings. A copy of it is asked for its timesteps, and a scheduler that
goes where deterministic DDIM does not follow is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from numbers import Integral

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from rnri.models.fingerprint import tensor_digest

# A zero-terminal-SNR table ends at alpha_bar = 0, where eps no longer determines z_s. This floor keeps the
# step finite; with the state in float64 it changes a sample by about 1e-6 of its scale.
ALPHA_BAR_FLOOR = 2.0**-40

# Below this a predicted noise says nothing of the image: dividing by sqrt(alpha_bar) multiplies its error by 1,000.
MIN_ALPHA_BAR = 1e-6

# Relative; schedulers over sigmas interpolate them in single precision.
SIGMA_TOLERANCE = 1e-4

# A step of theirs ends a fixed number of timesteps below where it began, not at the next entry of the list.
FIXED_STRIDE_SCHEDULERS = (
    CogVideoXDDIMScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    PNDMScheduler,
)
CONSISTENCY_SCHEDULERS = (LCMScheduler, TCDScheduler)

CUSTOM_SIGMA_OPTIONS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "use_dynamic_shifting",
)


def base_scheduler(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The scheduler whose steps it takes: its ``source`` for ours (``DeterministicScheduler``), else itself."""
    return getattr(scheduler, "source", scheduler)


def alpha_bar_table(scheduler: SchedulerMixin) -> Tensor:
    """Cumulative alphas of every training timestep, float64 ``[num_train_timesteps]`` in (0, 1].

    The float32 values that the scheduler itself holds are kept to the bit, only widened: rescaling and shifts of its
    are in them. Zero terminal SNR (Lin et al. 2024, https://arxiv.org/abs/2305.08891) is floored at
    ``ALPHA_BAR_FLOOR``.

    Raises:
        ValueError: the scheduler has no table of betas (flow matching, for example).
    """
    scheduler = base_scheduler(scheduler)
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, Tensor) or table.ndim != 1 or "beta_schedule" not in scheduler.config:
        raise ValueError(
            f"{type(scheduler).__name__} has no betas, so it is no DDIM-like diffusion schedule; "
            "use a Stable Diffusion checkpoint (DDIM, PNDM, Euler, DPM, LMS or LCM scheduler)."
        )
    return table.detach().cpu().double().clamp(min=ALPHA_BAR_FLOOR)


def scheduler_settings(scheduler: SchedulerMixin) -> dict[str, object]:
    """All that decides a scheduler's steps: its class, its config, and the tables that it holds."""
    source = base_scheduler(scheduler)
    config = {key: value for key, value in source.config.items() if not key.startswith("_")}
    tables = {name: getattr(source, name, None) for name in ("alphas_cumprod", "final_alpha_cumprod")}
    digests = {name: tensor_digest(table) for name, table in tables.items() if isinstance(table, Tensor)}
    return {"class": type(scheduler).__name__, "of": type(source).__name__, "config": config, "tables": digests}


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Finds what is wrong with a scheduler whatever the number of steps.

    Raises:
        ValueError: no betas, a latent that is clipped at every step, or a network that predicts noise where the
            scheduler's timesteps begin without any signal.
    """
    scheduler = base_scheduler(scheduler)
    table, most = alpha_bar_table(scheduler), max_steps(scheduler)
    _check_clipping(scheduler)
    try:
        first = _own_timesteps(scheduler, min(4, most))[1].max().long()
    except ValueError:
        return  # whether it can be followed is asked again, and answered, for each number of steps
    check_signal(scheduler.config, table, first.clamp(0, len(table) - 1).view(1))


def steps_of(scheduler: SchedulerMixin, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(timesteps, alpha_bar, alpha_bar_next)`` of :class:`rnri.models.schedule.Schedule`, after all checks.

    Raises:
        ValueError: as ``Schedule.from_scheduler``.
    """
    scheduler = base_scheduler(scheduler)
    table, most = alpha_bar_table(scheduler), max_steps(scheduler)
    if isinstance(steps, bool) or not isinstance(steps, Integral):
        raise ValueError(f"steps={steps!r} must be a whole number, 1 to {most}.")
    if not 1 <= steps <= most:
        raise ValueError(f"steps={steps}: the checkpoint's scheduler has 1 to {most} steps; choose among them.")
    _check_clipping(scheduler)
    own, visited = _own_timesteps(scheduler, int(steps))
    timesteps = _integer_timesteps(scheduler, visited, table, steps)  # [N]
    check_signal(scheduler.config, table, timesteps[:1])
    if isinstance(scheduler, FIXED_STRIDE_SCHEDULERS):
        following = timesteps - len(table) // int(steps)
        final = _final_alpha_bar(own)
    elif isinstance(scheduler, CONSISTENCY_SCHEDULERS):
        # TCD's last step ends at its first table entry, LCM's returns the clean latent, whatever the settings say.
        following, final = _next_entries(timesteps), float(table[0]) if isinstance(own, TCDScheduler) else 1.0
    else:
        _check_sigmas(own, table, timesteps)
        following, final = _next_entries(timesteps), 1 / (1 + float(own.sigmas[-1]) ** 2)
    after = table[following.clamp(min=0)].masked_fill(following < 0, final)
    return timesteps, table[timesteps], after


def max_steps(scheduler: SchedulerMixin) -> int:
    """The largest number of steps that the scheduler has."""
    if isinstance(scheduler, CONSISTENCY_SCHEDULERS):
        return scheduler.config.original_inference_steps
    return len(alpha_bar_table(scheduler))


def check_signal(config: Mapping[str, object], table: Tensor, timesteps: Tensor) -> None:
    """Raises ValueError where a network that predicts noise runs on noise alone (``timesteps [N]``)."""
    faint = table[timesteps] < MIN_ALPHA_BAR
    if config.get("prediction_type", "epsilon") != "epsilon" or not faint.any():
        return
    rescaled = bool(config.get("rescale_betas_zero_snr", False))
    cause = "rescale_betas_zero_snr=True" if rescaled else f"beta_schedule={config.get('beta_schedule')!r}"
    remedy = "set rescale_betas_zero_snr to false" if rescaled else "use timestep_spacing='leading'"
    raise ValueError(
        f"prediction_type='epsilon' with {cause} in the scheduler's config: at timestep {int(timesteps[faint][0])} "
        "the latent is noise alone, and a network that predicts the noise says nothing of the image there; set "
        f"prediction_type to what the network was trained to predict (v_prediction, sample), or {remedy}."
    )


def _check_clipping(scheduler: SchedulerMixin) -> None:
    if scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"):
        raise ValueError(
            f"clip_sample or thresholding is on in the config of {type(scheduler).__name__}: it clips the latent at "
            "every step, which no inversion can undo; set both to false in scheduler_config.json."
        )


def _own_timesteps(scheduler: SchedulerMixin, steps: int) -> tuple[SchedulerMixin, Tensor]:
    """A copy of ``scheduler`` set to ``steps``, and the timesteps at which it runs the network, float64."""
    if not isinstance(scheduler, (*FIXED_STRIDE_SCHEDULERS, *CONSISTENCY_SCHEDULERS)) and not isinstance(
        getattr(scheduler, "sigmas", None), Tensor
    ):
        raise ValueError(_refusal(scheduler, "it steps in a way of its own"))
    if isinstance(scheduler, PNDMScheduler) and not scheduler.config.skip_prk_steps:
        raise ValueError(
            _refusal(scheduler, "its first steps are Runge-Kutta steps", "set skip_prk_steps to true, or ")
        )
    own = copy.deepcopy(scheduler)
    try:
        own.set_timesteps(steps)
    except Exception as error:  # each scheduler refuses a number of steps in its own way
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ValueError(f"steps={steps}: {type(scheduler).__name__} refuses: {reason}") from error
    timesteps = own.timesteps.detach().cpu().double()
    if isinstance(scheduler, PNDMScheduler):
        timesteps = timesteps.unique_consecutive()  # it runs the network twice at the second
    return own, timesteps


def _integer_timesteps(scheduler: SchedulerMixin, visited: Tensor, table: Tensor, steps: int) -> Tensor:
    """The timesteps as int64 ``[N]``: whole, descending and in the table."""
    # For some step counts (61, say) rounding adds a spurious timestep -1 to diffusers' trailing spacing.
    visited = visited[visited >= 0] if isinstance(scheduler, FIXED_STRIDE_SCHEDULERS) else visited
    if (visited != visited.round()).any():
        fraction = float(visited[visited != visited.round()][0])
        raise ValueError(
            _refusal(
                scheduler,
                f"with {steps} steps it runs the network at fractions of a timestep ({fraction:.6g})",
                _own_levels_remedy(scheduler) or "set timestep_spacing to 'leading' or 'trailing', or ",
            )
        )
    if not (visited[1:] < visited[:-1]).all():
        shown = ", ".join(f"{int(t)}" for t in visited[:4])
        raise ValueError(
            _refusal(
                scheduler,
                f"with {steps} steps it runs the network at timesteps {shown}, ..., which do not descend one by one",
                _own_levels_remedy(scheduler),
            )
        )
    if visited[0] >= len(table) or visited[-1] < 0:
        offset = scheduler.config.get("steps_offset", 0)
        raise ValueError(
            f"steps={steps} with steps_offset={offset} has timesteps from {int(visited[0])} to {int(visited[-1])}, "
            f"beyond the last one, {len(table) - 1}, or below 0; use fewer."
        )
    return visited.long()


def _check_sigmas(own: SchedulerMixin, table: Tensor, timesteps: Tensor) -> None:
    """The scheduler's own noise levels are its table's at its timesteps."""
    expected = (1 / table[timesteps] - 1).sqrt()
    sigmas = own.sigmas.detach().cpu().double()
    same = len(sigmas) == len(expected) + 1 and math.isfinite(sigmas[-1])
    if not same or not torch.allclose(sigmas[:-1], expected, rtol=SIGMA_TOLERANCE, atol=0):
        raise ValueError(_refusal(own, "it has noise levels of its own", _own_levels_remedy(own)))


def _own_levels_remedy(scheduler: SchedulerMixin) -> str:
    config = scheduler.config
    named = [name for name in CUSTOM_SIGMA_OPTIONS if config.get(name)]
    if named:
        return f"set {', '.join(named)} to false, or "
    if config.get("interpolation_type", "linear") != "linear":
        return "set interpolation_type to 'linear', or "
    if config.get("timestep_type", "discrete") != "discrete":
        return "set timestep_type to 'discrete', or "
    return ""


def _refusal(scheduler: SchedulerMixin, reason: str, remedy: str = "") -> str:
    return (
        f"{type(scheduler).__name__} cannot be followed by deterministic DDIM, which is what is inverted: {reason}; "
        f"{remedy}use diffusers' DDIMScheduler.from_config of its config."
    )


def _final_alpha_bar(own: SchedulerMixin) -> float:
    """Where the last step ends; DDPM, which has no setting for it, ends without noise."""
    return float(getattr(own, "final_alpha_cumprod", 1.0))


def _next_entries(timesteps: Tensor) -> Tensor:
    return torch.cat([timesteps[1:], timesteps.new_tensor([-1])])
