"""The cheapest path between two seeds in the continuous limit of NAO's energy, in closed form but for one number.

A path costs the integral of ``-log chi_d(norm)`` over its length. By symmetry the cheapest lies in the plane of its
ends, and Clairaut's first integral ``f^2 dangle/ds = momentum`` is constant along it. With the height ``alpha`` of
:mod:`nao.shell` and the variable ``y`` of ``dangle = momentum * slope/cosh(alpha) dy`` it reads

    sinh(alpha(y)) = (sinh(alpha_a) sinh(Y - y) + sinh(alpha_b) sinh(y)) / sinh(Y),

so that only the extent ``Y`` is unknown, and the angle between the ends determines it. Far from its ends a path
runs along the waist, from which it departs like ``exp(-y)``: over pi/2 at d = 16,384 by a factor exp(-375) at least,
hence the exponentials written as powers of the distance to either end.

All tensors are float64 and elementwise: a path does not depend on those solved beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nao.shell import Shell

PANELS, NODES = 12, 10  # Gauss-Legendre rule of the layer in which a path leaves its end for the waist
LAYER = 26.0  # length of that layer beyond the height it starts from: exp(-26) is what it leaves out
COINCIDENT = 1e-9  # radians; ends closer than this are joined as if they were this far apart
SHORT = 0.3  # a turn, over the slope, that does not take a path to the waist
MOST_STEPS = 60
DIFFERENCE = 1e-6  # relative, of derivatives by difference quotients
TOLERANCE = 1e-11


@dataclass(frozen=True)
class Geodesics:
    """Paths ``[...]`` from height ``a`` to ``b`` across ``angle``: ``w`` with ``Y^2 = (a - b)^2 + w^2``, ``energy``.

    In units of ``shell.waist_cost``, the ``momentum`` is what a radian more between the ends would cost and
    ``end_slope`` what moving end b outwards by 1 in ``t`` would; the root of their squares' sum is ``cosh(b)``. Of
    these, ``stiffness`` is how the momentum grows with the angle (0 for paths along the waist), ``coupling`` how it
    grows with end b's ``t``, and ``radial_stiffness`` how the slope does.
    """

    shell: Shell
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
        """Y."""
        return torch.hypot(self.a - self.b, self.w)

    @property
    def end_slope(self) -> Tensor:
        return _end_slope(self.a, self.b, self.extent)

    def sample(self, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``t`` and angle from end a of the points at ``shares [..., K]`` of the length, and the lengths ``[...]``."""
        curve = _Curve(self.shell, self.a, self.b, self.extent)
        radius = self.shell.t(curve.alpha).exp()
        turn = self.momentum[..., None] * curve.slope / curve.cosh
        lengths, angles = curve.cumulate(radius * curve.slope), curve.cumulate(turn)
        total = lengths[..., -1:]
        wanted = torch.broadcast_to(total * shares, (*total.shape[:-1], shares.shape[-1]))
        y = _interpolate(wanted, lengths, curve.knots, 1 / curve.at_knots(radius * curve.slope))
        found = _interpolate(y, curve.knots, angles, curve.at_knots(turn)) * (self.angle[..., None] / angles[..., -1:])
        extent = self.extent[..., None]
        sinh = _sinh_height(self.a[..., None], self.b[..., None], extent, y, extent - y)
        return self.shell.t(sinh.asinh()), found, total[..., 0]


