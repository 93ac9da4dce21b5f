"""The centroid of seeds in the continuous limit of NAO's energy, by Newton's method on a handful of numbers.

What a path from seed i to the centroid costs depends on the two norms and on the angle between them alone, so the
centroid is found as ``n`` weights of the unit seeds and a norm, from the cosines ``gram [G, n, n]`` of the seeds; the
d components are never seen. Derivatives are exact: moving an end of a path costs Clairaut's momentum across it and
``end_slope`` along its radius. All tensors are float64; every problem ``g`` stops by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nao.geodesic import Geodesics, join
from nao.shell import Shell

MOST_ITERATIONS = 60
TOLERANCE = 1e-8  # of a step: radians, and heights over the waist
SAME_DIRECTION = 1e-7  # radians, what cosines in float64 can tell apart
LEAST_DAMPING = 1e-6  # as a share of the paths' momenta
NO_GAIN = 1e-13  # relative to the energy
SLACK = 1e-9  # relative, to which far-off norms' energies are integrated


@dataclass(frozen=True)
class Centre:
    """Directions ``weights [G, n]`` of the unit seeds, ``t [G]`` = log(norm / mode), and the paths ``[G, n]`` there."""

    weights: Tensor
    t: Tensor
    paths: Geodesics
    energy: Tensor
    converged: Tensor


def settle(shell: Shell, gram: Tensor, t: Tensor) -> Centre:
    """The cheapest centre of seeds with cosines ``gram [G, n, n]`` at ``t [G, n]``, from their mean direction.

    Where the minimum is not unique (two seeds: all of their path) it is the one nearest the start. Where it is at a
    seed, at which the energy has a kink, it is that seed.
    """
    problem = _Problem(shell, gram, t)
    weights = problem.normalised(torch.full_like(t, 1 / t.shape[1]))
    best = problem.at(weights, t.mean(1))
    at_waist = problem.at(weights, torch.full_like(best.t, shell.waist))
    best = _where(at_waist.energy < best.energy, at_waist, best)
    damping = torch.full_like(best.t, LEAST_DAMPING)
    last = torch.full_like(best.t, torch.inf)
    active = torch.ones_like(best.t, dtype=torch.bool)
    for _ in range(MOST_ITERATIONS):
        trial, size = problem.step(best, damping)
        # where the quadrature cannot tell two energies apart, Newton's steps must shrink
        level = (trial.energy <= best.energy + SLACK * best.energy.abs()) & (size < last / 2)
        lower = (trial.energy < best.energy) | level
        last = torch.where(lower, size, last)
        best = _where(active & lower, trial, best)
        damping = torch.where(lower, damping / 10, 10 * damping).clamp_min(LEAST_DAMPING)
        active = active & (size > TOLERANCE)
        if not active.any():
            break
    angle, nearest = best.paths.angle.min(1)
    close = angle < shell.waist_slope
    if close.any():
        seed = torch.nn.functional.one_hot(nearest, t.shape[1]).to(t.dtype)
        at_seed = problem.at(seed, t.gather(1, nearest[:, None])[:, 0])
        best = _where(close & (at_seed.energy <= best.energy), at_seed, best)
    return Centre(best.weights, best.t, best.paths, best.energy, ~active & best.paths.converged.all(1))


def angles(gram: Tensor, weights: Tensor) -> Tensor:
    """Between the unit seeds and unit directions ``weights [G, n]``: ``[G, n]``, as exact for small angles as cosines
    in float64 allow."""
    own = torch.eye(gram.shape[-1], dtype=gram.dtype)
    short, long = (own + sign * weights[:, None] for sign in (-1, 1))
    squares = ((short @ gram * short).sum(-1).clamp_min(0), (long @ gram * long).sum(-1).clamp_min(0))
    return 2 * torch.atan2(squares[0].sqrt(), squares[1].sqrt())


class _Problem:
    def __init__(self, shell: Shell, gram: Tensor, t: Tensor) -> None:
        self.shell, self.gram, self.alpha = shell, gram, shell.alpha(t)
        self.low, self.high = t.amin(1).clamp_max(shell.waist), t.amax(1).clamp_min(0)

    def normalised(self, weights: Tensor) -> Tensor:
        squares = (weights[:, None] @ self.gram @ weights[..., None])[:, 0]
        return weights / squares.clamp_min(1e-300).sqrt()

    def at(self, weights: Tensor, t: Tensor, near: Geodesics | None = None) -> Centre:
        paths = join(self.shell, self.alpha, self.shell.alpha(t)[:, None], angles(self.gram, weights), near)
        unlikely = (self.shell.d - 1) * (torch.expm1(2 * t) / 2 - t)
        return Centre(weights, t, paths, paths.energy.sum(1) + unlikely, paths.converged)

    def step(self, now: Centre, damping: Tensor) -> tuple[Centre, Tensor]:
        """The centre after a damped Newton step, and the step's size ``[G]``."""
        paths, n = now.paths, now.weights.shape[1]
        apart = paths.angle > SAME_DIRECTION
        pull = torch.where(apart, paths.momentum, 0.0)
        tension = torch.where(apart, paths.momentum / torch.tan(paths.angle), 0.0)
        spring = torch.where(apart, paths.stiffness, 0.0)
        # unit vectors at the centre towards each seed, as weights: the tangents
        cosine, sine = paths.angle.cos()[..., None], paths.angle.sin()[..., None]
        own = torch.eye(n, dtype=sine.dtype)
        tangents = torch.where(apart[..., None], (own - cosine * now.weights[:, None]) / sine, 0.0)
        flexible = tangents.mT @ ((tension - spring)[..., None] * (tangents @ self.gram))
        hessian = (tension.sum(1) + n * damping)[:, None, None] * own - flexible
        force = (tangents.mT @ pull[..., None])[..., 0]
        turn = torch.linalg.solve(hessian, force)
        rise = self._rise(now, damping)
        trial = self.at(
            self.normalised(now.weights + turn),
            torch.minimum(torch.maximum(now.t + rise, self.low), self.high),
            paths,
        )
        length = (turn[:, None] @ self.gram @ turn[..., None])[:, 0, 0].clamp_min(0).sqrt()
        # between two seeds nothing pulls but rounding, and no turn gains anything
        gain = self.shell.waist_cost * (force[:, None] @ self.gram @ turn[..., None])[:, 0, 0].abs()
        length = torch.where(gain > NO_GAIN * now.energy.abs(), length, 0.0)
        return trial, length + rise.abs() / self.shell.waist_slope

    def _rise(self, now: Centre, damping: Tensor) -> Tensor:
        """The damped Newton step in ``t``."""
        d, cost, paths = self.shell.d, self.shell.waist_cost, now.paths
        gradient = paths.end_slope.sum(1) + (d - 1) * torch.expm1(2 * now.t) / cost
        stiff = paths.b.cosh() / self.shell.slope(paths.b) / torch.tanh(paths.extent)
        return -gradient / (stiff.sum(1) + 2 * (d - 1) * torch.exp(2 * now.t) / cost) / (1 + damping)


def _where(which: Tensor, one: Centre, other: Centre) -> Centre:
    """``one`` for the problems ``which [G]`` names, ``other`` for the rest."""

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(which.view(-1, *[1] * (x.ndim - 1)), x, y)

    def fields(value: object) -> dict[str, Tensor]:
        return {name: item for name, item in vars(value).items() if isinstance(item, Tensor)}

    mixed = {name: pick(item, getattr(other.paths, name)) for name, item in fields(one.paths).items()}
    own = {name: pick(item, getattr(other, name)) for name, item in fields(one).items()}
    return Centre(**own, paths=Geodesics(shell=one.paths.shell, **mixed))
