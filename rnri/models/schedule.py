"""Signal and noise levels of a deterministic sampler, taken from a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from rnri.models.diffusers_schedulers import steps_of
from rnri.models.flow import flow_steps, is_flow

Prediction = Literal["epsilon", "flow"]
"""What a predictor returns: the noise ``n``, or the velocity ``n - x0``, of the latent ``alpha x0 + sigma n``."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The steps of a deterministic first-order sampler, noisy to clean.

    A latent is ``z = alpha x0 + sigma n``. Step ``i`` runs the network at ``timesteps[i]`` on ``z_t`` (levels
    ``alpha[i]``, ``sigma[i]``), which tells the ``x0`` and ``n`` that it sees, and joins them again at the levels
    ``alpha_next[i]``, ``sigma_next[i]``. DDIM (``alpha^2 + sigma^2 = 1``) and the Euler steps of flow matching
    (``alpha + sigma = 1``) are both this.

    Where a step ends is what the checkpoint's sampler does, which is not always where the next begins: DDIM and PNDM
    step to the timestep ``t - num_train_timesteps // steps``. The two differ for ``linspace`` and, where ``steps`` does
    not divide ``num_train_timesteps``, for ``trailing`` spacing. Inversion stays exact, because it inverts this very
    step; the list of timesteps only says which label the network sees.

    Attributes:
        timesteps: ``[N]``, descending: int64, or float64 for flow matching.
        alpha, sigma: float64 ``[N]``, signal and noise before each step.
        alpha_next, sigma_next: float64 ``[N]``, after it.
        predicts: what the predictor of this schedule returns.
    """

    timesteps: Tensor  # [N]
    alpha: Tensor  # [N]
    sigma: Tensor  # [N]
    alpha_next: Tensor  # [N]
    sigma_next: Tensor  # [N]
    predicts: Prediction = "epsilon"

    def __post_init__(self) -> None:
        levels = (self.alpha, self.sigma, self.alpha_next, self.sigma_next)
        if not all(len(level) == len(self.timesteps) > 0 for level in levels):
            raise ValueError("timesteps and levels must have the same length, at least 1.")
        if not (self.timesteps[1:] < self.timesteps[:-1]).all():
            raise ValueError(f"timesteps must descend strictly, got {self.timesteps.tolist()}.")
        cleaner = (self.alpha <= self.alpha_next) & (self.sigma_next <= self.sigma) & (self.sigma_next >= 0)
        least = self.alpha > 0 if self.predicts == "epsilon" else self.alpha >= 0
        if not (cleaner & least & (self.alpha_next <= 1)).all():
            raise ValueError("every step must go from more to less noise, with some signal where noise is predicted.")

    def __len__(self) -> int:
        return len(self.timesteps)

    @classmethod
    def diffusion(cls, timesteps: Tensor, alpha_bar: Tensor, alpha_bar_next: Tensor) -> Schedule:
        """DDIM's steps from the cumulative alphas (``alpha^2``) before and after each, float64 ``[N]``."""
        (alpha, sigma), (alpha_next, sigma_next) = ((a.sqrt(), (1 - a).sqrt()) for a in (alpha_bar, alpha_bar_next))
        return cls(timesteps, alpha, sigma, alpha_next, sigma_next)

    @classmethod
    def flow(cls, timesteps: Tensor, sigmas: Tensor) -> Schedule:
        """Euler's steps of flow matching over ``sigmas`` (float64 ``[N+1]``), at ``timesteps`` (float64 ``[N]``)."""
        sigma, sigma_next = sigmas[:-1], sigmas[1:]
        return cls(timesteps, 1 - sigma, sigma, 1 - sigma_next, sigma_next, predicts="flow")

    @classmethod
    def from_scheduler(
        cls, scheduler: SchedulerMixin, steps: int, *, sigmas: Sequence[float] | None = None, mu: float | None = None
    ) -> Schedule:
        """The ``steps``-step deterministic sampler on a scheduler's own timesteps and noise levels.

        ``scheduler`` is only read: a copy of it is asked for its timesteps. DDIM, DDPM and PNDM keep their integer
        division of timesteps and their final alpha. Schedulers over sigmas (Euler, DPM, UniPC, LMS, ...) step to the
        next entry of the list and end at their own last sigma: few-step turbo checkpoints thereby become deterministic
        DDIM on trailing timesteps. LCM and TCD step along their list too. What a scheduler adds to these
        timesteps - noise between steps, a higher order - is left out.
        ``FlowMatchEulerDiscreteScheduler`` gives its own sigmas, shifted as it shifts them.

        Args:
            sigmas: of flow matching, before its shift, as FLUX's pipeline passes them; None: the scheduler's own.
            mu: the shift of a flow scheduler whose shift depends on the image's size.

        Raises:
            ValueError: ``steps`` that is no whole number, below 1 or above what the scheduler has; a scheduler
                without betas; one whose timesteps are fractions or repeat (Heun, KDPM2) or whose noise levels are
                not its training table's (Karras sigmas, flow sigmas), which DDIM does not follow; one that clips
                the latent or adds noise; a network that predicts noise where there is nothing but noise (zero
                terminal SNR); and ``mu`` missing, or given where it has no effect, as are ``sigmas``.
        """
        if is_flow(scheduler):
            return cls.flow(*flow_steps(scheduler, steps, sigmas=sigmas, mu=mu))
        if sigmas is not None or mu is not None:
            raise ValueError(
                f"sigmas and mu belong to flow matching; {type(scheduler).__name__} takes neither: leave them out."
            )
        return cls.diffusion(*steps_of(scheduler, steps))

    @property
    def scale_and_time(self) -> tuple[Tensor, Tensor]:
        """``(c, tau)``, float64 ``[N+1]`` each: the levels before every step and after the last.

        In them every step is Euler's, ``z_s / c_s = z_t / c_t + (tau_s - tau_t) y``: ``c = alpha`` and
        ``tau = sigma / alpha`` for noise, ``c = alpha + sigma`` and ``tau = sigma / c`` for velocity.
        """
        alpha, sigma = torch.cat([self.alpha, self.alpha_next[-1:]]), torch.cat([self.sigma, self.sigma_next[-1:]])
        scale = alpha if self.predicts == "epsilon" else alpha + sigma
        return scale, sigma / scale

    @property
    def alpha_bar(self) -> Tensor:
        """``alpha^2``, float64 ``[N]``: the cumulative alpha of a diffusion schedule."""
        return self.alpha.square()

    @property
    def alpha_bar_next(self) -> Tensor:
        """``alpha_next^2``, float64 ``[N]``."""
        return self.alpha_next.square()

    def timestep(self, i: int) -> int | float:
        """The label that the network sees at step ``i``: a whole number, or a real one for flow matching."""
        return self.timesteps[i].item()

    def coefficients(self, i: int) -> tuple[float, float]:
        """``(A, B)`` of step ``i``: ``z_s = (z_t - B y) / A`` and, implicitly, ``z_t = A z_s + B y(z_t)``.

        For noise ``y = eps``: ``A = alpha_t / alpha_s`` and ``B = sigma_t - A sigma_s`` (RNRI, arXiv 2312.12540,
        Eq. 2 and 3). For a velocity ``y = n - x0``: ``A = (alpha_t + sigma_t) / (alpha_s + sigma_s)``, which is 1 for
        flow matching, and ``B = (alpha_s sigma_t - alpha_t sigma_s) / (alpha_s + sigma_s)``, its ``sigma_t - sigma_s``.
        """
        alpha, sigma, alpha_next, sigma_next = self.alpha_sigma(i)
        if self.predicts == "epsilon":
            scale = alpha / alpha_next
            return scale, sigma - scale * sigma_next
        total = alpha_next + sigma_next
        return (alpha + sigma) / total, (alpha_next * sigma - alpha * sigma_next) / total

    def derivative(self, i: int, variance: float) -> float:
        """Of step ``i``'s ``f(z) = A z_s + B y(z)`` along a component of Gaussian data that has ``variance``.

        ``y`` is the optimal prediction: its own derivative is ``sigma / (alpha^2 v + sigma^2)`` for noise and
        ``(sigma - alpha v) / (alpha^2 v + sigma^2)`` for velocity.
        """
        alpha, sigma, *_ = self.alpha_sigma(i)
        slope = sigma if self.predicts == "epsilon" else sigma - alpha * variance
        return self.coefficients(i)[1] * slope / (alpha**2 * variance + sigma**2)

    def alpha_sigma(self, i: int) -> tuple[float, float, float, float]:
        """``(alpha_t, sigma_t, alpha_s, sigma_s)`` of step ``i``."""
        return tuple(float(level[i]) for level in (self.alpha, self.sigma, self.alpha_next, self.sigma_next))

    def clean_and_noise(self, i: int, z: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """``(x0, n)``, each ``[B,C,h,w]``, that a ``prediction`` at ``z`` means before step ``i``.

        A noise prediction says nothing of ``x0`` where there is no signal; a schedule of noise has none such.
        """
        alpha, sigma = self.alpha_sigma(i)[:2]
        if self.predicts == "epsilon":
            return (z - sigma * prediction) / alpha, prediction
        return (z - sigma * prediction) / (alpha + sigma), (z + alpha * prediction) / (alpha + sigma)

    def tail(self, k: int) -> Schedule:
        """The ``k`` cleanest steps, for partial inversion; ``k`` from 1 to ``len(self)``."""
        if not 1 <= k <= len(self):
            raise ValueError(f"tail({k}): the schedule has {len(self)} steps; choose among them.")
        return self._steps(slice(len(self) - k, None))

    def head(self, k: int) -> Schedule:
        """The ``k`` noisiest steps; ``k`` from 1 to ``len(self)``."""
        if not 1 <= k <= len(self):
            raise ValueError(f"head({k}): the schedule has {len(self)} steps; choose among them.")
        return self._steps(slice(k))

    def _steps(self, steps: slice) -> Schedule:
        tables = [getattr(self, field.name)[steps] for field in fields(self) if field.name != "predicts"]
        return Schedule(*tables, predicts=self.predicts)
