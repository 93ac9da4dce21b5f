"""The metric of seed space whose geodesics are the NAO paths.

A unit of length of a path costs ``-log chi_d(norm)`` nats, where chi_d is the density of the chi distribution. The cost
depends only on the norm of a seed, not on the direction of the seed. Therefore the metric is rotationally symmetric,
and the path between two seeds is a geodesic on a surface of revolution. Symbols:

- ``d``: number of components of a seed; the *mode* is the most likely norm, ``sqrt(d - 1)``.
- ``t = log(norm / mode)``: the radial coordinate. A unit of length costs
  ``c(t) = -log chi_d = c0 + (d - 1) (expm1(2t)/2 - t)`` with ``c0 = -log chi_d(mode)``.
- ``f(t) = norm * c(t)``: the cost per radian along a circle around the origin, and the cost per unit of ``t`` along a
  radial line. The line element of the metric is ``f(t) sqrt(dt^2 + dangle^2)``.
- *waist*: the circle around the origin with the smallest ``f``; its norm is slightly less than the mode. ``waist`` is
  the value of ``t`` on the waist, and ``waist_cost`` is the value of ``f`` on the waist.
- ``alpha``: the signed height above the waist, defined by ``f(t) = waist_cost * cosh(alpha)``. As a function of
  ``alpha``, every path of minimum energy has a closed form (see :mod:`nao.geodesic`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nao.norm import peak_log_density, typical_norm

# Range of norm / mode in the tables. The tables start above 0.26, because for norm / mode below 0.26, the cost per
# radian of a path along a circle around the origin decreases towards the origin.
MIN_NORM_RATIO = 0.35
MAX_NORM_RATIO = 10.0
MIN_COMPONENTS = 16  # minimum number of components of a seed
TABLE_STEP = 1 / 64  # spacing of the tables in alpha, for which the cubic interpolation is accurate to ten digits
BISECTIONS = 60  # number of bisection steps with which t is computed from alpha


@dataclass(frozen=True)
class RadialMetric:
    """The metric for seeds of ``d`` components, as tables over the height ``alpha``.

    The waist is the circle around the origin along which a path has the lowest cost per radian. ``alpha`` is the signed
    height of a norm above the waist, and ``t = log(norm / mode)``; the docstring of the module defines both.

    Attributes:
        d: number of components of a seed.
        waist: value of ``t`` at the waist.
        waist_cost: cost per radian of a path along the waist, in nats times units of length.
        first_index: ``alpha`` of the first table row, divided by ``TABLE_STEP``.
        slopes: ``[M,4]``, ``dt/dalpha`` as a function of ``alpha``: the coefficients of a cubic polynomial for each of
            the M table intervals.
        heights: ``[M,4]``, ``t`` as a function of ``alpha``: the coefficients of a cubic polynomial for each of the M
            table intervals.
    """

    d: int
    waist: float
    waist_cost: float
    first_index: int
    slopes: Tensor
    heights: Tensor

    @property
    def waist_slope(self) -> float:
        """Value of ``dt/dalpha`` at the waist.

        Over an angle of ``waist_slope`` radians, the distance between a path and the waist decreases by a factor of e.
        """
        return self.slopes[-self.first_index, 0].item()

    def alpha(self, t: Tensor) -> Tensor:
        """Signed height ``alpha`` above the waist for ``t = log(norm / mode)``."""
        log_ratio = log_cost_ratio(t - self.waist, self.waist, self.d)
        # Compute alpha = arcosh(exp(log_ratio)); expm1 preserves the precision for small values of log_ratio.
        ratio_minus_1 = torch.expm1(log_ratio.clamp_min(0))
        return torch.sign(t - self.waist) * torch.log1p(ratio_minus_1 + (ratio_minus_1 * (ratio_minus_1 + 2)).sqrt())

    def slope(self, alpha: Tensor) -> Tensor:
        """Derivative ``dt/dalpha`` at the height ``alpha``."""
        return self._cubic(alpha, self.slopes)

    def t(self, alpha: Tensor) -> Tensor:
        """Value of ``t = log(norm / mode)`` at the height ``alpha``; the inverse of :meth:`alpha`."""
        return self._cubic(alpha, self.heights)

    def _cubic(self, alpha: Tensor, table: Tensor) -> Tensor:
        position = alpha / TABLE_STEP - self.first_index
        row = position.long().clamp_(0, len(table) - 1)
        x = position - row
        c0, c1, c2, c3 = table[row].unbind(-1)
        return c0 + x * (c1 + x * (c2 + x * c3))


def log_cost_ratio(u: Tensor, waist: float, d: int) -> Tensor:
    """Return ``log f(waist + u) - log f(waist)``; the formula is accurate also for small ``u``.

    ``f(t)`` is the cost per radian of a path along the circle around the origin with ``t = log(norm / mode)``.
    """
    c = unit_cost(torch.tensor(waist, dtype=torch.float64), d)
    return u + torch.log1p((d - 1) * (math.exp(2 * waist) * torch.expm1(2 * u) / 2 - u) / c)


def unit_cost(t: Tensor, d: int) -> Tensor:
    """Return the cost ``c(t) = -log chi_d(norm)`` for ``t = log(norm / mode)``, in nats per unit of length.

    chi_d is the density of the norm of a Gaussian seed with ``d`` components, and mode is the norm at which chi_d is
    highest.
    """
    return -peak_log_density(d) + (d - 1) * (torch.expm1(2 * t) / 2 - t)


def radial_cost(ratio: Tensor, d: int) -> Tensor:
    """Return the cost of a radial line from the origin to the norm ``ratio * mode``.

    The cost is the integral of :func:`unit_cost` over the norm.
    """
    integral = (d - 1) * (ratio.pow(3) / 6 + ratio / 2 - ratio * ratio.log())
    return typical_norm(d) * (integral - peak_log_density(d) * ratio)


@lru_cache(maxsize=8)
def radial_metric(d: int) -> RadialMetric:
    """Compute the metric and its tables for seeds of ``d`` components; the result is cached.

    Raises:
        ValueError: ``d`` is less than 16. For fewer than 16 components, the cost per radian of a path along a circle
            around the origin may have no minimum (waist), because the density of the norm is too broad.
    """
    if d < MIN_COMPONENTS:
        raise ValueError(f"d={d}: NAO paths need seeds with at least {MIN_COMPONENTS} components; pass larger seeds.")
    waist = _waist(d)
    waist_cost = typical_norm(d) * math.exp(waist) * unit_cost(torch.tensor(waist, dtype=torch.float64), d).item()
    without_tables = RadialMetric(d, waist, waist_cost, 0, torch.empty(0), torch.empty(0))
    ends = without_tables.alpha(torch.tensor([MIN_NORM_RATIO, MAX_NORM_RATIO], dtype=torch.float64).log())
    first = math.floor(ends[0].item() / TABLE_STEP)
    last = math.ceil(ends[1].item() / TABLE_STEP)
    alpha = TABLE_STEP * torch.arange(first, last + 1, dtype=torch.float64)
    t, slope, curvature = _invert(without_tables, alpha)
    return RadialMetric(d, waist, waist_cost, first, slopes=_hermite(slope, curvature), heights=_hermite(t, slope))


def _waist(d: int) -> float:
    """Return ``t = log(norm / mode)`` at the waist.

    At the waist, the cost per radian ``f(t)`` of a path along a circle around the origin is smallest. The equation
    ``f'(t) = 0`` is solved by Newton's method, which starts at the limit of ``t`` for a large number of components.
    """
    c0 = -peak_log_density(d)
    t = -c0 / (2 * (d - 1))
    for _ in range(20):
        t -= (c0 / (d - 1) + 1.5 * math.expm1(2 * t) - t) / (3 * math.exp(2 * t) - 1)
    return t


def _invert(metric: RadialMetric, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``t = log(norm / mode)``, ``dt/dalpha`` and ``d2t/dalpha2`` at the heights ``alpha`` above the waist.

    ``t`` is computed by bisection. One of the heights must be 0.
    """
    d, waist = metric.d, metric.waist
    at_waist = torch.full_like(alpha, waist)
    low = torch.where(alpha < 0, math.log(MIN_NORM_RATIO) - 0.05, at_waist)
    high = torch.where(alpha < 0, at_waist, math.log(MAX_NORM_RATIO) + 0.05)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_below = metric.alpha(middle) < alpha
        low = torch.where(is_below, middle, low)
        high = torch.where(is_below, high, middle)
    t = torch.where(alpha == 0, at_waist, (low + high) / 2)
    square_norm = (d - 1) * torch.exp(2 * t)
    cost = unit_cost(t, d)
    # Compute the first and second derivative of log f with respect to t. Because f is proportional to cosh(alpha), the
    # first derivative is tanh(alpha) dalpha/dt.
    first = (d - 1) * (1.5 * math.exp(2 * waist) * torch.expm1(2 * (t - waist)) - (t - waist)) / cost
    second = 2 * square_norm / cost - ((d - 1) * torch.expm1(2 * t) / cost).square()
    slope = alpha.tanh() / first
    curvature = (1 / alpha.cosh().square() - slope.square() * second) / first
    # At the waist, slope and curvature are 0/0. Their limits follow from the second and third derivative of log f.
    third = (10 * square_norm / cost - 2)[alpha == 0]
    slope[alpha == 0] = second[alpha == 0].rsqrt()
    curvature[alpha == 0] = -third / (3 * second[alpha == 0].square())
    return t, slope, curvature


def _hermite(value: Tensor, slope: Tensor) -> Tensor:
    """Return the coefficients ``[M-1,4]`` of the cubic Hermite spline with values ``[M]`` and slopes ``[M]`` on a grid.

    The spacing of the grid is ``TABLE_STEP``. The argument of a cubic is the position in its grid interval, from 0 to
    1.
    """
    left, right = TABLE_STEP * slope[:-1], TABLE_STEP * slope[1:]
    rise = value.diff()
    return torch.stack([value[:-1], left, 3 * rise - 2 * left - right, left + right - 2 * rise], 1)
