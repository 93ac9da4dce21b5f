"""Deterministic first-order sampling (DDIM, flow matching), noisy to clean, with gradients to the seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule

LatentCallback = Callable[[int, Tensor], None]
"""Called with a step's index and the latent ``[B,C,h,w]`` after it."""


def no_callback(_step: int, _state: object) -> None:
    """The observer that does nothing."""


def to_state_dtype(z: Tensor) -> Tensor:
    """``z`` in float64, the dtype in which latents walk the schedule (float32 on MPS, which lacks it)."""
    return z.float() if z.device.type == "mps" else z.double()


def ddim_step(z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int) -> Tensor:
    """Step ``i`` of the sampler: ``z_s = (z_t - B y(z_t, t)) / A``, DDIM's (RNRI, arXiv 2312.12540, Eq. 2) or Euler's.

    ``y`` is what the schedule says its predictor returns, noise or velocity.
    """
    a, b = schedule.coefficients(i)
    return (z - b * predictor(z, schedule.timestep(i))) / a


def sample(
    seed: Tensor,
    predictor: NoisePredictor,
    schedule: Schedule,
    *,
    checkpoint: bool = False,
    on_step: LatentCallback = no_callback,
) -> Tensor:
    """The clean latent ``z0 [B,C,h,w]`` that ``seed [B,C,h,w]`` leads to, in the dtype of ``seed``.

    The state is float64 whatever the dtype of seed and network. Gradients reach ``seed`` where it requires
    them; ``checkpoint=True`` recomputes each step in the backward pass, so that memory grows by one latent a
    step instead of by a network's activations.
    """
    return trajectory(seed, predictor, schedule, keep_last=1, checkpoint=checkpoint, on_step=on_step)[0]


def trajectory(
    seed: Tensor,
    predictor: NoisePredictor,
    schedule: Schedule,
    *,
    keep_last: int,
    checkpoint: bool = False,
    gradient_steps: int | None = None,
    on_step: LatentCallback = no_callback,
) -> list[Tensor]:
    """The latents after the last ``keep_last`` steps, cleanest last; otherwise as ``sample``.

    Args:
        gradient_steps: how many of the last steps are differentiated through the network. Before them its
            predictions count as constants, so that the gradient passes by the sampler's linear part alone
            (``dz_s/dz_t = 1/A``) and costs neither time nor memory; the latents are the same. None: all steps.

    Raises:
        ValueError: ``keep_last`` below 1 or above the number of steps, or ``gradient_steps`` below 1.
    """
    if not 1 <= keep_last <= len(schedule):
        raise ValueError(f"keep_last={keep_last}: the schedule has {len(schedule)} steps; choose 1 to that.")
    if gradient_steps is not None and gradient_steps < 1:
        raise ValueError(
            f"gradient_steps={gradient_steps}: differentiate at least the last step, or give None for all."
        )
    first = 0 if gradient_steps is None else len(schedule) - gradient_steps
    z, kept = to_state_dtype(seed), []
    for i in range(len(schedule)):
        if not z.requires_grad:
            z = ddim_step(z, predictor, schedule, i)
        elif i < first:
            z = _linear_step(z, predictor, schedule, i)
        elif checkpoint:
            z = _Recompute.apply(z, predictor, schedule, i)
        else:
            z = ddim_step(z, predictor, schedule, i)
        on_step(i, z.detach())
        if i >= len(schedule) - keep_last:
            kept.append(z.to(seed.dtype))
    return kept


def _linear_step(z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int) -> Tensor:
    """``ddim_step`` with the noise prediction held constant."""
    a, b = schedule.coefficients(i)
    with torch.no_grad():
        noise = b * predictor(z, schedule.timestep(i))
    return (z - noise) / a


class _Recompute(torch.autograd.Function):
    """``ddim_step`` that keeps ``z`` alone and is computed again in the backward pass, with a gradient to ``z`` only.

    ``torch.utils.checkpoint`` intercepts every tensor that an operation saves, which took a fifth of a small
    network's time; its reentrant variant does not, but refuses ``torch.autograd.grad``.
    """

    @staticmethod
    def forward(ctx, z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int) -> Tensor:
        ctx.save_for_backward(z)
        ctx.step = (predictor, schedule, i)
        return ddim_step(z, predictor, schedule, i)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        with torch.enable_grad():
            z = ctx.saved_tensors[0].detach().requires_grad_()
            clean = ddim_step(z, *ctx.step)
        return torch.autograd.grad(clean, z, gradient)[0], None, None, None
