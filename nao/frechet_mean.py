"""The centroid of seeds in the continuous limit of NAO's energy, by Newton's method on a handful of numbers.

What a path from seed i to the centroid costs depends on the two norms and on the angle between them alone, so the
centroid is found as ``n`` weights of the unit seeds and a norm, from the cosines ``gram [G, n, n]`` of the seeds; the
d components are never seen. Derivatives are exact: moving an end of a path costs Clairaut's momentum across it and
``end_slope`` along its radius, the path pulling with ``cosh(alpha)`` in all.

A centroid is a geometric median, and the energy has a kink at every seed. A seed is the centroid where the other
seeds pull on it no more than the paths to it and to those that coincide with it can hold (Vardi & Zhang 2000, "The
multivariate L1-median and associated data depth").

All tensors are float64; every problem ``g`` stops by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nao.geodesic import Geodesics, join
from nao.norm import typical_norm
from nao.shell import Shell, radial_cost

MOST_ITERATIONS = 60
BALANCED = 1e-8  # what still pulls at a center, as a share of what its paths could
SAME_PLACE = 1e-7  # radians and log norms, what cosines in float64 can tell apart
CLUSTER = 1e-5  # likewise: seeds that may be too close to each other to tell what lies between them
AT_SEED = 1e-6  # excess of the pull on a seed: the minimum is then so close to it
LEAST_DAMPING, SMALL_DAMPING = 1e-6, 1e-3  # as a share of what the paths could pull
SLACK = 1e-9  # relative, to which far-off norms' energies are integrated


@dataclass(frozen=True)
class Center:
    """Directions ``weights [G, n]`` of the unit seeds, ``t [G]`` = log(norm / mode), and the paths ``[G, n]`` there.

    The ``excess [G]`` is what pulls at the center beyond what the seeds that lie there can hold, as a share of what
    one path pulls; below 0 for a seed that holds.
    """

    weights: Tensor
    t: Tensor
    paths: Geodesics
    energy: Tensor
    excess: Tensor
    converged: Tensor


def settle(shell: Shell, gram: Tensor, t: Tensor) -> Center:
    """The cheapest center of seeds with cosines ``gram [G, n, n]`` at ``t [G, n]``.

    It is sought from the mean direction, and from the seed that is the cheapest center where that costs less than what
    was found. Where the minimum is not unique (two seeds: all of their path) it is the one nearest the mean direction.
    Where it is at a seed, at which the energy has a kink, it is that seed.
    """
    problem = _Problem(shell, gram, t)
    bounds, order = problem.seed_bounds().sort(1)
    start, seed = problem.start(), problem.seed(order[:, 0])
    # Two seeds' path is cheapest at its ends, by no more than their norms are likelier than the waist's: still halfway.
    holds = (seed.excess < -1 / typical_norm(shell.d)) & (seed.energy <= start.energy)
    best = _where(holds, seed, _descend(problem, start, holds))
    enough = best.energy - 2 * problem.unlikely(torch.full_like(best.t, shell.waist))
    for k in range(1, t.shape[1]):
        if not (bounds[:, k] < torch.minimum(seed.energy, enough)).any():
            break
        other = problem.seed(order[:, k])
        seed = _where(other.energy < seed.energy, other, seed)
    cheaper = seed.energy < enough
    return _where(cheaper, _descend(problem, seed, ~cheaper), best) if cheaper.any() else best


def _descend(problem: _Problem, start: Center, done: Tensor) -> Center:
    """The minimum below ``start``, by damped Newton steps; problems that are ``done [G]`` stay there."""
    best, damping = start, torch.full_like(start.t, LEAST_DAMPING)
    done = done | (best.excess <= BALANCED)
    for _ in range(MOST_ITERATIONS):
        if done.all():
            break
        trial, size = problem.step(best, damping)
        # where the quadrature cannot tell two energies apart, the pulls do
        level = (trial.energy <= best.energy + SLACK * best.energy.abs()) & (trial.excess < best.excess)
        better = (trial.energy < best.energy) | level
        still = (size <= SAME_PLACE) & (damping <= SMALL_DAMPING)
        best = _where(better & ~done, trial, best)
        damping = torch.where(better, damping / 10, 10 * damping).clamp_min(LEAST_DAMPING)
        done = done | still | (best.excess <= BALANCED)
    if not done.all():
        seed = problem.seed(best.paths.energy.argmin(1))
        at_seed = ~done & (problem.excess(seed, CLUSTER) <= AT_SEED) & (seed.energy <= best.energy * (1 + SLACK))
        best = _where(at_seed, seed, best)
        done = done | (problem.excess(best, CLUSTER) <= AT_SEED)
    return replace(best, converged=done & best.paths.converged.all(1))


def angles(gram: Tensor, weights: Tensor) -> Tensor:
    """Between the unit seeds and unit directions ``weights [G, n]``: ``[G, n]``, as exact for small angles as cosines
    in float64 allow."""
    own = torch.eye(gram.shape[-1], dtype=gram.dtype)
    short, long = (own + sign * weights[:, None] for sign in (-1, 1))
    squares = ((short @ gram * short).sum(-1).clamp_min(0), (long @ gram * long).sum(-1).clamp_min(0))
    return 2 * torch.atan2(squares[0].sqrt(), squares[1].sqrt())


class _Problem:
    def __init__(self, shell: Shell, gram: Tensor, t: Tensor) -> None:
        self.shell, self.gram, self.seeds, self.alpha = shell, gram, t, shell.alpha(t)
        self.low, self.high = t.amin(1).clamp_max(shell.waist), t.amax(1).clamp_min(0)
        self.own = torch.eye(t.shape[1], dtype=t.dtype)

    def start(self) -> Center:
        """The mean direction, at the mean norm or at the waist, whichever is cheaper."""
        weights = self.normalized(torch.full_like(self.seeds, 1 / self.seeds.shape[1]))
        mean = self.at(weights, self.seeds.mean(1))
        at_waist = self.at(weights, torch.full_like(mean.t, self.shell.waist))
        return _where(at_waist.energy < mean.energy, at_waist, mean)

    def seed(self, which: Tensor) -> Center:
        """The center at seed ``which [G]``."""
        return self.at(self.own[which], self.seeds.gather(1, which[:, None])[:, 0])

    def seed_bounds(self) -> Tensor:
        """What each seed costs at least as the center ``[G, n]``: no path is shorter than the waist or a radius."""
        apart = self.gram.clamp(-1, 1).acos() * self.shell.waist_cost
        radial = radial_cost(self.seeds.exp(), self.shell.d)
        return torch.maximum(apart, (radial[:, None] - radial[..., None]).abs()).sum(2) + self.unlikely(self.seeds)

    def unlikely(self, t: Tensor) -> Tensor:
        """How much less likely a center's norm is than the mode."""
        return (self.shell.d - 1) * (torch.expm1(2 * t) / 2 - t)

    def normalized(self, weights: Tensor) -> Tensor:
        squares = (weights[:, None] @ self.gram @ weights[..., None])[:, 0]
        return weights / squares.clamp_min(1e-300).sqrt()

    def at(self, weights: Tensor, t: Tensor, near: Geodesics | None = None) -> Center:
        paths = join(self.shell, self.alpha, self.shell.alpha(t)[:, None], angles(self.gram, weights), near)
        energy = paths.energy.sum(1) + self.unlikely(t)
        center = Center(weights, t, paths, energy, energy, paths.converged.all(1))
        return replace(center, excess=self.excess(center))

    def excess(self, center: Center, radius: float = SAME_PLACE) -> Tensor:
        """``Center.excess`` if the seeds within ``radius`` lie at the center."""
        apart = self.apart(center, radius)
        across, outwards = self.force(center, self.tangents(center), apart)
        return torch.hypot(self.length(across), outwards) / center.paths.b[:, 0].cosh() - (~apart).sum(1)

    def apart(self, center: Center, radius: float = SAME_PLACE) -> Tensor:
        """The seeds ``bool [G, n]`` that do not lie at the center."""
        return (center.paths.angle > radius) | ((self.seeds - center.t[:, None]).abs() > radius)

    def tangents(self, center: Center) -> Tensor:
        """Unit vectors at the center towards each seed, as weights ``[G, n, n]``; 0 for those in its direction."""
        cosine, sine = center.paths.angle.cos()[..., None], center.paths.angle.sin()[..., None]
        elsewhere = center.paths.angle[..., None] > SAME_PLACE
        return torch.where(elsewhere, (self.own - cosine * center.weights[:, None]) / sine, 0.0)

    def force(self, center: Center, tangents: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
        """What pulls at the center: across, as weights ``[G, n]``, and outwards ``[G]``, in waist costs."""
        paths = center.paths
        across = (tangents.mT @ torch.where(apart, paths.momentum, 0.0)[..., None])[..., 0]
        likely = (self.shell.d - 1) * torch.expm1(2 * center.t) / self.shell.waist_cost
        return across, -torch.where(apart, paths.end_slope, 0.0).sum(1) - likely

    def length(self, across: Tensor) -> Tensor:
        return (across[:, None] @ self.gram @ across[..., None])[:, 0, 0].clamp_min(0).sqrt()

    def step(self, now: Center, damping: Tensor) -> tuple[Center, Tensor]:
        """The center after a damped Newton step, and the step's size ``[G]``."""
        paths, n, apart, tangents = now.paths, self.own.shape[0], self.apart(now), self.tangents(now)
        across, outwards = self.force(now, tangents, apart)
        tension, stiffness, coupling, radial = (
            torch.where(apart, x, 0.0)
            for x in (paths.momentum / torch.tan(paths.angle), paths.stiffness, paths.coupling, paths.radial_stiffness)
        )
        held = damping * n * paths.b[:, 0].cosh()
        hessian = now.weights.new_zeros(len(now.t), n + 1, n + 1)
        flexible = tangents.mT @ ((tension - stiffness)[..., None] * (tangents @ self.gram))
        hessian[:, :n, :n] = (tension.sum(1) + held)[:, None, None] * self.own - flexible
        hessian[:, :n, n] = -(tangents.mT @ coupling[..., None])[..., 0]
        hessian[:, n, :n] = -(coupling[:, None] @ tangents @ self.gram)[:, 0]
        likely = 2 * (self.shell.d - 1) * torch.exp(2 * now.t) / self.shell.waist_cost
        hessian[:, n, n] = radial.sum(1) + likely + held
        turn, rise = torch.linalg.solve(hessian, torch.cat([across, outwards[:, None]], 1)).split([n, 1], 1)
        t = torch.minimum(torch.maximum(now.t + rise[:, 0], self.low), self.high)
        trial = self.at(self.normalized(now.weights + turn), t, paths)
        return trial, torch.hypot(self.length(turn), rise[:, 0])


def _where(which: Tensor, one: Center, other: Center) -> Center:
    """``one`` for the problems ``which [G]`` names, ``other`` for the rest."""

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(which.view(-1, *[1] * (x.ndim - 1)), x, y)

    def mixed(x: Center | Geodesics, y: Center | Geodesics) -> dict[str, Tensor]:
        return {k: pick(v, getattr(y, k)) for k, v in vars(x).items() if isinstance(v, Tensor)}

    return Center(**mixed(one, other), paths=Geodesics(shell=one.paths.shell, **mixed(one.paths, other.paths)))
