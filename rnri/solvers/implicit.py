"""The implicit equation of one inversion step, ``z = f(z)``, and the solution that a solver returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from rnri.models.predictor import NoisePredictor, to_device
from rnri.models.schedule import Prediction, Schedule
from rnri.solvers.secants import SecantRecorder, Secants


@dataclass(frozen=True)
class EvaluationCounter:
    """Counts, for each sample, the evaluations of ``f`` and of the derivative of ``f``.

    Attributes:
        forward: ``B`` numbers of evaluations of ``f``, one for each sample of the full batch.
        backward: ``B`` numbers of evaluations of the derivative of ``f``, one for each sample of the full batch.
        rows: ``b`` indices, in the full batch, of the samples whose evaluations this counter counts. Counters returned
            by ``select`` update the same lists ``forward`` and ``backward`` as this counter.
    """

    forward: list[int]
    backward: list[int]
    rows: list[int]

    @classmethod
    def zeros(cls, batch_size: int) -> EvaluationCounter:
        return cls([0] * batch_size, [0] * batch_size, list(range(batch_size)))

    def select(self, rows: Tensor) -> EvaluationCounter:
        """Return a counter for the samples ``rows`` (indices into ``self.rows``).

        The returned counter updates the same lists ``forward`` and ``backward`` as this counter.
        """
        return replace(self, rows=[self.rows[i] for i in rows.tolist()])

    def add_forward(self) -> None:
        for row in self.rows:
            self.forward[row] += 1

    def add_backward(self) -> None:
        for row in self.rows:
            self.backward[row] += 1


@dataclass(frozen=True)
class Prior:
    """Gaussian distributions ``q(z_t | z_s)`` and ``q(z_t | z_0)`` of the noisy latent ``z_t`` given a cleaner latent.

    Attributes:
        z_s: the latent at the cleaner end of the step, ``[B,C,h,w]``.
        z_0: the clean latent, ``[B,C,h,w]``; None if ``q(z_t | z_0)`` is not used.
        alpha, sigma: signal level ``alpha_t`` and noise level ``sigma_t`` of ``z_t``.
        alpha_s, sigma_s: signal level and noise level of ``z_s``.
    """

    z_s: Tensor
    z_0: Tensor | None
    alpha: float
    sigma: float
    alpha_s: float
    sigma_s: float

    def select(self, rows: Tensor) -> Prior:
        """Return the distributions of the samples ``rows`` (int64 ``[b]``, indices into this batch)."""
        z_0 = None if self.z_0 is None else self.z_0[to_device(rows, self.z_0.device)]
        return replace(self, z_s=self.z_s[to_device(rows, self.z_s.device)], z_0=z_0)

    @property
    def mean(self) -> Tensor:
        """Mean ``[B,C,h,w]`` of ``q(z_t | z_s)``: ``(alpha_t / alpha_s) z_s`` with the signal levels ``alpha``.

        The RNRI paper writes this mean as ``sqrt(1 - beta) z_s`` (Eq. 1), where ``beta`` is the variance.
        """
        return self._signal_ratio * self.z_s

    @property
    def variance(self) -> float:
        """Variance of ``q(z_t | z_s)``: ``sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2``.

        ``alpha`` is the signal level and ``sigma`` is the noise level of a latent. The RNRI paper writes ``beta`` for
        the variance of ``q(z_t | z_s)`` (Eq. 1). A step of the sampler goes from the latent ``z_t`` to the less noisy
        latent ``z_s``, and may span several training timesteps.
        """
        return self.sigma**2 - (self._signal_ratio * self.sigma_s) ** 2

    @property
    def marginal_mean(self) -> Tensor:
        """Mean ``[B,C,h,w]`` of ``q(z_t | z_0) = N(alpha_t z_0, sigma_t^2 I)``, where ``z_0`` is the clean latent.

        Raises:
            ValueError: ``z_0`` is None.
        """
        if self.z_0 is None:
            raise ValueError("the prior q(z_t | z_0) needs the clean latent: pass z_0 to ImplicitStep.from_schedule.")
        return self.alpha * self.z_0

    @property
    def marginal_variance(self) -> float:
        """Variance of ``q(z_t | z_0)``: ``sigma_t^2``, where ``sigma_t`` is the noise level of ``z_t``."""
        return self.sigma**2

    def noise(self, z: Tensor) -> Tensor:
        """Return the noise ``n [B,C,h,w]`` for which ``z`` and ``z_s`` have a common clean latent ``x_0``.

        The noise ``n`` solves ``z = alpha x_0 + sigma n`` and ``z_s = alpha_s x_0 + sigma_s n``, where ``alpha`` and
        ``sigma`` are the signal level and the noise level of ``z``, and ``alpha_s`` and ``sigma_s`` those of ``z_s``.
        """
        return (z - self.mean) / self.noise_gain

    @property
    def noise_gain(self) -> float:
        """The factor ``g = sigma_t - (alpha_t / alpha_s) sigma_s`` of the noise ``n`` in ``z_t = mean + g n``.

        ``alpha`` is the signal level and ``sigma`` is the noise level of ``z_t`` or ``z_s``. :attr:`mean` is
        ``(alpha_t / alpha_s) z_s``, and :meth:`noise` returns ``n``. The factor is 0 if ``z_t`` and ``z_s`` have the
        same noise level.
        """
        return self.sigma - self._signal_ratio * self.sigma_s

    @property
    def _signal_ratio(self) -> float:
        return self.alpha / self.alpha_s


@dataclass(frozen=True)
class ImplicitStep:
    """The equation ``z = f(z)`` with ``f(z) = A z_s + B y(z, t)`` for a batch (RNRI, arXiv 2312.12540, Eq. 3).

    ``y`` is the predictor's output: the noise, as in the paper, or the velocity of flow matching. Each call of an
    ``ImplicitStep`` computes ``f(z)`` and counts one network evaluation per sample in ``counter``. ``select`` returns
    the equation of a subset of the batch.

    Attributes:
        predictor: computes ``y``: the network with the prompts and the guidance scale of the batch.
        timestep: the timestep ``t`` at the noisier end of the step.
        a, b: the coefficients ``A`` and ``B`` of ``Schedule.coefficients``.
        z_s: the latent at the cleaner end of the step, ``[B,C,h,w]``.
        prior: Gaussian distributions of the noisier latent ``z_t``, which only the RNRI and ReNoise solvers need.
        counter: counts the evaluations of ``f``.
        predicts: quantity that ``y`` predicts: noise (``epsilon``) or velocity (``flow``).
        relaxation: factor by which solvers multiply the fixed-point update ``f(z) - z``, see
            :mod:`rnri.solvers.parameterization`.
        anchor: the latent ``[B,C,h,w]`` on the straight continuation of the previous inversion step, which only the
            SelFix solver needs; None in the first inversion steps.
        recorder: records differences of latents and of predictions (secants) for the next inversion step; None if the
            solver does not use secants.
    """

    predictor: NoisePredictor
    timestep: int | float
    a: float
    b: float
    z_s: Tensor
    prior: Prior
    counter: EvaluationCounter
    predicts: Prediction = "epsilon"
    relaxation: float = 1.0
    anchor: Tensor | None = None
    recorder: SecantRecorder | None = None

    @classmethod
    def from_schedule(
        cls, z_s: Tensor, predictor: NoisePredictor, schedule: Schedule, i: int, *, z_0: Tensor | None = None
    ) -> ImplicitStep:
        """Return the equation for the noisier latent ``z`` that sampling step ``i`` maps to ``z_s [B,C,h,w]``.

        ``z_0 [B,C,h,w]`` is the clean latent of the inversion, which only solvers with the prior ``q(z_t | z_0)`` need.
        """
        a, b = schedule.coefficients(i)
        return cls(
            predictor=predictor,
            timestep=schedule.timestep(i),
            a=a,
            b=b,
            z_s=z_s,
            prior=Prior(z_s, z_0, *schedule.alpha_sigma(i)),
            counter=EvaluationCounter.zeros(len(z_s)),
            predicts=schedule.predicts,
        )

    def __len__(self) -> int:
        return len(self.z_s)

    def __call__(self, z: Tensor) -> Tensor:
        """Return ``f(z)``, ``[B,C,h,w]``, differentiable in ``z``; the call needs one network evaluation per sample."""
        self.counter.add_forward()
        prediction = self.predictor(z, self.timestep)
        if prediction.requires_grad:
            prediction.register_hook(self._count_backward)
        if self.recorder is not None:
            self.recorder.record(z.detach(), prediction.detach())
        return self.a * self.z_s + self.b * prediction

    def _count_backward(self, _gradient: Tensor) -> None:
        self.counter.add_backward()

    def jvp(self, z: Tensor, direction: Tensor) -> Tensor:
        """Return the derivative of ``z + relaxation * (f(z) - z)`` at ``z`` along ``direction``, ``[B,C,h,w]``.

        The call counts as one forward and one backward evaluation per sample.
        """
        self.counter.add_forward()
        self.counter.add_backward()
        return self.relaxed(direction, self.b * self.predictor.jvp(z, self.timestep, direction)[1])

    def select(self, rows: Tensor) -> ImplicitStep:
        """Return the equation of the samples ``rows`` (int64 ``[b]``, indices into this batch).

        The returned equation counts its evaluations in the same lists as this equation.
        """
        return replace(
            self,
            predictor=self.predictor.select(rows),
            z_s=self.z_s[to_device(rows, self.z_s.device)],
            prior=self.prior.select(rows),
            counter=self.counter.select(rows),
            anchor=None if self.anchor is None else self.anchor[to_device(rows, self.anchor.device)],
            recorder=None if self.recorder is None else self.recorder.select(rows),
        )

    def with_secants(self, secants: Secants) -> ImplicitStep:
        """Return the same equation with a recorder that starts from the secants of previous inversion steps.

        Secants are differences of latents and of the network's predictions for these latents.
        """
        return replace(self, recorder=SecantRecorder.start(secants))

    def with_anchor(self, prediction: Tensor) -> ImplicitStep:
        """Return the same equation with the latent ``A z_s + B prediction`` as the attribute ``anchor``.

        ``prediction [B,C,h,w]`` is the prediction that leads from the previous to the current latent of the inversion.
        The solver SelFix pulls its iterates towards the anchor.
        """
        return replace(self, anchor=self.a * self.z_s + self.b * prediction)

    def with_zero_counts(self) -> ImplicitStep:
        """Return the same equation with a new counter of network evaluations, which starts at 0."""
        return replace(self, counter=EvaluationCounter.zeros(len(self)))

    def relaxed(self, z: Tensor, f: Tensor) -> Tensor:
        """Return ``z + relaxation * (f - z)``, ``[B,C,h,w]``, where ``f`` is the value ``f(z)`` of this equation."""
        return f if self.relaxation == 1 else z + self.relaxation * (f - z)

    def prediction(self, f: Tensor) -> Tensor:
        """Return the prediction ``y(z)``, ``[B,C,h,w]``, for which ``A z_s + B y(z)`` is ``f``.

        The method does not evaluate the network. The coefficient ``B`` must not be 0.
        """
        return (f - self.a * self.z_s) / self.b


@dataclass(frozen=True)
class Solution:
    """The result of a solver for a batch of implicit equations ``z = f(z)``.

    For each sample, the solver selects one of the iterates at which it evaluated ``f``, usually the iterate with the
    smallest residual. ``z_k`` is the selected iterate.

    Attributes:
        z: ``[B,C,h,w]``, the solution. For a converged sample, ``z`` is the selected iterate ``z_k``. For a sample that
            has not converged, ``z`` is the solver's next iterate (in most solvers ``f(z_k)``), at which ``f`` was not
            evaluated.
        residual: ``[B]``, mean ``|z_k - f(z_k)|`` over the elements of the selected iterate ``z_k``. The residual is
            ``inf`` if the last evaluation of the sample was not finite. The tensors ``residual`` and ``converged`` are
            on the CPU or on the device of ``z``.
        nfe: int64 ``[B]``, number of network evaluations of each sample.
        backward: int64 ``[B]``, number of backward passes of each sample.
        converged: bool ``[B]``, whether ``f`` was evaluated at ``z`` and the residual at ``z`` is at most the
            tolerance.
        value: ``[B,C,h,w]``, the value ``f(z_k)`` at the selected iterate ``z_k``, usually the iterate with the
            smallest residual.
    """

    z: Tensor
    residual: Tensor
    nfe: Tensor
    backward: Tensor
    converged: Tensor
    value: Tensor


@runtime_checkable
class Solver(Protocol):
    """Solves ``z = f(z)`` for a batch; the solution of a sample does not depend on the other samples."""

    @property
    def tolerance(self) -> float: ...
    @property
    def iterations(self) -> int: ...

    def __call__(self, problem: ImplicitStep, z_init: Tensor, max_nfe: Tensor | None = None) -> Solution:
        """Solve ``problem`` from the initial guess ``z_init [B,C,h,w]``.

        ``max_nfe`` (int64 ``[B]``, 1 or more) is the maximum number of network evaluations of each sample. If
        ``max_nfe`` is None, the maximum is the solver's ``iterations``.
        """
        ...


def mean_absolute(difference: Tensor) -> Tensor:
    """Return the mean of ``|difference|`` over the elements of each sample, ``[B]``."""
    return difference.abs().flatten(1).mean(1)
