"""Noise levels of a deterministic DDIM sampler, taken from a diffusers scheduler."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, LCMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

# A zero-terminal-SNR table ends at alpha_bar = 0, where eps no longer determines z_s. This floor keeps the
# step finite; with the state in float64 it changes a sample by about 1e-6 of its scale.
SMALLEST_ALPHA_BAR = 2.0**-40


def alpha_bar_table(scheduler: SchedulerMixin) -> Tensor:
    """Cumulative alphas of every training timestep, float64 ``[num_train_timesteps]`` in (0, 1].

    The float32 values that diffusers samples with are kept to the bit, only widened. Zero terminal SNR
    (Lin et al. 2024, https://arxiv.org/abs/2305.08891) is floored at ``SMALLEST_ALPHA_BAR``.

    Raises:
        ValueError: the scheduler has no table of betas (flow matching, for example).
    """
    return _table(_as_ddim(scheduler))


@dataclass(frozen=True, eq=False)
class Schedule:
    """The steps of a DDIM sampler, noisy to clean.

    Step ``i`` runs the network at ``timesteps[i]`` (noise level ``alpha_bar[i]``) and goes to the noise level
    ``alpha_bar_next[i]``. The latter is what the checkpoint's sampler does, which is not always the next
    entry of ``alpha_bar``: DDIM and PNDM step to the timestep ``t - num_train_timesteps // steps``. The two
    differ for ``linspace`` and, where ``steps`` does not divide ``num_train_timesteps``, for ``trailing``
    spacing. Inversion stays exact, because it inverts this very step; the list of timesteps only says which
    label the network sees.

    Attributes:
        timesteps: int64 ``[N]``, descending.
        alpha_bar: float64 ``[N]`` in (0, 1], the cumulative alpha at ``timesteps``.
        alpha_bar_next: float64 ``[N]``, the cumulative alpha after the step.
    """

    timesteps: Tensor  # [N]
    alpha_bar: Tensor  # [N]
    alpha_bar_next: Tensor  # [N]

    def __post_init__(self) -> None:
        if not len(self.timesteps) == len(self.alpha_bar) == len(self.alpha_bar_next) > 0:
            raise ValueError("timesteps, alpha_bar and alpha_bar_next must have the same length, at least 1.")
        if not (self.timesteps[1:] < self.timesteps[:-1]).all():
            raise ValueError(f"timesteps must descend strictly, got {self.timesteps.tolist()}.")
        ordered = (self.alpha_bar > 0) & (self.alpha_bar <= self.alpha_bar_next) & (self.alpha_bar_next <= 1)
        if not ordered.all():
            raise ValueError("every step must satisfy 0 < alpha_bar <= alpha_bar_next <= 1.")

    def __len__(self) -> int:
        return len(self.timesteps)

    @classmethod
    def from_scheduler(cls, scheduler: SchedulerMixin, steps: int) -> Schedule:
        """The ``steps``-step deterministic DDIM sampler with a scheduler's own betas, spacing and offset.

        ``scheduler`` is only read. DDIM, DDPM and PNDM keep their integer division of timesteps and their
        final alpha. Schedulers over sigmas (Euler, DPM, LMS, ...) step to the next entry of the list and end
        at sigma 0, or at the smallest sigma where ``final_sigmas_type`` says so: few-step turbo checkpoints
        thereby become deterministic DDIM on trailing timesteps. LCM keeps its own timesteps. Sigma
        re-spacings such as ``use_karras_sigmas`` have no timesteps of their own and do not apply to DDIM.

        Raises:
            ValueError: ``steps`` below 1 or above what the scheduler has; a scheduler without betas; a DDIM
                scheduler that clips the predicted latent, which cannot be inverted.
        """
        ddim = _as_ddim(scheduler)
        timesteps = _timesteps(scheduler, ddim, steps)  # [N]
        table, final = _table(ddim), float(ddim.final_alpha_cumprod)
        if _follows_its_list(scheduler):
            following = torch.cat([timesteps[1:], timesteps.new_tensor([-1])])
        else:
            following = timesteps - ddim.config.num_train_timesteps // steps
        after = table[following.clamp(min=0)].masked_fill(following < 0, final)
        return cls(timesteps, table[timesteps], after)

    def coefficients(self, i: int) -> tuple[float, float]:
        """``(A, B)`` of step ``i``: ``z_s = (z_t - B eps) / A`` and, implicitly, ``z_t = A z_s + B eps``.

        ``A = sqrt(a_t / a_s)`` and ``B = sqrt(a_t) (psi_t - psi_s)`` with ``psi = sqrt(1 / a - 1)``
        (RNRI, arXiv 2312.12540, Eq. 2 and 3), computed in float64.
        """
        a_t, a_s = float(self.alpha_bar[i]), float(self.alpha_bar_next[i])
        # sqrt(a) psi(a) = sqrt(1 - a), which stays exact where a_t is tiny.
        return math.sqrt(a_t / a_s), math.sqrt(1 - a_t) - math.sqrt(a_t) * math.sqrt(1 / a_s - 1)

    def last(self, k: int) -> Schedule:
        """The ``k`` cleanest steps, for partial inversion; ``k`` from 1 to ``len(self)``."""
        if not 1 <= k <= len(self):
            raise ValueError(f"last({k}): the schedule has {len(self)} steps; choose among them.")
        return Schedule(self.timesteps[-k:], self.alpha_bar[-k:], self.alpha_bar_next[-k:])

    def first(self, k: int) -> Schedule:
        """The ``k`` noisiest steps; ``k`` from 1 to ``len(self)``."""
        if not 1 <= k <= len(self):
            raise ValueError(f"first({k}): the schedule has {len(self)} steps; choose among them.")
        return Schedule(self.timesteps[:k], self.alpha_bar[:k], self.alpha_bar_next[:k])


def _table(ddim: DDIMScheduler) -> Tensor:
    return ddim.alphas_cumprod.double().clamp(min=SMALLEST_ALPHA_BAR)


def _as_ddim(scheduler: SchedulerMixin) -> DDIMScheduler:
    """A new DDIM scheduler with ``scheduler``'s betas, spacing, offset and final alpha."""
    config = dict(scheduler.config)
    config.pop("_use_default_values", None)  # else from_config puts DDIM's defaults in place of the scheduler's own
    if "beta_schedule" not in config:
        raise ValueError(
            f"{type(scheduler).__name__} has no betas, so it is no DDIM-like diffusion schedule; "
            "use a Stable Diffusion checkpoint (DDIM, PNDM, Euler, DPM, LMS or LCM scheduler)."
        )
    if _over_sigmas(scheduler):
        config["set_alpha_to_one"] = config.get("final_sigmas_type", "zero") == "zero"
    try:
        return DDIMScheduler.from_config(config)
    except NotImplementedError as error:
        raise ValueError(
            f"beta_schedule={config['beta_schedule']!r} is unknown to DDIM; "
            "use linear, scaled_linear, squaredcos_cap_v2 or trained_betas."
        ) from error


def _timesteps(scheduler: SchedulerMixin, ddim: DDIMScheduler, steps: int) -> Tensor:
    """The descending timesteps, int64 ``[steps]``, after all checks."""
    lcm = isinstance(scheduler, LCMScheduler)
    most = scheduler.config.original_inference_steps if lcm else ddim.config.num_train_timesteps
    if not 1 <= steps <= most:
        raise ValueError(f"steps={steps}: the checkpoint's scheduler has 1 to {most} steps; choose among them.")
    if isinstance(scheduler, DDIMScheduler) and (scheduler.config.clip_sample or scheduler.config.thresholding):
        raise ValueError(
            "clip_sample or thresholding is on in the scheduler's config: it clips the latent at every step, "
            "which no inversion can undo; set both to false in scheduler_config.json."
        )
    own = LCMScheduler.from_config(scheduler.config) if lcm else ddim
    own.set_timesteps(steps)
    # For some step counts (61, say) rounding adds a spurious timestep -1 to diffusers' trailing spacing.
    timesteps = own.timesteps[own.timesteps >= 0].long()
    if timesteps[0] >= ddim.config.num_train_timesteps:
        raise ValueError(
            f"steps={steps} with steps_offset={ddim.config.steps_offset} starts at timestep "
            f"{int(timesteps[0])}, beyond the last one, {ddim.config.num_train_timesteps - 1}; use fewer."
        )
    return timesteps


def _over_sigmas(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler belongs to the family of Euler, LMS and DPM, which integrates over sigmas."""
    return hasattr(scheduler, "sigmas")


def _follows_its_list(scheduler: SchedulerMixin) -> bool:
    """Whether a step ends at the next entry of the list instead of a fixed number of timesteps below."""
    return _over_sigmas(scheduler) or isinstance(scheduler, LCMScheduler)
