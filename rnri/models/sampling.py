"""Deterministic first-order sampling (DDIM, flow matching) from noisy to clean, with gradients to the seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rnri.models.predictor import NoisePredictor
from rnri.models.schedule import Schedule

LatentCallback = Callable[[int, Tensor], None]
"""A function that is called with the index of a step and the latent ``[B,C,h,w]`` after it."""


def no_callback(_step: int, _latent: object) -> None:
    """Do nothing."""


def to_state_dtype(z: Tensor) -> Tensor:
    """Convert ``z`` to float64, the dtype of latents during sampling and inversion (float32 on MPS)."""
    return z.float() if z.device.type == "mps" else z.double()


def ddim_step(z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int) -> Tensor:
    """Return ``z_s = (z_t - B y(z_t, t)) / A``: step ``i`` of DDIM (RNRI, arXiv 2312.12540, Eq. 2) or of Euler.

    ``y`` is the noise or the velocity, as ``schedule.predicts`` says.
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
    """Return the clean latent ``z0 [B,C,h,w]`` of ``seed [B,C,h,w]``, in the dtype of ``seed``.

    The state is float64 for any dtype of seed and network. The result is differentiable if ``seed`` requires a
    gradient. ``checkpoint=True`` recomputes each step in the backward pass: memory then grows by one latent per step
    instead of one set of network activations.
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
    """Return the latents after the last ``keep_last`` steps, the cleanest last; other arguments as in ``sample``.

    Args:
        gradient_steps: how many of the last steps are differentiated through the network; None means all. In the
            steps before them the prediction counts as a constant, so the gradient only passes through the linear part
            of the sampler (``dz_s/dz_t = 1/A``). This takes neither time nor memory and leaves the latents unchanged.

    Raises:
        ValueError: ``keep_last`` is not in 1 to ``len(schedule)``, or ``gradient_steps`` is below 1.
    """
    if not 1 <= keep_last <= len(schedule):
        raise ValueError(f"keep_last={keep_last}: must be from 1 to {len(schedule)}, the number of steps.")
    if gradient_steps is not None and gradient_steps < 1:
        raise ValueError(f"gradient_steps={gradient_steps}: must be at least 1; None differentiates all steps.")
    first_with_grad = 0 if gradient_steps is None else len(schedule) - gradient_steps
    z = to_state_dtype(seed)
    latents = []
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
    """Return ``ddim_step`` with the prediction as a constant of differentiation."""
    a, b = schedule.coefficients(i)
    with torch.no_grad():
        noise = b * predictor(z, schedule.timestep(i))
    return (z - noise) / a


class _Recompute(torch.autograd.Function):
    """Gradient checkpointing of ``ddim_step``: saves only ``z`` and recomputes the step in the backward pass.

    ``torch.utils.checkpoint`` does not replace it. Its default variant intercepts every saved tensor, which takes a
    fifth of a small network's time; its reentrant variant does not support ``torch.autograd.grad``.
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