def join(shell: Shell, a: Tensor, b: Tensor, angle: Tensor, near: Geodesics | None = None) -> Geodesics:
    """The cheapest paths between ends at heights ``a`` and ``b``, ``angle`` radians apart, all broadcast to ``[...]``.

    Solves for the extent by Newton's method within a bracket, in ``w``, of which the angle is nearly a linear function
    for near and for far ends; paths solved before, ``near`` these, give it a start.
    """
    a, b, angle = torch.broadcast_tensors(a, b, angle.clamp_min(COINCIDENT))
    w = _guess(shell, a, b, angle)
    if near is not None:
        w = torch.where(near.w > angle / shell.waist_slope / 2, near.w + (angle - near.angle) / shell.waist_slope, w)
    low, high = torch.zeros_like(w), torch.full_like(w, torch.inf)
    for _ in range(MOST_STEPS):
        momentum, turned = _turned(shell, a, b, torch.stack([w, w * (1 + DIFFERENCE)]))
        error, derivative = turned[0] - angle, (turned[1] - turned[0]) / (DIFFERENCE * w)
        active = error.abs() > TOLERANCE * angle
        if not active.any():
            break
        low, high = torch.where(error < 0, w, low), torch.where(error > 0, w, high)
        step = w - error / derivative
        safe = torch.where(high.isinf(), 2 * w, (low + high) / 2)
        w = torch.where(active, torch.where((step > low) & (step < high), step, safe), w)
    extent = torch.hypot(a - b, w)
    curve = _Curve(shell, a, b, extent)
    energy = shell.waist_cost * curve.total(curve.cosh * curve.slope)
    stiffness = (momentum[1] - momentum[0]) / (DIFFERENCE * w * derivative)
    # across the same angle to an end b a little higher
    rise = DIFFERENCE * extent.clamp_max(1)
    higher, turned_higher = _turned(shell, a, b + rise, w)
    excess = turned_higher - turned[0]
    coupling = (higher - momentum[0] - stiffness * excess) / rise
    radial = _end_slope(a, b + rise, torch.hypot(a - b - rise, w - excess / derivative)) - _end_slope(a, b, extent)
    slope = shell.slope(b)  # dt is slope dalpha
    return Geodesics(
        shell, a, b, angle, w, momentum[0], stiffness, coupling / slope, radial / (rise * slope), energy, ~active
    )


def _end_slope(a: Tensor, b: Tensor, extent: Tensor) -> Tensor:
    whole = -torch.expm1(-2 * extent)
    return (b.sinh() * (2 - whole) - 2 * a.sinh() * (-extent).exp()) / whole


def _guess(shell: Shell, a: Tensor, b: Tensor, angle: Tensor) -> Tensor:
    """``w`` if the slope were the same all over: on the hyperbolic plane, whose arc length is y."""
    local = angle / shell.slope((a + b) / 2)
    turn = torch.where(local < SHORT, local, angle / shell.waist_slope)
    capped = turn.clamp_max(40.0)
    across = a.cosh() * b.cosh() * torch.sinh(capped / 2).square()
    extent = 2 * torch.asinh((torch.sinh((a - b) / 2).square() + across).sqrt()) + turn - capped
    # extent^2 - (a - b)^2, of which the difference would lose the digits where the path is nearly radial
    return torch.maximum((extent.square() - (a - b).square()).clamp_min(0).sqrt(), turn.clamp_max(SHORT))


