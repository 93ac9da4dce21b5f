"""Computes the NAO centroid of n seeds by Newton's method with n + 1 unknowns.

The energy of a path is the integral of ``-log chi_d(norm)`` over the length of the path. Here d is the number of
components of a seed, chi_d is the density of the chi distribution, and mode is the norm at which this density is
highest. The centroid minimizes the sum of the energies of the paths to all seeds, plus the cost
``log chi_d(mode) - log chi_d(norm)`` of the centroid's norm. The energy of a path depends only on the norms of its two
ends and on the angle between them. A unit-norm seed is a seed divided by its norm. The direction of the centroid is a
linear combination of the unit-norm seeds. The unknowns are the ``n`` weights of this linear combination and
``t = log(norm / mode)`` of the centroid. The input consists of the norms of the seeds and of the matrix ``gram [n,n]``
of the cosines of the angles between the seeds.

The gradient of a path's energy with respect to the end of the path has two components. The transverse component is the
momentum of Clairaut's relation, and the radial component is ``end_slope`` (see :mod:`nao.geodesic`). Both components
are in units of ``waist_cost``, the lowest cost of a path per radian. In these units, the norm of the gradient is
``cosh(alpha)``, where ``alpha`` is the height of the end above the waist (see :mod:`nao.radial_metric`).

The centroid is a geometric median, whose objective is not differentiable at the seeds. The objective therefore has a
kink at every seed, where the optimality (KKT) condition is an inequality. Consider a seed that coincides with m seeds,
including itself. Let g be the norm of the gradient of the objective without the paths to these m seeds, in units of the
gradient norm of a single path. The seed is the centroid if g <= m (Vardi & Zhang 2000, "The multivariate L1-median and
associated data depth").

All tensors are float64. A problem is the computation of the centroid of one group of seeds. G problems are solved in
one batch, and the iteration of each problem stops independently of the other problems.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nao.geodesic import Geodesics, solve_geodesics
from nao.norm import typical_norm
from nao.radial_metric import RadialMetric, radial_cost

MAX_ITERATIONS = 60
# A centroid has converged if the violation of the optimality (KKT) condition, relative to the gradient norm of one
# path, is at most GRAD_TOL.
GRAD_TOL = 1e-8
# Two points coincide if their angle in radians and their difference in t = log(norm / mode) are at most
# COINCIDENCE_TOL. Float64 cosines do not resolve much smaller angles.
COINCIDENCE_TOL = 1e-7
# If Newton's method does not converge, the convergence test is repeated with the tolerance CLUSTER_TOL in place of
# COINCIDENCE_TOL, because nearly equal seeds may not be distinguishable numerically.
CLUSTER_TOL = 1e-5
# If the violation of the optimality (KKT) condition at a seed is at most SEED_GRAD_TOL, the minimum is numerically
# indistinguishable from this seed.
SEED_GRAD_TOL = 1e-6
# Minimum damping of Newton's method, relative to the norm of the gradient of one path.
MIN_DAMPING = 1e-6
# A short Newton step shows convergence only if its damping is at most SMALL_DAMPING, because a large damping shortens
# every step.
SMALL_DAMPING = 1e-3
# Relative accuracy of the path energies. The quadrature error limits the accuracy if norms are far from the mode.
ENERGY_RTOL = 1e-9


@dataclass(frozen=True)
class Center:
    """Candidate centroids of G problems with n seeds each. A candidate is a point that may be the centroid.

    Attributes:
        weights: ``[G,n]``, the unit direction of the candidate, as weights of the unit-norm seeds (the seeds divided by
            their norms).
        t: ``[G]``, ``log(norm / mode)`` of the candidate.
        paths: geodesics (paths of minimum energy) ``[G,n]`` from the seeds to the candidate.
        energy: ``[G]``, the objective: the energies of the paths plus the cost of the candidate's norm.
        kkt_violation: ``[G]``, violation of the optimality (KKT) condition: the norm of the gradient, relative to the
            gradient norm of one path, minus the number of seeds that coincide with the candidate. A negative violation
            means that the candidate is a seed and satisfies the KKT condition with strict inequality.
        converged: bool ``[G]``, whether the candidate and the paths to the candidate satisfy the tolerances.
    """

    weights: Tensor
    t: Tensor
    paths: Geodesics
    energy: Tensor
    kkt_violation: Tensor
    converged: Tensor


def solve_mean(metric: RadialMetric, gram: Tensor, t: Tensor) -> Center:
    """Compute the centroid of each of G groups of n seeds.

    ``gram [G,n,n]`` contains the cosines of the angles between the seeds of a group. ``t [G,n]`` is
    ``log(norm / mode)`` of each seed, where mode is the most likely norm of a Gaussian seed.

    The search starts at the mean direction of the seeds. If a seed has a lower energy than the result of the search,
    the search is repeated from the seed with the lowest energy. For two seeds, every point of the path between the two
    seeds minimizes the sum of the path energies. In this case, the middle of the path is returned. If the minimum is at
    a seed, exactly this seed is returned.
    """
    problem = _Problem(metric, gram, t)
    lower_bounds, order = problem.seed_lower_bounds().sort(1)
    initial = problem.initial_guess()
    seed = problem.evaluate_seed(order[:, 0])
    # For two seeds, this function returns the middle of their path, although the energy can be slightly lower at a
    # seed: the norm of a seed can be more likely than the norm of the middle. Therefore a seed replaces the result of
    # the search only if the energy of the seed is below a threshold, which allows for this difference.
    is_optimal = (seed.kkt_violation < -1 / typical_norm(metric.d)) & (seed.energy <= initial.energy)
    best = _where(is_optimal, seed, _descend(problem, initial, is_optimal))
    threshold = best.energy - 2 * problem.norm_cost(torch.full_like(best.t, metric.waist))
    for k in range(1, t.shape[1]):
        if not (lower_bounds[:, k] < torch.minimum(seed.energy, threshold)).any():
            break
        other = problem.evaluate_seed(order[:, k])
        seed = _where(other.energy < seed.energy, other, seed)
    is_cheaper = seed.energy < threshold
    return _where(is_cheaper, _descend(problem, seed, ~is_cheaper), best) if is_cheaper.any() else best


def _descend(problem: _Problem, initial: Center, done: Tensor) -> Center:
    """Minimize the energy by damped Newton steps from ``initial``; return one candidate per problem.

    The returned candidate has the lowest energy of all evaluated candidates. For a problem whose entry of ``done``
    (bool ``[G]``) is True, the initial candidate is returned.
    """
    best = initial
    damping = torch.full_like(initial.t, MIN_DAMPING)
    done = done | (best.kkt_violation <= GRAD_TOL)
    for _ in range(MAX_ITERATIONS):
        if done.all():
            break
        trial, step_size = problem.newton_step(best, damping)
        # If two energies are equal up to the quadrature error, compare the violations of the KKT condition instead.
        is_equal = trial.energy <= best.energy + ENERGY_RTOL * best.energy.abs()
        is_better = (trial.energy < best.energy) | (is_equal & (trial.kkt_violation < best.kkt_violation))
        is_stationary = (step_size <= COINCIDENCE_TOL) & (damping <= SMALL_DAMPING)
        best = _where(is_better & ~done, trial, best)
        damping = torch.where(is_better, damping / 10, 10 * damping).clamp_min(MIN_DAMPING)
        done = done | is_stationary | (best.kkt_violation <= GRAD_TOL)
    if not done.all():
        seed = problem.evaluate_seed(best.paths.energy.argmin(1))
        satisfies_kkt = problem.kkt_violation(seed, CLUSTER_TOL) <= SEED_GRAD_TOL
        at_seed = ~done & satisfies_kkt & (seed.energy <= best.energy * (1 + ENERGY_RTOL))
        best = _where(at_seed, seed, best)
        done = done | (problem.kkt_violation(best, CLUSTER_TOL) <= SEED_GRAD_TOL)
    return replace(best, converged=done & best.paths.converged.all(1))


def angles(gram: Tensor, weights: Tensor) -> Tensor:
    """Return the angles ``[G,n]`` in radians between the seeds of each problem and one unit direction per problem.

    The unit direction of a problem is the linear combination of the unit-norm seeds with ``weights [G,n]``. ``gram
    [G,n,n]`` contains the cosines of the angles between the seeds.

    An angle is computed from the norms of the difference and of the sum of two unit vectors. In contrast to the arc
    cosine, this formula is accurate for small angles.
    """
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype)
    difference, total = (identity + sign * weights[:, None] for sign in (-1, 1))
    square_difference = (difference @ gram * difference).sum(-1).clamp_min(0)
    square_total = (total @ gram * total).sum(-1).clamp_min(0)
    return 2 * torch.atan2(square_difference.sqrt(), square_total.sqrt())


class _Problem:
    """The energy that the centroid minimizes, and the derivatives of this energy, for G problems with n seeds."""

    def __init__(self, metric: RadialMetric, gram: Tensor, t: Tensor) -> None:
        self.metric, self.gram, self.seeds = metric, gram, t
        self.alpha = metric.alpha(t)
        self.min_t = t.amin(1).clamp_max(metric.waist)
        self.max_t = t.amax(1).clamp_min(0)
        self.identity = torch.eye(t.shape[1], dtype=t.dtype)

    def initial_guess(self) -> Center:
        """Return the candidate in the mean direction of the seeds, from which the search starts.

        There are two possible values of ``t = log(norm / mode)``: the mean ``t`` of the seeds, and ``t`` of the waist
        (the circle around the origin along which a path has the lowest cost per radian). For each problem, the
        candidate with the lower energy is returned.
        """
        weights = self.normalize(torch.full_like(self.seeds, 1 / self.seeds.shape[1]))
        mean = self.evaluate(weights, self.seeds.mean(1))
        at_waist = self.evaluate(weights, torch.full_like(mean.t, self.metric.waist))
        return _where(at_waist.energy < mean.energy, at_waist, mean)

    def evaluate_seed(self, index: Tensor) -> Center:
        """Return, for each problem, the candidate that equals one of the seeds, with its paths and its energy.

        ``index``, int64 ``[G]``, contains the index of this seed for each problem.
        """
        return self.evaluate(self.identity[index], self.seeds.gather(1, index[:, None])[:, 0])

    def seed_lower_bounds(self) -> Tensor:
        """Return lower bounds ``[G,n]`` of the energy that each seed would have as the centroid.

        A path's energy is at least the cost of an arc with the same angle along the waist (the circle around the origin
        with the lowest cost per radian). A path's energy is also at least the cost of a radial line between the norms
        of its two ends. The larger of the two lower bounds is used.
        """
        along_waist = self.gram.clamp(-1, 1).acos() * self.metric.waist_cost
        radial = radial_cost(self.seeds.exp(), self.metric.d)
        path_bounds = torch.maximum(along_waist, (radial[:, None] - radial[..., None]).abs())
        return path_bounds.sum(2) + self.norm_cost(self.seeds)

    def norm_cost(self, t: Tensor) -> Tensor:
        """Return the cost ``log chi_d(mode) - log chi_d(norm)`` of the centroid's norm in nats.

        ``t`` is ``log(norm / mode)``. chi_d is the density of the norm of a Gaussian seed with d components, and mode
        is the norm at which chi_d is highest.
        """
        return (self.metric.d - 1) * (torch.expm1(2 * t) / 2 - t)

    def normalize(self, weights: Tensor) -> Tensor:
        """Rescale ``weights [G,n]`` so that the weighted sums of the unit-norm seeds have norm 1."""
        squares = (weights[:, None] @ self.gram @ weights[..., None])[:, 0]
        return weights / squares.clamp_min(1e-300).sqrt()

    def evaluate(self, weights: Tensor, t: Tensor, *, warm_start: Geodesics | None = None) -> Center:
        """Return the candidate with the given direction and ``t = log(norm / mode) [G]``, with its paths and energy.

        The direction is the weighted sum of the unit-norm seeds with ``weights [G,n]``. This sum must have norm 1.
        ``warm_start`` contains the geodesics of a similar candidate; :func:`solve_geodesics` starts from these
        geodesics.
        """
        angle = angles(self.gram, weights)
        paths = solve_geodesics(self.metric, self.alpha, self.metric.alpha(t)[:, None], angle, warm_start=warm_start)
        energy = paths.energy.sum(1) + self.norm_cost(t)
        center = Center(weights, t, paths, energy, kkt_violation=energy, converged=paths.converged.all(1))
        return replace(center, kkt_violation=self.kkt_violation(center))

    def kkt_violation(self, center: Center, radius: float = COINCIDENCE_TOL) -> Tensor:
        """Compute the violation ``[G]`` of the optimality (KKT) condition at the candidate, see :class:`Center`.

        A seed coincides with the candidate if the angle between them in radians and the difference of their
        ``t = log(norm / mode)`` are at most ``radius``.
        """
        is_separated = self.is_separated(center, radius)
        transverse, radial = self.negative_gradient(center, self.tangents(center), is_separated)
        return torch.hypot(self.length(transverse), radial) / center.paths.b[:, 0].cosh() - (~is_separated).sum(1)

    def is_separated(self, center: Center, radius: float = COINCIDENCE_TOL) -> Tensor:
        """Return the mask of the seeds that do not coincide with the candidate, bool ``[G,n]``.

        A seed coincides with the candidate if the angle between them in radians and the difference of their
        ``t = log(norm / mode)`` are at most ``radius``.
        """
        return (center.paths.angle > radius) | ((self.seeds - center.t[:, None]).abs() > radius)

    def tangents(self, center: Center) -> Tensor:
        """Return the unit tangent vectors at the candidate towards each seed.

        The tangent vectors are returned as weights of the unit-norm seeds, ``[G,n,n]``. A tangent vector is 0 if the
        seed and the candidate have the same direction.
        """
        cosine = center.paths.angle.cos()[..., None]
        sine = center.paths.angle.sin()[..., None]
        is_defined = center.paths.angle[..., None] > COINCIDENCE_TOL
        return torch.where(is_defined, (self.identity - cosine * center.weights[:, None]) / sine, 0.0)

    def negative_gradient(self, center: Center, tangents: Tensor, is_separated: Tensor) -> tuple[Tensor, Tensor]:
        """Return the negative gradient of the energy.

        The unit is ``metric.waist_cost``, the lowest cost of a path per radian. The gradient does not include the paths
        from seeds that coincide with the candidate.

        Returns:
            The transverse part as weights of the unit-norm seeds ``[G,n]``, and the radial part ``[G]``.
        """
        paths = center.paths
        transverse = (tangents.mT @ torch.where(is_separated, paths.momentum, 0.0)[..., None])[..., 0]
        norm_gradient = (self.metric.d - 1) * torch.expm1(2 * center.t) / self.metric.waist_cost
        return transverse, -torch.where(is_separated, paths.end_slope, 0.0).sum(1) - norm_gradient

    def length(self, weights: Tensor) -> Tensor:
        """Return the norms ``[G]`` of the weighted sums of the unit-norm seeds with ``weights [G,n]``."""
        return (weights[:, None] @ self.gram @ weights[..., None])[:, 0, 0].clamp_min(0).sqrt()

    def newton_step(self, current: Center, damping: Tensor) -> tuple[Center, Tensor]:
        """Return the candidate after one damped Newton step from ``current``, and the length ``[G]`` of the step.

        ``damping [G]`` has one value per problem; a larger value shortens the step.
        """
        paths, n = current.paths, self.identity.shape[0]
        is_separated = self.is_separated(current)
        tangents = self.tangents(current)
        transverse, radial = self.negative_gradient(current, tangents, is_separated)
        tension, stiffness, coupling, radial_stiffness = (
            torch.where(is_separated, x, 0.0)
            for x in (paths.momentum / torch.tan(paths.angle), paths.stiffness, paths.coupling, paths.radial_stiffness)
        )
        ridge = damping * n * paths.b[:, 0].cosh()
        hessian = current.weights.new_zeros(len(current.t), n + 1, n + 1)
        rank_one_terms = tangents.mT @ ((tension - stiffness)[..., None] * (tangents @ self.gram))
        hessian[:, :n, :n] = (tension.sum(1) + ridge)[:, None, None] * self.identity - rank_one_terms
        hessian[:, :n, n] = -(tangents.mT @ coupling[..., None])[..., 0]
        hessian[:, n, :n] = -(coupling[:, None] @ tangents @ self.gram)[:, 0]
        norm_curvature = 2 * (self.metric.d - 1) * torch.exp(2 * current.t) / self.metric.waist_cost
        hessian[:, n, n] = radial_stiffness.sum(1) + norm_curvature + ridge
        step = torch.linalg.solve(hessian, torch.cat([transverse, radial[:, None]], 1))
        turn, rise = step.split([n, 1], 1)
        t = torch.minimum(torch.maximum(current.t + rise[:, 0], self.min_t), self.max_t)
        trial = self.evaluate(self.normalize(current.weights + turn), t, warm_start=paths)
        return trial, torch.hypot(self.length(turn), rise[:, 0])


def _where(condition: Tensor, one: Center, other: Center) -> Center:
    """Return, for each problem, ``one`` if ``condition`` (bool ``[G]``) is True, otherwise ``other``."""

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(condition.view(-1, *[1] * (x.ndim - 1)), x, y)

    def tensors(x: Center | Geodesics, y: Center | Geodesics) -> dict[str, Tensor]:
        return {name: pick(value, getattr(y, name)) for name, value in vars(x).items() if isinstance(value, Tensor)}

    paths = Geodesics(metric=one.paths.metric, **tensors(one.paths, other.paths))
    return Center(**tensors(one, other), paths=paths)
