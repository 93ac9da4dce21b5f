"""Deterministic first-order sampling (DDIM, flow matching), differentiable with respect to the initial noise."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule

LatentCallback = Callable[[int, Tensor], None]
"""Callback ``(step_index, latent)``, called after each step with the latent ``[B,C,h,w]`` after that step."""


def no_callback(_step: int, _latent: object) -> None:
    """Do nothing; this function is the default value of the arguments ``on_step``."""


def to_state_dtype(z: Tensor) -> Tensor:
    """Convert ``z`` to float64 (float32 on MPS), the dtype of latents during sampling and inversion."""
    return z.float() if z.device.type == "mps" else z.double()


def steps_for_strength(strength: float, steps: int) -> int:
    """Return the number of sampling steps of SDEdit: ``strength * steps``, rounded to the nearest integer, at least 1.

    ``strength`` in (0, 1] is the fraction of the schedule's ``steps`` that SDEdit runs. The image-to-image pipelines of
    diffusers round ``strength * steps`` down.
    """
    return max(1, round(strength * steps))


def ddim_step(z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int) -> Tensor:
    """Return the latent after step ``i`` of DDIM (RNRI, arXiv 2312.12540, Eq. 2) or of flow matching's Euler sampler.

    The step computes ``z_s = (z_t - B y(z_t, t)) / A``. Here ``z_t`` is the latent ``z`` before the step, ``t`` is the
    timestep of the step, and ``z_s`` is the latent after the step. ``y`` is the predicted noise or velocity, depending
    on ``schedule.predicts``, and ``A`` and ``B`` are the coefficients ``schedule.coefficients(i)``.
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
    """Return the clean latent that is sampled from the initial noise ``seed [B,C,h,w]``, in the dtype of ``seed``.

    The latents between the steps are float64 (float32 on MPS), independent of the dtypes of ``seed`` and of the
    network. The result is differentiable if ``seed`` requires a gradient. ``checkpoint=True`` recomputes each step in
    the backward pass, so that sampling stores one latent per step instead of all network activations.
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
    """Return a list of the latents after each of the last ``keep_last`` steps; the last entry is the clean latent.

    All arguments except ``keep_last`` and ``gradient_steps`` have the same meaning as in ``sample``.

    Args:
        gradient_steps: number of last steps whose gradient passes through the network; None means all steps. In all
            earlier steps, the gradient treats the network's prediction as a constant, which needs almost no time or
            memory. The derivative of such an earlier step with respect to its input latent is ``1 / A``, where ``A`` is
            the first coefficient of ``Schedule.coefficients``. The value of ``gradient_steps`` does not change the
            latents.

    Raises:
        ValueError: ``keep_last`` is not between 1 and ``len(schedule)``, or ``gradient_steps`` is below 1.
    """
    if not 1 <= keep_last <= len(schedule):
        raise ValueError(f"keep_last={keep_last}: must be from 1 to {len(schedule)}, the number of steps.")
    if gradient_steps is not None and gradient_steps < 1:
        raise ValueError(f"gradient_steps={gradient_steps}: must be at least 1; None differentiates all steps.")
    first_with_grad = 0 if gradient_steps is None else len(schedule) - gradient_steps
    z = to_state_dtype(seed)
    latents = []
    eval_mode = getattr(predictor, "eval_mode", nullcontext)  # a plain function as predictor has no eval_mode
    with eval_mode():
        for i in range(len(schedule)):
            step = ddim_step
            if z.requires_grad and i < first_with_grad:
                step = _linear_step
            elif z.requires_grad and checkpoint:
                step = _Recompute.apply
            z = step(z, predictor, schedule, i)
            on_step(i, z.detach())
            if i >= len(schedule) - keep_last:
                latents.append(z.to(seed.dtype))
    return latents


def _linear_step(z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int) -> Tensor:
    """Return the result of ``ddim_step``, whose gradient treats the network's prediction as a constant."""
    a, b = schedule.coefficients(i)
    with torch.no_grad():
        noise = b * predictor(z, schedule.timestep(i))
    return (z - noise) / a


class _Recompute(torch.autograd.Function):
    """Gradient checkpointing of ``ddim_step``: saves only ``z`` and recomputes the step in the backward pass.

    ``torch.utils.checkpoint`` is not used, because its default variant intercepts every saved tensor, which takes a
    fifth of the running time of a small network. The reentrant variant of ``torch.utils.checkpoint`` does not support
    ``torch.autograd.grad``.
    """

    @staticmethod
    def forward(ctx, z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int) -> Tensor:
        ctx.save_for_backward(z)
        ctx.step_arguments = (predictor, schedule, i)
        return ddim_step(z, predictor, schedule, i)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        with torch.enable_grad():
            z = ctx.saved_tensors[0].detach().requires_grad_()
            z_next = ddim_step(z, *ctx.step_arguments)
        return torch.autograd.grad(z_next, z, gradient)[0], None, None, None
