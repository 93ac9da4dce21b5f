"""Seed space as a surface of revolution: what a unit of length costs at each norm, in coordinates that suit it.

With `t = log(norm / mode)` a unit of length costs `c(t) = -log chi_d = c0 + (d-1) (expm1(2t)/2 - t)` nats, and the
line element of NAO's energy is `f(t) sqrt(dt^2 + dangle^2)` with `f = norm * c`. Circles about the origin cost
least, 2 pi `waist_cost`, at the waist `t*`, a hair inside the mode; there `f = waist_cost * cosh(alpha)` defines the
signed height `alpha` over the waist, in which every shortest path is a closed form (:mod:`nao.geodesic`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nao.norm import peak_log_density, typical_norm

LEAST_NORM, MOST_NORM = 0.35, 10.0  # of the mode; below 0.26 circles become cheaper again, towards the origin
LEAST_COMPONENTS = 16
STEP = 1 / 64  # of the table in alpha; its cubics are then good to ten digits
BISECTIONS = 60


@dataclass(frozen=True)
class Shell:
    """The surface for seeds of ``d`` components; ``slopes`` and ``heights [M, 4]`` are cubics in ``alpha``."""

    d: int
    waist: float
    waist_cost: float
    first: int
    slopes: Tensor
    heights: Tensor

    @property
    def waist_slope(self) -> float:
        """``dt/dalpha`` at the waist: the angle, too, over which a path closes in on the waist by a factor e."""
        return self.slopes[-self.first, 0].item()

    def alpha(self, t: Tensor) -> Tensor:
        """Signed height over the waist of ``t = log(norm / mode)``."""
        excess = log_cost_ratio(t - self.waist, self.waist, self.d)
        # arcosh(exp(x)) for small x, where exp(x) - 1 keeps the digits
        grown = torch.expm1(excess.clamp_min(0))
        return torch.sign(t - self.waist) * torch.log1p(grown + (grown * (grown + 2)).sqrt())

    def slope(self, alpha: Tensor) -> Tensor:
        """``dt/dalpha``."""
        return self._cubic(alpha, self.slopes)

    def t(self, alpha: Tensor) -> Tensor:
        """Inverse of ``alpha``."""
        return self._cubic(alpha, self.heights)

    def _cubic(self, alpha: Tensor, table: Tensor) -> Tensor:
        place = alpha / STEP - self.first
        row = place.long().clamp_(0, len(table) - 1)
        x = place - row
        c0, c1, c2, c3 = table[row].unbind(-1)
        return c0 + x * (c1 + x * (c2 + x * c3))


def log_cost_ratio(u: Tensor, waist: float, d: int) -> Tensor:
    """``log f(waist + u) - log f(waist)``, without the digits that subtracting the two would lose."""
    c = unit_cost(torch.tensor(waist, dtype=torch.float64), d)
    return u + torch.log1p((d - 1) * (math.exp(2 * waist) * torch.expm1(2 * u) / 2 - u) / c)


def unit_cost(t: Tensor, d: int) -> Tensor:
    """``-log chi_d`` at ``t = log(norm / mode)``, in nats a unit of length."""
    return -peak_log_density(d) + (d - 1) * (torch.expm1(2 * t) / 2 - t)


def radial_cost(ratio: Tensor, d: int) -> Tensor:
    """The cost of the straight line from the origin to ``ratio`` times the mode: the integral of ``unit_cost``."""
    excess = (d - 1) * (ratio.pow(3) / 6 + ratio / 2 - ratio * ratio.log())
    return typical_norm(d) * (excess - peak_log_density(d) * ratio)


@lru_cache(maxsize=8)
def shell_of(d: int) -> Shell:
    """The surface for ``d`` components, tabulated once.

    Raises:
        ValueError: fewer than 16 components, where no norm is typical enough to have a waist well above the origin.
    """
    if d < LEAST_COMPONENTS:
        raise ValueError(f"d={d}: paths need seeds of at least {LEAST_COMPONENTS} components.")
    waist = _waist(d)
    cost = typical_norm(d) * math.exp(waist) * unit_cost(torch.tensor(waist, dtype=torch.float64), d).item()
    bare = Shell(d, waist, cost, 0, torch.empty(0), torch.empty(0))
    ends = bare.alpha(torch.tensor([LEAST_NORM, MOST_NORM], dtype=torch.float64).log())
    first, last = math.floor(ends[0].item() / STEP), math.ceil(ends[1].item() / STEP)
    alpha = STEP * torch.arange(first, last + 1, dtype=torch.float64)
    t, slope, bend = _invert(bare, alpha)
    return Shell(d, waist, cost, first, _hermite(slope, bend), _hermite(t, slope))


def _waist(d: int) -> float:
    """Where ``f' = 0``, by Newton's method from its limit for large d."""
    c0 = -peak_log_density(d)
    t = -c0 / (2 * (d - 1))
    for _ in range(20):
        t -= (c0 / (d - 1) + 1.5 * math.expm1(2 * t) - t) / (3 * math.exp(2 * t) - 1)
    return t


def _invert(shell: Shell, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``t``, ``dt/dalpha`` and ``d2t/dalpha2`` at the heights ``alpha``, 0 among them."""
    d, waist = shell.d, shell.waist
    at_waist = torch.full_like(alpha, waist)
    low = torch.where(alpha < 0, math.log(LEAST_NORM) - 0.05, at_waist)
    high = torch.where(alpha < 0, at_waist, math.log(MOST_NORM) + 0.05)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = shell.alpha(middle) < alpha
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    t = torch.where(alpha == 0, at_waist, (low + high) / 2)
    grown = (d - 1) * torch.exp(2 * t)
    cost = unit_cost(t, d)
    first = (d - 1) * (1.5 * math.exp(2 * waist) * torch.expm1(2 * (t - waist)) - (t - waist)) / cost
    second = 2 * grown / cost - ((d - 1) * torch.expm1(2 * t) / cost).square()
    slope = alpha.tanh() / first
    bend = (1 / alpha.cosh().square() - slope.square() * second) / first
    # at the waist both are 0/0, and their limits come from the series of log f
    third = (10 * grown / cost - 2)[alpha == 0]
    slope[alpha == 0] = second[alpha == 0].rsqrt()
    bend[alpha == 0] = -third / (3 * second[alpha == 0].square())
    return t, slope, bend


def _hermite(value: Tensor, slope: Tensor) -> Tensor:
    """Coefficients ``[M-1, 4]`` in the fraction of a step of the cubics through values and slopes ``[M]``."""
    left, right = STEP * slope[:-1], STEP * slope[1:]
    rise = value.diff()
    return torch.stack([value[:-1], left, 3 * rise - 2 * left - right, left + right - 2 * rise], 1)
