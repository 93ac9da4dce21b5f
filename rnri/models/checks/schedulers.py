"""Checks that deterministic first-order sampling can reproduce the steps of a scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

MIN_ALPHA_BAR = 1e-6
"""Smallest value of ``alphas_cumprod`` at which a noise (epsilon) prediction determines the clean latent.

At ``alphas_cumprod = 1e-6``, the division by ``sqrt(alphas_cumprod)`` multiplies the error of the prediction by 1,000.
"""

SIGMA_TOLERANCE = 1e-4
"""Relative tolerance for comparing noise levels, because schedulers interpolate noise levels in float32."""

CUSTOM_SIGMA_OPTIONS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "use_dynamic_shifting",
)
"""Options of a scheduler's config that replace the noise levels of the training schedule by other noise levels."""


def check_steps(steps: int, max_steps: int) -> None:
    """Raise ValueError unless ``steps`` is an integer from 1 to ``max_steps``."""
    if isinstance(steps, bool) or not isinstance(steps, Integral) or not 1 <= steps <= max_steps:
        raise ValueError(f"steps={steps!r}: must be an integer from 1 to {max_steps}, the scheduler's maximum.")


def check_flow_scheduler(scheduler: SchedulerMixin) -> None:
    """Raise ValueError if the steps of a flow-matching scheduler are not deterministic Euler steps."""
    name = type(scheduler).__name__
    if type(scheduler) is not FlowMatchEulerDiscreteScheduler:
        flow_shift = scheduler.config.get("flow_shift")
        shift = "" if flow_shift is None else f", shift={flow_shift}"  # from_config alone would drop the shift
        raise ValueError(
            f"{name} does not use Euler steps of flow matching, and inversion supports only these steps: set "
            "model.scheduler=FlowMatchEulerDiscreteScheduler, or in Python pipe.scheduler = "
            f"FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config{shift})."
        )
    if scheduler.config.get("stochastic_sampling"):
        raise ValueError(
            f"stochastic_sampling is on in the config of {name}: noise added at every step cannot be inverted; set "
            "stochastic_sampling to false in scheduler_config.json."
        )


def check_mu(scheduler: FlowMatchEulerDiscreteScheduler, mu: float | None) -> None:
    """Raise ValueError if the shift parameter ``mu`` of a flow-matching scheduler is missing or has no effect.

    ``mu`` is required if the scheduler's shift depends on the image size, and must be None otherwise.
    """
    dynamic = bool(scheduler.config.use_dynamic_shifting)
    if dynamic and mu is None:
        raise ValueError(
            "the scheduler's shift depends on the image size (use_dynamic_shifting): pass mu, which the pipeline's "
            "calculate_shift computes from the number of image tokens."
        )
    if not dynamic and mu is not None:
        raise ValueError("mu has no effect on a scheduler without use_dynamic_shifting: leave mu out.")


def check_flow_sigmas(scheduler: SchedulerMixin, steps: int, sigmas: Tensor) -> None:
    """Raise ValueError unless the noise levels ``sigmas [N+1]`` of N steps descend strictly and start at 1 or less."""
    if not ((sigmas[1:] < sigmas[:-1]).all() and sigmas[0] <= 1):
        first_sigmas = ", ".join(f"{sigma:.4g}" for sigma in sigmas[:4].tolist())
        raise ValueError(
            f"steps={steps}: the sigmas of {type(scheduler).__name__} must descend strictly and start at 1 or less, "
            f"got {first_sigmas}, ...; use another number of steps, or restore the scheduler's published config."
        )


def check_terminal_shift(scheduler: SchedulerMixin, steps: int) -> None:
    """Raise ValueError if ``steps`` is 1 and the scheduler shifts its last noise level to ``shift_terminal``.

    With one step, the only noise level is 1, so that the scheduler would divide 0 by 0.
    """
    terminal = scheduler.config.get("shift_terminal")
    if terminal and steps == 1:
        raise ValueError(
            f"steps=1: {type(scheduler).__name__} with shift_terminal={terminal:g} needs at least 2 steps; use more "
            "steps, or set shift_terminal to null in scheduler_config.json."
        )


def check_clipping(scheduler: SchedulerMixin) -> None:
    """Raise ValueError if the scheduler clips the predicted clean latent at every step.

    Clipping cannot be inverted.
    """
    if scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"):
        raise ValueError(
            f"clip_sample or thresholding is on in the config of {type(scheduler).__name__}: clipping the predicted "
            "clean latent at every step cannot be inverted; set both to false in scheduler_config.json."
        )


