"""Noise levels of a deterministic DDIM sampler, taken from a diffusers scheduler."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from rnri.models.scheduler import steps_of


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
        """The ``steps``-step deterministic DDIM sampler on a scheduler's own timesteps and noise levels.

        ``scheduler`` is only read: a copy of it is asked for its timesteps. DDIM, DDPM and PNDM keep their integer
        division of timesteps and their final alpha. Schedulers over sigmas (Euler, DPM, UniPC, LMS, ...) step to the
        next entry of the list and end at their own last sigma: few-step turbo checkpoints thereby become deterministic
        DDIM on trailing timesteps. LCM and TCD step along their list too. What a scheduler adds to these
        timesteps - noise between steps, a higher order - is left out.

        Raises:
            ValueError: ``steps`` that is no whole number, below 1 or above what the scheduler has; a scheduler
                without betas; one whose timesteps are fractions or repeat (Heun, KDPM2) or whose noise levels are
                not its training table's (Karras sigmas, flow sigmas), which DDIM does not follow; one that clips
                the latent; and a network that predicts noise where there is nothing but noise (zero terminal SNR).
        """
        return cls(*steps_of(scheduler, steps))

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
