"""Denoising problems with known exact solutions, for tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from rnri import NoisePredictor, Schedule, alpha_bar_table

SHAPE = (2, 3, 3)


def scheduler(**options: object) -> DDIMScheduler:
    """Return Stable Diffusion's DDIM scheduler with changed ``options``."""
    defaults = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**(defaults | options))


def schedule(steps: int) -> Schedule:
    return Schedule.from_scheduler(scheduler(), steps)


@dataclass(frozen=True)
class GaussianDenoiser:
    """The optimal noise prediction for data N(mean, diag(variance)), each ``[B,C,h,w]``: affine in z.

    ``z_t`` is N(sqrt(a) mean, a variance + 1 - a), and the posterior mean of the noise is
    ``sqrt(1 - a) (z - sqrt(a) mean) / (a variance + 1 - a)``.
    """

    mean: Tensor
    variance: Tensor
    alpha_bar: Tensor

    def __call__(self, z: Tensor, t: int) -> Tensor:
        a = self.alpha_bar[t].item()
        mean, variance = self.mean.to(z.dtype), self.variance.to(z.dtype)
        return (1 - a) ** 0.5 * (z - a**0.5 * mean) / (a * variance + 1 - a)

    def select(self, rows: Tensor) -> GaussianDenoiser:
        return replace(self, mean=self.mean[rows], variance=self.variance[rows])

    def unguided(self) -> GaussianDenoiser:
        return self

    def step(self, z: Tensor, a_t: float, a_s: float) -> Tensor:
        """Return the DDIM step from ``alpha_bar = a_t`` to ``a_s`` in closed form."""
        return a_s**0.5 * self.mean + self._gain(a_t, a_s) * (z - a_t**0.5 * self.mean)

    def inverse_step(self, z_s: Tensor, a_t: float, a_s: float) -> Tensor:
        return a_t**0.5 * self.mean + (z_s - a_s**0.5 * self.mean) / self._gain(a_t, a_s)

    def _gain(self, a_t: float, a_s: float) -> Tensor:
        covariance = (a_t * a_s) ** 0.5 * self.variance + ((1 - a_t) * (1 - a_s)) ** 0.5
        return covariance / (a_t * self.variance + 1 - a_t)

    def seed(self, z0: Tensor, steps: Schedule) -> Tensor:
        """Return the exact seed of ``z0`` under DDIM's steps."""
        z = z0
        for i in reversed(range(len(steps))):
            z = self.inverse_step(z, steps.alpha_bar[i].item(), steps.alpha_bar_next[i].item())
        return z


def gaussian(batch: int, seed: int = 0) -> tuple[GaussianDenoiser, Tensor]:
    """Return a denoiser of Gaussian data, different for every sample, and latents ``[B,2,3,3]`` of that data."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *SHAPE)
    mean = torch.randn(shape, generator=generator, dtype=torch.float64)
    variance = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
    z0 = mean + variance.sqrt() * torch.randn(shape, generator=generator, dtype=torch.float64)
    return GaussianDenoiser(mean, variance, alpha_bar_table(scheduler())), z0


@dataclass(frozen=True)
class GaussianVelocity:
    """The optimal velocity ``E[n - x0 | z]`` for data N(mean, diag(variance)), each ``[B,C,h,w]``: affine in z.

    At the noise level ``s``, timestep ``1000 s``, ``z`` is N((1 - s) mean, (1 - s)^2 variance + s^2), so that the
    velocity is ``-mean + (s - (1 - s) variance) / ((1 - s)^2 variance + s^2) (z - (1 - s) mean)``.
    """

    mean: Tensor
    variance: Tensor

    def __call__(self, z: Tensor, t: float) -> Tensor:
        return self._at(z, t / 1000)

    def _at(self, z: Tensor, s: float) -> Tensor:
        return -self.mean + self._slope(s) * (z - (1 - s) * self.mean)

    def _slope(self, s: float) -> Tensor:
        return (s - (1 - s) * self.variance) / ((1 - s) ** 2 * self.variance + s**2)

    def select(self, rows: Tensor) -> GaussianVelocity:
        return replace(self, mean=self.mean[rows], variance=self.variance[rows])

    def unguided(self) -> GaussianVelocity:
        return self

    def seed(self, z0: Tensor, steps: Schedule) -> Tensor:
        """Return the exact seed of ``z0`` under Euler's steps."""
        z = z0
        for i in reversed(range(len(steps))):
            _, s, _, s_next = steps.alpha_sigma(i)
            slope = self._slope(s)
            z = (z + (s - s_next) * (-self.mean - slope * (1 - s) * self.mean)) / (1 - (s - s_next) * slope)
        return z

    def flow(self, z0: Tensor, s: float = 1.0) -> Tensor:
        """Return the solution of the continuous flow from ``z0`` at the noise level ``s``."""
        spread = ((1 - s) ** 2 * self.variance + s**2) / self.variance
        return (1 - s) * self.mean + spread.sqrt() * (z0 - self.mean)


