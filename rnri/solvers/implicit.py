"""The implicit equation of one inversion step, ``z = f(z)``, and what a solver returns for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rnri.models.predictor import NoisePredictor, to_device
from rnri.models.schedule import Prediction, Schedule
from rnri.solvers.secants import SecantRecorder, Secants


@dataclass(frozen=True)
class SampleCounts:
    """Evaluations of ``f`` and of its derivative, int64 ``[B]``, by sample of the batch at the start."""

    forward: Tensor
    backward: Tensor

    @classmethod
    def zeros(cls, batch: int) -> SampleCounts:
        return cls(torch.zeros(batch, dtype=torch.int64), torch.zeros(batch, dtype=torch.int64))


@dataclass(frozen=True)
class ImplicitStep:
    """``z = f(z)`` with ``f(z) = A z_s + B y(z, t)`` for a batch (RNRI, arXiv 2312.12540, Eq. 3).

    ``y`` is what the schedule's predictor returns: the noise, as in the paper, or flow matching's velocity.

    It counts its own evaluations by sample, so no solver has to. ``select`` gives the equation of the samples
    that are still being solved.

    Attributes:
        predictor: the prediction for these samples.
        timestep: the label of the noisy end of the step.
        a, b: the coefficients ``A`` and ``B`` of ``Schedule.coefficients``.
        z_s: the cleaner latent, ``[B,C,h,w]``.
        rows: int64 ``[B]``, the samples' places in ``counts``.
        z_0: the clean latent that the walk began at, ``[B,C,h,w]``; only methods whose prior is ``q(z_t | z_0)`` ask.
        levels: ``(alpha_t, sigma_t, alpha_s, sigma_s)`` of ``Schedule.levels``; only methods with a prior ask.
        predicts: what ``y`` is.
        secants: what the steps before tell of the derivative of ``y``, where the walk keeps it.
        trail: takes note of the evaluations for the steps to come, under ``places`` (int64 ``[B]``).
        omega: how far an iteration goes, in the form that :mod:`rnri.solvers.parameterization` tells.
    """

    predictor: NoisePredictor
    timestep: int | float
    a: float
    b: float
    z_s: Tensor  # [B,C,h,w]
    rows: Tensor  # [B]
    counts: SampleCounts
    z_0: Tensor | None = None  # [B,C,h,w]
    levels: tuple[float, float, float, float] = (math.nan,) * 4
    predicts: Prediction = "epsilon"
    secants: Secants | None = None
    trail: SecantRecorder | None = None
    places: Tensor | None = None
    relaxation: float = 1.0

    @classmethod
    def of(
        cls, z_s: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int, z_0: Tensor | None = None
    ) -> ImplicitStep:
        """The equation whose solution step ``i`` of the sampler takes to ``z_s``, on the walk from ``z_0``."""
        a, b = schedule.coefficients(i)
        rows, counts = torch.arange(len(z_s)), SampleCounts.zeros(len(z_s))
        levels, timestep = schedule.alpha_sigma(i), schedule.timestep(i)
        return cls(predictor, timestep, a, b, z_s, rows, counts, z_0, levels, schedule.predicts)

    def __len__(self) -> int:
        return len(self.z_s)

    def __call__(self, z: Tensor) -> Tensor:
        """``f(z)``, ``[B,C,h,w]``; one network evaluation a sample, differentiable in ``z``."""
        self.counts.forward[self.rows] += 1
        prediction = self.predictor(z, self.timestep)
        if prediction.requires_grad:
            prediction.register_hook(self._count_backward)
        if self.trail is not None:
            self.trail.note(self.places, z.detach(), prediction.detach())
        return self.a * self.z_s + self.b * prediction

    def _count_backward(self, _gradient: Tensor | None = None) -> None:
        self.counts.backward[self.rows] += 1

    def jvp(self, z: Tensor, direction: Tensor) -> Tensor:
        """The derivative of the iteration (:meth:`relaxed`) at ``z`` along ``direction``, ``[B,C,h,w]``.

        One evaluation of each kind.
        """
        self.counts.forward[self.rows] += 1
        self._count_backward()
        return self.relaxed(direction, self.b * self.predictor.jvp(z, self.timestep, direction)[1])

    def select(self, rows: Tensor) -> ImplicitStep:
        """The equation of the samples ``rows`` (int64 ``[b]``, places in this batch); shares the counts."""
        return replace(
            self,
            predictor=self.predictor.select(rows),
            z_s=self.z_s[to_device(rows, self.z_s.device)],
            z_0=None if self.z_0 is None else self.z_0[to_device(rows, self.z_0.device)],
            rows=self.rows[rows.cpu()],
            secants=None if self.secants is None else self.secants.select(rows),
            places=None if self.places is None else self.places[rows.cpu()],
        )

    def with_secants(self, secants: Secants) -> ImplicitStep:
        """The same equation with what the steps before tell of the derivative; its own evaluations are noted too."""
        return replace(self, secants=secants, trail=SecantRecorder(secants), places=torch.arange(len(self)))

    def with_zero_counts(self) -> ImplicitStep:
        """The same equation with its counts at zero."""
        return replace(self, rows=torch.arange(len(self)), counts=SampleCounts.zeros(len(self)))

    def relaxed(self, z: Tensor, f: Tensor) -> Tensor:
        """Where one iteration leads, from ``z`` and ``f(z)``: ``f(z)`` itself in the prediction's own form."""
        return f if self.relaxation == 1 else z + self.relaxation * (f - z)

    def prediction(self, f: Tensor) -> Tensor:
        """The prediction ``y`` behind a value ``f(z)``, without a network evaluation; ``b`` must not be 0."""
        return (f - self.a * self.z_s) / self.b

    def noise(self, f: Tensor) -> Tensor:
        """The noise ``n`` that the latents ``f [B,C,h,w]`` and ``z_s`` share, whatever ``y`` is.

        Both are ``alpha x0 + sigma n`` with one ``x0`` and ``n``; for a noise prediction it is ``y``.
        """
        return (f - self.prior_mean) / self.noise_gain

    @property
    def noise_gain(self) -> float:
        """``sigma_t - (alpha_t / alpha_s) sigma_s``: ``f = prior_mean + noise_gain n``. 0 where nothing changes."""
        return self.levels[1] - self._signal_kept * self.levels[3]

    @property
    def prior_mean(self) -> Tensor:
        """Mean ``[B,C,h,w]`` of ``q(z_t | z_s)``, ``(alpha_t / alpha_s) z_s``; Eq. 1's ``sqrt(1 - beta) z_s``."""
        return self._signal_kept * self.z_s

    @property
    def prior_variance(self) -> float:
        """``sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2``; Eq. 1's beta, re-spaced to this schedule's step.

        A step may span several training steps.
        """
        _, sigma, _, sigma_next = self.levels
        return sigma**2 - (self._signal_kept * sigma_next) ** 2

    @property
    def marginal_mean(self) -> Tensor:
        """Mean ``[B,C,h,w]`` of ``q(z_t | z_0) = N(alpha_t z_0, sigma_t^2 I)``; ValueError where z_0 is unknown."""
        if self.z_0 is None:
            raise ValueError("this solver's prior is q(z_t | z_0): give ImplicitStep the clean latent z_0.")
        return self.levels[0] * self.z_0

    @property
    def marginal_variance(self) -> float:
        """``sigma_t^2``."""
        return self.levels[1] ** 2

    @property
    def _signal_kept(self) -> float:
        """``alpha_t / alpha_s``."""
        return self.levels[0] / self.levels[2]


