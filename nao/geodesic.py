"""The continuous path of minimum NAO energy between two seeds.

The energy of a path is the integral of ``-log chi_d(norm)`` over the length of the path. By symmetry, the path of
minimum energy lies in the plane that contains the origin and both seeds. In this plane the path is a geodesic of the
metric in :mod:`nao.radial_metric`. :mod:`nao.radial_metric` defines the symbols of this module, for example ``f``,
``t``, ``alpha`` and the waist. The path satisfies Clairaut's relation (do Carmo, "Differential Geometry of Curves and
Surfaces", section 4-4): ``momentum = f^2 dangle/ds`` is constant along the path, where ``s`` is the energy from the
start of the path.

Let ``a`` and ``b`` be the heights (``alpha``) of the two ends. The path is parameterized by ``y``, from 0 to the
*extent* ``Y``, such that ``dangle = momentum * slope / cosh(alpha) dy`` with ``slope = dt/dalpha``. Clairaut's relation
then gives

    sinh(alpha(y)) = (sinh(a) sinh(Y - y) + sinh(b) sinh(y)) / sinh(Y).

The only unknown is ``Y``, which is determined by the angle between the two ends. ``Y`` is computed by Newton's method.

Far from both ends, a path is close to the waist, the norm with the lowest cost per radian: the distance to the waist is
proportional to ``exp(-y)``. For seeds of 16,384 components, the distance to the waist decreases by the factor exp(-375)
along a path of pi/2 radians. To avoid overflow, the code computes exponentials only of negative distances to the ends.

All tensors are float64. All operations are elementwise, so that the solution of a path does not depend on the other
paths of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nao.radial_metric import RadialMetric

# Number of panels of the Gauss-Legendre quadrature in a boundary layer, and number of nodes per panel. A boundary layer
# is the part of a path between one end and the waist.
PANELS, NODES = 12, 10
# The length of a boundary layer in y is BOUNDARY_LAYER plus the larger of the heights |alpha| of the two ends, but at
# most half the extent of the path. Beyond this length, the distance to the waist is at most exp(-26), which is
# negligible.
BOUNDARY_LAYER = 26.0
MIN_ANGLE_RAD = 1e-9  # smaller angles between the ends are replaced by MIN_ANGLE_RAD
SHORT_TURN = 0.3  # if angle / (dt/dalpha) is less than SHORT_TURN, the path does not come close to the waist
MAX_NEWTON_STEPS = 60
RELATIVE_DIFFERENCE = 1e-6  # relative step size of finite differences
ANGLE_RTOL = 1e-11  # relative tolerance of the angle between the ends


@dataclass(frozen=True)
class Geodesics:
    """Paths of minimum energy (geodesics), computed by :func:`solve_geodesics`; every tensor has the shape ``[...]``.

    ``momentum``, ``end_slope`` and their derivatives are in units of ``metric.waist_cost``. The radial coordinate of a
    point is ``t = log(norm / mode)``.

    Attributes:
        metric: the metric that defines the energy of a path.
        a, b: heights ``alpha`` of the two ends above the waist (see :mod:`nao.radial_metric`).
        angle: angle between the ends, in radians.
        w: the unknown of Newton's method, defined by ``extent^2 = (a - b)^2 + w^2``.
        momentum: derivative of the energy with respect to ``angle``.
        stiffness: derivative of ``momentum`` with respect to ``angle``; 0 for paths along the waist.
        coupling: derivative of ``momentum`` with respect to ``t`` of end b.
        radial_stiffness: derivative of ``end_slope`` with respect to ``t`` of end b.
        energy: energy of the path, in nats times units of length.
        converged: bool ``[...]``, whether Newton's method reached the tolerance ``ANGLE_RTOL``.
    """

    metric: RadialMetric
    a: Tensor
    b: Tensor
    angle: Tensor
    w: Tensor
    momentum: Tensor
    stiffness: Tensor
    coupling: Tensor
    radial_stiffness: Tensor
    energy: Tensor
    converged: Tensor

    @property
    def extent(self) -> Tensor:
        """The extent ``Y`` of each path: the path parameter ``y`` is 0 at end a and ``Y`` at end b."""
        return torch.hypot(self.a - self.b, self.w)

    @property
    def end_slope(self) -> Tensor:
        """Derivative of the energy with respect to ``t = log(norm / mode)`` of end b, in units of ``waist_cost``.

        The derivative satisfies ``momentum^2 + end_slope^2 = cosh(b)^2``.
        """
        return _end_slope(self.a, self.b, self.extent)

    def sample(self, fractions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the points of each path at the fractions ``fractions [...,K]`` of the path's length.

        Returns:
            ``t [...,K]`` of the points, the angles ``[...,K]`` in radians between end a and the points, and the lengths
            ``[...]`` of the paths in units of the mode (the most likely norm of a seed).
        """
        quadrature = _Quadrature(self.metric, self.a, self.b, self.extent)
        radius = self.metric.t(quadrature.alpha).exp()
        angle_rate = self.momentum[..., None] * quadrature.slope / quadrature.cosh
        lengths = quadrature.cumulate(radius * quadrature.slope)
        angles = quadrature.cumulate(angle_rate)
        total = lengths[..., -1:]
        targets = torch.broadcast_to(total * fractions, (*total.shape[:-1], fractions.shape[-1]))
        y = _interpolate(
            targets, lengths, quadrature.knots, slopes=1 / quadrature.extend_to_knots(radius * quadrature.slope)
        )
        angle = _interpolate(y, quadrature.knots, angles, slopes=quadrature.extend_to_knots(angle_rate))
        angle = angle * (self.angle[..., None] / angles[..., -1:])
        extent = self.extent[..., None]
        sinh = _sinh_height(self.a[..., None], self.b[..., None], extent, from_a=y, from_b=extent - y)
        return self.metric.t(sinh.asinh()), angle, total[..., 0]