def velocity(batch: int, seed: int = 0) -> tuple[GaussianVelocity, Tensor]:
    """Return the velocity of the data of :func:`gaussian`, and latents of that data."""
    denoiser, z0 = gaussian(batch, seed)
    return GaussianVelocity(denoiser.mean, denoiser.variance), z0


def flow_schedule(steps: int, shift: float = 1.0) -> Schedule:
    """Return evenly spaced flow-matching steps with a static shift, as in Stable Diffusion 3; t is ``1000 sigma``."""
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    sigmas = shift * even / (1 + (shift - 1) * even)
    return Schedule.flow(1000 * sigmas[:-1], sigmas)


@dataclass(frozen=True)
class FunctionDenoiser:
    """A noise prediction that is a function of ``z`` and of the sample's number."""

    function: Callable[[Tensor, Tensor], Tensor]
    numbers: Tensor

    def __call__(self, z: Tensor, t: int) -> Tensor:
        return self.function(z, self.numbers.view(-1, 1, 1, 1))

    def select(self, rows: Tensor) -> FunctionDenoiser:
        return replace(self, numbers=self.numbers[rows])

    def unguided(self) -> FunctionDenoiser:
        return self


def function_predictor(function: Callable[[Tensor, Tensor], Tensor], batch: int) -> NoisePredictor:
    return NoisePredictor(FunctionDenoiser(function, torch.arange(batch)))


def wavy(z: Tensor, number: Tensor) -> Tensor:
    """A smooth nonlinear noise prediction that couples the elements of a sample."""
    return torch.sin(z + number) + 0.3 * z.flatten(1).mean(1).view(-1, 1, 1, 1)


def _diagonal(x: Tensor) -> Tensor:
    return -torch.tensor([3, 2, 1.5, 1, 0.5], dtype=x.dtype) * x - 0.01 * (x @ x) * x


def _laplacian(x: Tensor) -> Tensor:
    matrix = torch.tensor([[-2, 1, 0], [1, -2, 1], [0, 1, -2]], dtype=x.dtype)
    return matrix @ x - torch.tensor([1, 2, 3], dtype=x.dtype)


def _powell(x: Tensor) -> Tensor:
    return torch.stack([1e4 * x[0] * x[1] - 1, (-x[0]).exp() + (-x[1]).exp() - (1 + 1e-4)])


def _pressure_network(x: Tensor) -> Tensor:
    pressures = 0.5 * x.square()
    return torch.cat([pressures[1:] - pressures[0], (x.sum() - 4)[None]])


def _near_jacobian(x: Tensor) -> Tensor:
    jacobian = torch.tensor([[-4.256, 14.7], [0.8394989, 0.59964207]], dtype=x.dtype)
    value = torch.stack([(x[0] + 3) * (x[1] ** 5 - 7) + 18, torch.sin(x[1] * x[0].exp() - 1)])
    return -torch.linalg.solve(jacobian, value)


NONLINEAR: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
    "diagonal": (_diagonal, [1, 1, 1, 1, 1]),
    "identity": (lambda x: x, [1, 2, 3, 4, 5, 6]),
    "laplacian": (_laplacian, [1, 2, 3]),
    "powell": (_powell, [-1, -2]),
    "pressure network": (_pressure_network, [2, 0, 2, 0]),
    "near Jacobian": (_near_jacobian, [-0.5, 1.4]),
}
"""Function ``F`` and initial guess of ``F(x) = 0``: the problems F1 to F6 of scipy's tests of nonlinear solvers."""