def check_signal(config: Mapping[str, object], table: Tensor, timesteps: Tensor) -> None:
    """Raise ValueError if the network predicts noise and the latent is pure noise at one of ``timesteps [N]``.

    ``config`` is the scheduler's config, and ``table`` contains ``alphas_cumprod`` for all training timesteps.
    """
    without_signal = table[timesteps] < MIN_ALPHA_BAR
    if config.get("prediction_type", "epsilon") != "epsilon" or not without_signal.any():
        return
    if config.get("rescale_betas_zero_snr", False):
        cause = "rescale_betas_zero_snr=True"
        remedy = "set rescale_betas_zero_snr to false"
    else:
        cause = f"beta_schedule={config.get('beta_schedule')!r}"
        remedy = "use timestep_spacing='leading'"
    raise ValueError(
        f"prediction_type='epsilon' with {cause} in the scheduler's config: at timestep "
        f"{int(timesteps[without_signal][0])} the latent is pure noise, where a noise prediction does not determine "
        "the image; set prediction_type to what the network was trained to predict (v_prediction, sample), or "
        f"{remedy}."
    )


def check_timesteps(scheduler: SchedulerMixin, timesteps: Tensor, table: Tensor, steps: int) -> None:
    """Raise ValueError unless ``timesteps`` (float64 ``[N]``) are descending integers and indices of ``table``.

    ``table`` contains ``alphas_cumprod`` for all training timesteps, and ``steps`` is the number of sampling steps.
    """
    if (timesteps != timesteps.round()).any():
        fraction = float(timesteps[timesteps != timesteps.round()][0])
        remedy = _custom_sigma_remedy(scheduler) or "set timestep_spacing to 'leading' or 'trailing', or "
        reason = f"with {steps} steps the scheduler runs the network at fractional timesteps ({fraction:.6g})"
        raise ValueError(not_ddim_message(scheduler, reason, remedy))
    if not (timesteps[1:] < timesteps[:-1]).all():
        first_timesteps = ", ".join(f"{int(t)}" for t in timesteps[:4])
        reason = f"with {steps} steps its timesteps {first_timesteps}, ... do not descend strictly"
        raise ValueError(not_ddim_message(scheduler, reason, _custom_sigma_remedy(scheduler)))
    if timesteps[0] >= len(table) or timesteps[-1] < 0:
        offset = scheduler.config.get("steps_offset", 0)
        raise ValueError(
            f"steps={steps} with steps_offset={offset}: the scheduler's timesteps go from {int(timesteps[0])} to "
            f"{int(timesteps[-1])}, but must be between 0 and the last timestep {len(table) - 1}; use fewer steps."
        )


def check_sigmas(scheduler: SchedulerMixin, table: Tensor, timesteps: Tensor) -> None:
    """Raise ValueError unless the scheduler's noise levels at ``timesteps`` equal the noise levels of ``table``.

    ``table`` contains ``alphas_cumprod`` for all training timesteps.
    """
    expected = (1 / table[timesteps] - 1).sqrt()
    sigmas = scheduler.sigmas.detach().cpu().double()
    comparable = len(sigmas) == len(expected) + 1 and math.isfinite(sigmas[-1])
    if not comparable or not torch.allclose(sigmas[:-1], expected, rtol=SIGMA_TOLERANCE, atol=0):
        reason = "its noise levels differ from the noise levels of its training schedule"
        raise ValueError(not_ddim_message(scheduler, reason, _custom_sigma_remedy(scheduler)))


def not_ddim_message(scheduler: SchedulerMixin, reason: str, remedy: str = "") -> str:
    """Return the error message for a scheduler with steps that deterministic DDIM cannot reproduce."""
    return (
        f"{type(scheduler).__name__} is not supported, because inversion needs the steps of deterministic DDIM: "
        f"{reason}; {remedy}use DDIMScheduler.from_config(pipe.scheduler.config)."
    )


def _custom_sigma_remedy(scheduler: SchedulerMixin) -> str:
    config = scheduler.config
    options = [name for name in CUSTOM_SIGMA_OPTIONS if config.get(name)]
    if options:
        return f"set {', '.join(options)} to false, or "
    if config.get("interpolation_type", "linear") != "linear":
        return "set interpolation_type to 'linear', or "
    if config.get("timestep_type", "discrete") != "discrete":
        return "set timestep_type to 'discrete', or "
    return ""
