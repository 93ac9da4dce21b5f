"""Deterministic DDIM sampling, noisy to clean, with gradients to the seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as checkpointed

from rnri.predictor import NoisePredictor
from rnri.schedule import Schedule

LatentObserver = Callable[[int, Tensor], None]
"""Called with a step's index and the latent ``[B,C,h,w]`` after it."""


def ignore(_step: int, _state: object) -> None:
    """The observer that does nothing."""


def in_state_dtype(z: Tensor) -> Tensor:
    """``z`` in float64, the dtype in which latents walk the schedule (float32 on MPS, which lacks it)."""
    return z.float() if z.device.type == "mps" else z.double()


def ddim_step(z: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int) -> Tensor:
    """Step ``i`` of the sampler: ``z_s = (z_t - B eps(z_t, t)) / A`` (RNRI, arXiv 2312.12540, Eq. 2)."""
    a, b = schedule.coefficients(i)
    return (z - b * predictor(z, int(schedule.timesteps[i]))) / a


def sample(
    seed: Tensor,
    predictor: NoisePredictor,
    schedule: Schedule,
    *,
    checkpoint: bool = False,
    on_step: LatentObserver = ignore,
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
    on_step: LatentObserver = ignore,
) -> list[Tensor]:
    """The latents after the last ``keep_last`` steps, cleanest last; otherwise as ``sample``.

    Raises:
        ValueError: ``keep_last`` below 1 or above the number of steps.
    """
    if not 1 <= keep_last <= len(schedule):
        raise ValueError(f"keep_last={keep_last}: the schedule has {len(schedule)} steps; choose 1 to that.")
    z, kept = in_state_dtype(seed), []
    for i in range(len(schedule)):
        if checkpoint and torch.is_grad_enabled():
            z = checkpointed(ddim_step, z, predictor, schedule, i, use_reentrant=False)
        else:
            z = ddim_step(z, predictor, schedule, i)
        on_step(i, z.detach())
        if i >= len(schedule) - keep_last:
            kept.append(z.to(seed.dtype))
    return kept
