"""The schedule of a deterministic first-order sampler: its timesteps and its signal and noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

Prediction = Literal["epsilon", "flow"]
"""What a predictor estimates for a latent ``alpha x0 + sigma n`` with clean latent ``x0`` and noise ``n``.

"epsilon" means the noise ``n``, and "flow" means the velocity ``n - x0``.
"""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The steps of a deterministic first-order sampler, ordered from noisy to clean.

    A latent is ``z = alpha x0 + sigma n`` with clean latent ``x0``, noise ``n``, signal level ``alpha`` and noise level
    ``sigma``. Step ``i`` evaluates the network at ``timesteps[i]`` on a latent with the levels ``alpha[i]``,
    ``sigma[i]`` and obtains estimates of ``x0`` and ``n``. The latent after the step is
    ``alpha_next[i] x0 + sigma_next[i] n`` with the estimates of ``x0`` and ``n``. The steps of DDIM
    (``alpha^2 + sigma^2 = 1``) and the Euler steps of flow matching (``alpha + sigma = 1``) are special cases.

    The levels after step ``i`` can differ from the levels before step ``i + 1``. From timestep ``t``, DDIM and PNDM go
    to the timestep ``t - num_train_timesteps // steps``. This timestep differs from the next entry of
    ``scheduler.timesteps`` for ``linspace`` spacing. For ``trailing`` spacing, it differs if ``steps`` does not divide
    ``num_train_timesteps``. Inversion is exact even if the levels differ, because inversion uses the same levels as
    sampling. ``timesteps`` only determines which timestep the network receives.

    Attributes:
        timesteps: descending timesteps that the network receives in the N steps, ``[N]``; int64, or float64 for flow
            matching.
        alpha, sigma: signal and noise levels before each step, float64 ``[N]``.
        alpha_next, sigma_next: signal and noise levels after each step, float64 ``[N]``.
        predicts: what a predictor for this schedule returns, see :data:`Prediction`.
    """

    timesteps: Tensor  # [N]
    alpha: Tensor  # [N]
    sigma: Tensor  # [N]
    alpha_next: Tensor  # [N]
    sigma_next: Tensor  # [N]
    predicts: Prediction = "epsilon"

    def __post_init__(self) -> None:
        tables = (self.alpha, self.sigma, self.alpha_next, self.sigma_next)
        if not all(len(table) == len(self.timesteps) > 0 for table in tables):
            raise ValueError("timesteps, alpha, sigma, alpha_next and sigma_next must be non-empty and equally long.")
        if not (self.timesteps[1:] < self.timesteps[:-1]).all():
            raise ValueError(f"timesteps must descend strictly, got {self.timesteps.tolist()}.")
        cleaner = (self.alpha <= self.alpha_next) & (self.sigma_next <= self.sigma) & (self.sigma_next >= 0)
        has_signal = self.alpha > 0 if self.predicts == "epsilon" else self.alpha >= 0
        if not (cleaner & has_signal & (self.alpha_next <= 1)).all():
            raise ValueError(
                "alpha and sigma must go from more to less noise in every step (alpha <= alpha_next <= 1 and "
                "sigma >= sigma_next >= 0), and alpha must be above 0 if the network predicts noise."
            )

    def __len__(self) -> int:
        return len(self.timesteps)

    @classmethod
    def diffusion(cls, timesteps: Tensor, alpha_bar: Tensor, alpha_bar_next: Tensor) -> Schedule:
        """Return a DDIM schedule from the values of ``alphas_cumprod`` before and after each of N steps.

        ``alpha_bar`` (before the steps) and ``alpha_bar_next`` (after the steps) are float64 ``[N]``. They are the
        squares of the signal levels ``alpha`` and ``alpha_next``.
        """
        return cls(
            timesteps=timesteps,
            alpha=alpha_bar.sqrt(),
            sigma=(1 - alpha_bar).sqrt(),
            alpha_next=alpha_bar_next.sqrt(),
            sigma_next=(1 - alpha_bar_next).sqrt(),
        )

    @classmethod
    def flow(cls, timesteps: Tensor, sigmas: Tensor) -> Schedule:
        """Return the flow-matching schedule of N steps with ``timesteps [N]`` and ``sigmas [N+1]``, both float64.

        Step ``i`` goes from the noise level ``sigmas[i]`` to ``sigmas[i + 1]``.
        """
        sigma = sigmas[:-1]
        sigma_next = sigmas[1:]
        return cls(timesteps, 1 - sigma, sigma, 1 - sigma_next, sigma_next, predicts="flow")

    @classmethod
    def from_scheduler(
        cls, scheduler: SchedulerMixin, steps: int, *, sigmas: Sequence[float] | None = None, mu: float | None = None
    ) -> Schedule:
        """Return the deterministic schedule with the timesteps and noise levels of a diffusers scheduler.

        ``scheduler`` is not modified; a copy of the scheduler computes the timesteps. A step of DDIM, DDPM or PNDM
        reduces the timestep by ``num_train_timesteps // steps``, and the last step ends at the scheduler's
        ``final_alpha_cumprod`` (1 for DDPM). A step of a scheduler with sigmas (Euler, DPM, UniPC, LMS, ...) goes to
        the next entry of ``scheduler.sigmas``. For example, the schedule of a turbo checkpoint is deterministic DDIM
        with trailing timesteps. A step of LCM or TCD goes to the next entry of ``scheduler.timesteps``. If the
        scheduler adds noise between steps or uses higher-order steps, the schedule replaces these steps by first-order
        steps without noise. The noise levels of a ``FlowMatchEulerDiscreteScheduler`` are its shifted sigmas.

        Args:
            scheduler: a diffusers scheduler for diffusion or flow matching.
            steps: number of sampling steps.
            sigmas: only for flow matching: the sigmas before the shift, as FLUX's pipeline passes them; None means the
                sigmas of the scheduler.
            mu: shift parameter for a flow-matching scheduler whose shift depends on the image size.

        Raises:
            ValueError: ``steps`` is not an integer from 1 to the scheduler's maximum, ``mu`` is missing, ``mu`` or
                ``sigmas`` would have no effect, or the scheduler is not supported. A scheduler is not supported if it
                has no betas, has fractional or repeated timesteps (Heun, KDPM2), or replaces the noise levels of the
                training schedule (Karras sigmas, flow sigmas). A scheduler is not supported if it clips the latent, or
                if it is a flow-matching scheduler that adds noise. A scheduler is also not supported if the network
                predicts noise and the latent at a timestep is pure noise (zero terminal SNR).
        """
        from rnri.models.diffusers_schedulers import diffusion_steps, flow_steps, is_flow  # loads diffusers

        if is_flow(scheduler):
            return cls.flow(*flow_steps(scheduler, steps, sigmas=sigmas, mu=mu))
        if sigmas is not None or mu is not None:
            raise ValueError(
                f"sigmas and mu are for flow matching, which {type(scheduler).__name__} does not use: leave sigmas and "
                "mu out."
            )
        return cls.diffusion(*diffusion_steps(scheduler, steps))

    @property
    def scale_and_time(self) -> tuple[Tensor, Tensor]:
        """The scales ``c`` and times ``tau`` before each of N steps and after the last step, each float64 ``[N+1]``.

        Let ``z_t`` be the latent before a step and ``z_s`` the latent after the step. In the variables ``z / c`` and
        ``tau``, every step is an Euler step: ``z_s / c_s = z_t / c_t + (tau_s - tau_t) y``, where ``y`` is the
        prediction. If the predictor returns noise, ``c = alpha`` and ``tau = sigma / alpha``. If the predictor returns
        the velocity, ``c = alpha + sigma`` and ``tau = sigma / c``.
        """
        alpha = self.alphas
        sigma = torch.cat([self.sigma, self.sigma_next[-1:]])
        scale = alpha if self.predicts == "epsilon" else alpha + sigma
        return scale, sigma / scale

    @property
    def alphas(self) -> Tensor:
        """The signal level ``alpha`` before each of N steps and after the last step, float64 ``[N+1]``."""
        return torch.cat([self.alpha, self.alpha_next[-1:]])

    @property
    def alpha_bar(self) -> Tensor:
        """``alphas_cumprod`` of a diffusion schedule before each of N steps, equal to ``alpha^2``; float64 ``[N]``."""
        return self.alpha.square()

    @property
    def alpha_bar_next(self) -> Tensor:
        """``alphas_cumprod`` of a diffusion schedule after each of N steps, ``alpha_next^2``; float64 ``[N]``."""
        return self.alpha_next.square()

    def timestep(self, i: int) -> int | float:
        """Return the timestep that the network receives at step ``i``: an integer, or a float for flow matching."""
        return self._numbers[i][0]

    def coefficients(self, i: int) -> tuple[float, float]:
        """Return the coefficients ``(A, B)`` of step ``i``.

        The step from the latent ``z_t`` to the less noisy latent ``z_s`` is ``z_s = (z_t - B y(z_t)) / A`` with the
        prediction ``y``. The inverse of the step is the implicit equation ``z_t = A z_s + B y(z_t)``. The signal and
        noise levels are ``alpha_t``, ``sigma_t`` before the step and ``alpha_s``, ``sigma_s`` after the step. If the
        predictor returns noise, ``A = alpha_t / alpha_s`` and ``B = sigma_t - A sigma_s`` (RNRI, arXiv 2312.12540, Eq.
        2 and 3). If the predictor returns the velocity, ``A = (alpha_t + sigma_t) / (alpha_s + sigma_s)`` and
        ``B = (alpha_s sigma_t - alpha_t sigma_s) / (alpha_s + sigma_s)``. For flow matching (``alpha + sigma = 1``) the
        coefficients are ``A = 1`` and ``B = sigma_t - sigma_s``.
        """
        alpha, sigma, alpha_next, sigma_next = self.alpha_sigma(i)
        if self.predicts == "epsilon":
            scale = alpha / alpha_next
            return scale, sigma - scale * sigma_next
        total = alpha_next + sigma_next
        return (alpha + sigma) / total, (alpha_next * sigma - alpha * sigma_next) / total

    def derivative(self, i: int, variance: float) -> float:
        """Return the derivative of ``f(z) = A z_s + B y(z)`` for Gaussian data with variance ``variance``.

        ``A`` and ``B`` are the coefficients of step ``i``, see :meth:`coefficients`. ``z_s`` is the latent after the
        step, which is constant in the derivative with respect to ``z``.

        ``y`` is the optimal prediction for Gaussian data with variance ``v = variance``. With the levels ``alpha`` and
        ``sigma`` before the step, the derivative of ``y`` is ``sigma / (alpha^2 v + sigma^2)`` if ``y`` is noise, and
        ``(sigma - alpha v) / (alpha^2 v + sigma^2)`` if ``y`` is velocity.
        """
        alpha, sigma, *_ = self.alpha_sigma(i)
        slope = sigma if self.predicts == "epsilon" else sigma - alpha * variance
        return self.coefficients(i)[1] * slope / (alpha**2 * variance + sigma**2)

    def alpha_sigma(self, i: int) -> tuple[float, float, float, float]:
        """Return ``(alpha_t, sigma_t, alpha_s, sigma_s)``: the signal and noise levels before and after step ``i``."""
        return self._numbers[i][1:]

    @cached_property
    def _numbers(self) -> list[tuple[float, float, float, float, float]]:
        """The timestep and the levels of each step as Python numbers, because reading a tensor's elements is slow."""
        tables = (self.timesteps, self.alpha, self.sigma, self.alpha_next, self.sigma_next)
        return list(zip(*(table.tolist() for table in tables), strict=True))

    def clean_and_noise(self, i: int, z: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Return the estimates of the clean latent and of the noise that step ``i`` computes.

        ``z`` is the latent before the step, and ``prediction`` is the predictor's output for ``z``.

        A noise prediction determines the clean latent only if ``alpha > 0``, which is true for every schedule of a
        network that predicts noise.
        """
        alpha, sigma = self.alpha_sigma(i)[:2]
        if self.predicts == "epsilon":
            return (z - sigma * prediction) / alpha, prediction
        return (z - sigma * prediction) / (alpha + sigma), (z + alpha * prediction) / (alpha + sigma)

    def clean_estimate(self, i: int, z_t: Tensor, z_s: Tensor) -> Tensor:
        """Return the estimate of the clean latent that step ``i`` used, from the latents before and after the step.

        A deterministic step replaces ``z_t = alpha_t x + sigma_t e`` by ``z_s = alpha_s x + sigma_s e``, where ``x``
        and ``e`` are the network's estimates of the clean latent and of the noise. The two equations determine ``x``,
        so that the estimate needs no network evaluation.

        Args:
            i: index of the step.
            z_t: latent ``[B,C,h,w]`` before the step.
            z_s: latent ``[B,C,h,w]`` after the step.
        """
        alpha_t, sigma_t, alpha_s, sigma_s = self.alpha_sigma(i)
        return (sigma_t * z_s - sigma_s * z_t) / (alpha_s * sigma_t - alpha_t * sigma_s)

    def tail(self, k: int) -> Schedule:
        """Return the schedule of the last ``k`` steps, which have the least noise; 1 <= ``k`` <= ``len(self)``."""
        if not 1 <= k <= len(self):
            raise ValueError(f"tail({k}): k must be from 1 to {len(self)}, the number of steps.")
        return self._slice(slice(len(self) - k, None))

    def head(self, k: int) -> Schedule:
        """Return the schedule of the first ``k`` steps, which have the most noise; 1 <= ``k`` <= ``len(self)``."""
        if not 1 <= k <= len(self):
            raise ValueError(f"head({k}): k must be from 1 to {len(self)}, the number of steps.")
        return self._slice(slice(k))

    def _slice(self, steps: slice) -> Schedule:
        tables = {field.name: getattr(self, field.name)[steps] for field in fields(self) if field.name != "predicts"}
        return Schedule(**tables, predicts=self.predicts)