def solve_geodesics(
    metric: RadialMetric, a: Tensor, b: Tensor, angle: Tensor, *, warm_start: Geodesics | None = None
) -> Geodesics:
    """Compute the paths of minimum energy between ends with the heights ``a`` and ``b`` and the given ``angle``.

    The unknown is ``w = sqrt(Y^2 - (a - b)^2)``, where ``Y`` is the extent of the path (:attr:`Geodesics.extent`). The
    angle is an almost linear function of ``w``. The solver is Newton's method. A Newton step that leaves the current
    bracket of the root is replaced by bisection. The tensors ``a``, ``b`` and ``angle`` are broadcast to the batch
    shape ``[...]``.

    Args:
        metric: the metric that defines the energy of a path.
        a, b: heights ``alpha`` of the two ends above the waist (see :mod:`nao.radial_metric`).
        angle: angle between the ends in radians.
        warm_start: solved geodesics between similar ends, from which the initial guess is computed.
    """
    a, b, angle = torch.broadcast_tensors(a, b, angle.clamp_min(MIN_ANGLE_RAD))
    w = _initial_guess(metric, a, b, angle)
    if warm_start is not None:
        runs_along_waist = warm_start.w > angle / metric.waist_slope / 2
        w = torch.where(runs_along_waist, warm_start.w + (angle - warm_start.angle) / metric.waist_slope, w)
    low = torch.zeros_like(w)
    high = torch.full_like(w, torch.inf)
    for _ in range(MAX_NEWTON_STEPS):
        momenta, angles = _momentum_and_angle(metric, a, b, torch.stack([w, w * (1 + RELATIVE_DIFFERENCE)]))
        error = angles[0] - angle
        derivative = (angles[1] - angles[0]) / (RELATIVE_DIFFERENCE * w)
        active = error.abs() > ANGLE_RTOL * angle
        if not active.any():
            break
        low = torch.where(error < 0, w, low)
        high = torch.where(error > 0, w, high)
        newton = w - error / derivative
        fallback = torch.where(high.isinf(), 2 * w, (low + high) / 2)
        w = torch.where(active, torch.where((newton > low) & (newton < high), newton, fallback), w)
    momentum = momenta[0]
    extent = torch.hypot(a - b, w)
    quadrature = _Quadrature(metric, a, b, extent)
    energy = metric.waist_cost * quadrature.integrate(quadrature.cosh * quadrature.slope)
    stiffness = (momenta[1] - momentum) / (RELATIVE_DIFFERENCE * w * derivative)
    # Compute finite differences with respect to the height of end b, at a constant angle.
    rise = RELATIVE_DIFFERENCE * extent.clamp_max(1)
    risen_momentum, risen_angle = _momentum_and_angle(metric, a, b + rise, w)
    angle_change = risen_angle - angles[0]
    coupling = (risen_momentum - momentum - stiffness * angle_change) / rise
    risen_extent = torch.hypot(a - b - rise, w - angle_change / derivative)
    slope_change = _end_slope(a, b + rise, risen_extent) - _end_slope(a, b, extent)
    slope = metric.slope(b)  # dt = slope * dalpha
    return Geodesics(
        metric=metric,
        a=a,
        b=b,
        angle=angle,
        w=w,
        momentum=momentum,
        stiffness=stiffness,
        coupling=coupling / slope,
        radial_stiffness=slope_change / (rise * slope),
        energy=energy,
        converged=~active,
    )