def _turned(shell: Shell, a: Tensor, b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Momentum, in units of the waist's, and angle of the paths of parameter ``w``."""
    apart, both, extent = (a - b).abs(), a + b, torch.hypot(a - b, w)
    curve = _Curve(shell, a, b, extent)
    radial = torch.expm1(-w.square() / (extent + apart)) * torch.expm1(-extent - apart)  # 0 for a path along a radius
    product = radial * (1 + (both - extent).exp()) * (1 + (-both - extent).exp())
    momentum = product.sqrt() / -torch.expm1(-2 * extent)
    return momentum, momentum * curve.total(curve.slope / curve.cosh)


def _sinh_height(a: Tensor, b: Tensor, extent: Tensor, fore: Tensor, aft: Tensor) -> Tensor:
    """``sinh(alpha)`` at a distance ``fore`` in y from end a, ``aft`` from end b."""
    fore, aft, whole = (torch.expm1(-y) for y in (fore, aft, extent))
    # (1 + x) x (2 + x') is exp(-y) (exp(-2y') - 1) for x = exp(-y) - 1
    return (a.sinh() * (1 + fore) * aft * (2 + aft) + b.sinh() * (1 + aft) * fore * (2 + fore)) / (whole * (2 + whole))


class _Curve:
    """A quadrature over y for each path: a layer at each end and the waist between, ``[..., 2 PANELS NODES + 1]``."""

    def __init__(self, shell: Shell, a: Tensor, b: Tensor, extent: Tensor) -> None:
        places, weights, self.stretch, self.rule = _gauss()
        tallest = torch.maximum(a.abs(), b.abs())
        self.extent, self.layer = extent[..., None], torch.minimum(extent / 2, tallest + LAYER)[..., None]
        near, rest = self.layer * places, self.extent - 2 * self.layer
        fore = torch.cat([near, self.extent / 2, self.extent - near.flip(-1)], -1)
        aft = torch.cat([self.extent - near, self.extent / 2, near.flip(-1)], -1)
        self.weights = torch.cat([self.layer * weights, rest, self.layer * weights.flip(-1)], -1)
        self.knots = torch.cat([torch.zeros_like(self.extent), fore, self.extent], -1)
        sinh = _sinh_height(a[..., None], b[..., None], self.extent, fore, aft)
        self.alpha, self.cosh = sinh.asinh(), (1 + sinh.square()).sqrt()
        self.slope = shell.slope(self.alpha)

    def total(self, values: Tensor) -> Tensor:
        return (self.weights * values).sum(-1)

    def cumulate(self, values: Tensor) -> Tensor:
        """Integral from end a to every knot: zero, the nodes, end b."""
        left, middle, right = values.tensor_split([PANELS * NODES, PANELS * NODES + 1], -1)
        half = middle * (self.extent - 2 * self.layer) / 2
        before, after = self._within(left, self.stretch), self._within(right, self.stretch.flip(-1))
        center = before[..., -1:] + half
        return torch.cat([torch.zeros_like(half), before[..., :-1], center, center + half + after], -1)

    def _within(self, values: Tensor, stretch: Tensor) -> Tensor:
        """Integral over a layer up to each node, then the whole."""
        panels = (self.layer * stretch * values).unflatten(-1, (PANELS, NODES))
        parts = panels @ self.rule.T  # to each node, and across the panel
        offsets = parts[..., -1].cumsum(-1)
        before = torch.cat([torch.zeros_like(offsets[..., :1]), offsets[..., :-1]], -1)
        return torch.cat([(parts[..., :-1] + before[..., None]).flatten(-2), offsets[..., -1:]], -1)

    def at_knots(self, values: Tensor) -> Tensor:
        """Values at the nodes, and at the ends what the nearest node has (it is 0.004 of a panel away)."""
        return torch.cat([values[..., :1], values, values[..., -1:]], -1)


@lru_cache(maxsize=1)
def _gauss() -> tuple[Tensor, ...]:
    """Nodes on [0, 1], dense at 0, and weights of a layer's rule; the length a panel has at each node, and the rule of
    the integrals within a panel up to each node and to its end."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    legendre = np.polynomial.legendre
    to = np.append(x, 1.0)
    integrals = np.stack([legendre.legval(to, legendre.legint(row, lbnd=-1)) for row in np.eye(NODES)], 1)
    rule = integrals @ np.linalg.inv(legendre.legvander(x, NODES - 1)) / 2
    s = (np.arange(PANELS)[:, None] + (x + 1) / 2).ravel() / PANELS
    weights = np.tile(w / 2, PANELS) / PANELS
    return tuple(torch.from_numpy(array) for array in (s**2, 2 * s * weights, 2 * s / PANELS, rule))


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor, slopes: Tensor) -> Tensor:
    """Cubics through ``ys`` with ``slopes`` at increasing ``xs [..., M]``, at ``x [..., K]``."""
    place = torch.searchsorted(xs.contiguous(), x.contiguous(), right=True).clamp(1, xs.shape[-1] - 1)
    x0, x1 = xs.gather(-1, place - 1), xs.gather(-1, place)
    y0, y1 = ys.gather(-1, place - 1), ys.gather(-1, place)
    width = x1 - x0
    s = torch.where(width > 0, (x - x0) / width, 0.0).clamp(0, 1)
    left, right = width * slopes.gather(-1, place - 1), width * slopes.gather(-1, place)
    rise = y1 - y0
    return y0 + s * (left + s * (3 * rise - 2 * left - right + s * (left + right - 2 * rise)))