@dataclass(frozen=True)
class Solution:
    """What a solver returns for a batch of implicit equations; every field is by sample.

    Attributes:
        z: ``[B,C,h,w]``. Where ``converged``, an evaluated iterate; elsewhere what the solver makes of its
            last or best evaluation, mostly ``f(z_k)`` of the best iterate, which itself was not evaluated.
        residual: ``[B]``, mean ``|z_k - f(z_k)|`` over the elements of the best evaluated iterate ``z_k``.
            Where ``converged``, ``z = z_k`` and this is exactly the residual of ``z``. ``inf`` where no
            evaluation was finite.
        evaluations, backward: int64 ``[B]``.
        converged: bool ``[B]``, whether the residual *of z itself* was measured and within tolerance.
        f: ``[B,C,h,w]``, ``f(z_k)`` of the best evaluated iterate.
    """

    z: Tensor
    residual: Tensor
    nfe: Tensor
    backward: Tensor
    converged: Tensor
    f: Tensor


@runtime_checkable
class Solver(Protocol):
    """Solves ``z = f(z)`` for a batch, sample by sample; knows neither prompt nor schedule nor time."""

    tolerance: float
    iterations: int

    def __call__(self, problem: ImplicitStep, z_init: Tensor, limits: Tensor | None = None) -> Solution:
        """Solves ``problem`` from ``z_init [B,C,h,w]``.

        ``limits`` (int64 ``[B]``, 1 or more) are the network evaluations that each sample may spend;
        ``iterations`` where None.
        """
        ...


def mean_absolute(difference: Tensor) -> Tensor:
    """Mean of ``|difference|`` over the elements of each sample, ``[B]``."""
    return difference.abs().flatten(1).mean(1)