def _end_slope(a: Tensor, b: Tensor, extent: Tensor) -> Tensor:
    """Return the derivative of a path's energy with respect to ``t = log(norm / mode)`` of end b.

    In units of ``waist_cost`` (the lowest cost per radian), the derivative is
    ``(sinh(b) cosh(Y) - sinh(a)) / sinh(Y)``, where ``a`` and ``b`` are the heights ``alpha`` of the ends above the
    waist. ``Y`` is the ``extent``. The formula is evaluated without overflow for a large extent.
    """
    denominator = -torch.expm1(-2 * extent)
    return (b.sinh() * (2 - denominator) - 2 * a.sinh() * (-extent).exp()) / denominator


def _initial_guess(metric: RadialMetric, a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    """Return the initial guess of Newton's method for the unknown ``w`` of :func:`solve_geodesics`.

    The guess is exact for a metric with constant ``dt/dalpha``, which is the metric of the hyperbolic plane.
    """
    local = angle / metric.slope((a + b) / 2)
    turn = torch.where(local < SHORT_TURN, local, angle / metric.waist_slope)
    capped = turn.clamp_max(40.0)
    transverse = a.cosh() * b.cosh() * torch.sinh(capped / 2).square()
    extent = 2 * torch.asinh((torch.sinh((a - b) / 2).square() + transverse).sqrt()) + turn - capped
    # The difference extent^2 - (a - b)^2 loses precision for nearly radial paths. Therefore use `turn` as a lower bound
    # of w.
    return torch.maximum((extent.square() - (a - b).square()).clamp_min(0).sqrt(), turn.clamp_max(SHORT_TURN))


def _momentum_and_angle(metric: RadialMetric, a: Tensor, b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the momentum and the angle in radians of the paths for given values of the unknown ``w``.

    The momentum is the derivative of the energy with respect to the angle, in units of ``metric.waist_cost``. ``a`` and
    ``b`` are the heights of the two ends, and ``w`` is the unknown of :func:`solve_geodesics`.
    """
    difference, total, extent = (a - b).abs(), a + b, torch.hypot(a - b, w)
    quadrature = _Quadrature(metric, a, b, extent)
    # The square of the momentum is a product of factors. The factor that depends on w is 0 for a radial path.
    radial = torch.expm1(-w.square() / (extent + difference)) * torch.expm1(-extent - difference)
    product = radial * (1 + (total - extent).exp()) * (1 + (-total - extent).exp())
    momentum = product.sqrt() / -torch.expm1(-2 * extent)
    return momentum, momentum * quadrature.integrate(quadrature.slope / quadrature.cosh)


def _sinh_height(a: Tensor, b: Tensor, extent: Tensor, *, from_a: Tensor, from_b: Tensor) -> Tensor:
    """Return ``sinh`` of the height ``alpha`` at points of a path.

    ``from_a`` and ``from_b`` are the distances of a point from the two ends, in the path parameter ``y``. The sum of
    the two distances is ``extent``.
    """
    near_a, near_b, full = (torch.expm1(-y) for y in (from_a, from_b, extent))
    # For x = expm1(-from_a) and x' = expm1(-from_b), (1 + x) x' (2 + x') equals exp(-from_a) (exp(-2 from_b) - 1).
    left = a.sinh() * (1 + near_a) * near_b * (2 + near_b)
    right = b.sinh() * (1 + near_b) * near_a * (2 + near_a)
    return (left + right) / (full * (2 + full))


class _Quadrature:
    """Numerical integration over the path parameter ``y`` along each path.

    A path consists of a boundary layer at each end and of the part along the waist between the two boundary layers.
    Each boundary layer has ``PANELS * NODES`` nodes, and the part along the waist has one node.
    """

    def __init__(self, metric: RadialMetric, a: Tensor, b: Tensor, extent: Tensor) -> None:
        nodes, weights, self.stretch, self.rule = _layer_rule()
        max_height = torch.maximum(a.abs(), b.abs())
        self.extent = extent[..., None]
        self.layer = torch.minimum(extent / 2, max_height + BOUNDARY_LAYER)[..., None]
        offsets = self.layer * nodes
        waist_length = self.extent - 2 * self.layer
        from_a = torch.cat([offsets, self.extent / 2, self.extent - offsets.flip(-1)], -1)
        from_b = torch.cat([self.extent - offsets, self.extent / 2, offsets.flip(-1)], -1)
        self.weights = torch.cat([self.layer * weights, waist_length, self.layer * weights.flip(-1)], -1)
        self.knots = torch.cat([torch.zeros_like(self.extent), from_a, self.extent], -1)
        sinh = _sinh_height(a[..., None], b[..., None], self.extent, from_a=from_a, from_b=from_b)
        self.alpha = sinh.asinh()
        self.cosh = (1 + sinh.square()).sqrt()
        self.slope = metric.slope(self.alpha)

    def integrate(self, values: Tensor) -> Tensor:
        """Integral ``[...]`` over the whole path of the function that has the given ``values`` at the nodes."""
        return (self.weights * values).sum(-1)

    def cumulate(self, values: Tensor) -> Tensor:
        """Integrals from end a to every knot, of the function that has the given ``values`` at the nodes.

        The knots are end a, the nodes, and end b. The integral to end a is zero.
        """
        left, middle, right = values.tensor_split([PANELS * NODES, PANELS * NODES + 1], -1)
        half_waist = middle * (self.extent - 2 * self.layer) / 2
        before = self._cumulate_layer(left, self.stretch)
        after = self._cumulate_layer(right, self.stretch.flip(-1))
        center = before[..., -1:] + half_waist
        return torch.cat([torch.zeros_like(half_waist), before[..., :-1], center, center + half_waist + after], -1)

    def _cumulate_layer(self, values: Tensor, stretch: Tensor) -> Tensor:
        """Integrals from the start of a boundary layer to each of its nodes, and over the whole layer (last entry)."""
        panels = (self.layer * stretch * values).unflatten(-1, (PANELS, NODES))
        parts = panels @ self.rule.T  # integrals to each node of a panel, and over the whole panel
        panel_ends = parts[..., -1].cumsum(-1)
        panel_starts = torch.cat([torch.zeros_like(panel_ends[..., :1]), panel_ends[..., :-1]], -1)
        return torch.cat([(parts[..., :-1] + panel_starts[..., None]).flatten(-2), panel_ends[..., -1:]], -1)

    def extend_to_knots(self, values: Tensor) -> Tensor:
        """Extend the ``values`` of a function at the nodes of the quadrature to all knots: end a, the nodes, and end b.

        The value at end a is the value at the first node, and the value at end b is the value at the last node.
        """
        return torch.cat([values[..., :1], values, values[..., -1:]], -1)


@lru_cache(maxsize=1)
def _layer_rule() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the quadrature rule of a boundary layer, scaled to [0, 1]; the nodes are densest near 0.

    Returns:
        The nodes, the weights, the length of the panel at each node (all ``[PANELS * NODES]``), and the matrix
        ``[NODES + 1, NODES]`` that integrates from the start of a panel to each of its nodes and to its end.
    """
    x, w = np.polynomial.legendre.leggauss(NODES)
    legendre = np.polynomial.legendre
    limits = np.append(x, 1.0)
    integrals = np.stack([legendre.legval(limits, legendre.legint(row, lbnd=-1)) for row in np.eye(NODES)], 1)
    rule = integrals @ np.linalg.inv(legendre.legvander(x, NODES - 1)) / 2
    s = (np.arange(PANELS)[:, None] + (x + 1) / 2).ravel() / PANELS
    weights = np.tile(w / 2, PANELS) / PANELS
    return (
        torch.from_numpy(s**2),
        torch.from_numpy(2 * s * weights),
        torch.from_numpy(2 * s / PANELS),
        torch.from_numpy(rule),
    )


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor, *, slopes: Tensor) -> Tensor:
    """Evaluate a cubic Hermite spline at ``x [...,K]``.

    The spline has the values ``ys [...,M]`` and the derivatives ``slopes [...,M]`` at the knots ``xs [...,M]``.
    """
    index = torch.searchsorted(xs.contiguous(), x.contiguous(), right=True).clamp(1, xs.shape[-1] - 1)
    x0, x1 = xs.gather(-1, index - 1), xs.gather(-1, index)
    y0, y1 = ys.gather(-1, index - 1), ys.gather(-1, index)
    width = x1 - x0
    s = torch.where(width > 0, (x - x0) / width, 0.0).clamp(0, 1)
    left, right = width * slopes.gather(-1, index - 1), width * slopes.gather(-1, index)
    rise = y1 - y0
    return y0 + s * (left + s * (3 * rise - 2 * left - right + s * (left + right - 2 * rise)))
