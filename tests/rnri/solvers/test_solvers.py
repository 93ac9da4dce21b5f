"""Each solver, compared with its definition on one-step problems whose solutions are computed by hand."""

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg
import torch

from rnri import (
    Anderson,
    AveragedFixedPoint,
    FixedPoint,
    ForwardStep,
    GradientDescent,
    ImplicitStep,
    NewtonKrylov,
    ReNoise,
    RNRIMeanSign,
    RNRIMinimumNorm,
    RNRIPaper,
    RNRISign,
    SafeguardedAnderson,
)
from rnri.solvers.implicit import EvaluationCounter, Prior
from rnri.solvers.renoise import autocorrelation, gentle_regularizer, patch_divergence
from tests.problems import NONLINEAR, function_predictor, wavy


def problem(function, z_s, a=0.8, b=0.5):
    """Return the equation ``z = a z_s + b function(z)`` for ``z_s [B,C,h,w]``."""
    predictor = function_predictor(function, len(z_s))
    prior = Prior(z_s, z_s, alpha=0.5**0.5, sigma=0.5**0.5, alpha_s=0.5**0.5 / a, sigma_s=(1 - 0.5 / a**2) ** 0.5)
    return ImplicitStep(predictor, 1, a, b, z_s, prior, EvaluationCounter.zeros(len(z_s)))


def two(x, y):
    """Return one sample of two elements, ``[1,1,1,2]``."""
    return torch.tensor([x, y], dtype=torch.float64).view(1, 1, 1, 2)


def swapped(z, _):
    """A linear network that couples the two elements: eps_x = 0.4 y, eps_y = 0.2 x."""
    return z.flip(-1) * two(0.4, 0.2)


# With z_s = (1, -2), a = 0.8, b = 0.5:  f(x, y) = (0.8 + 0.2 y, -1.6 + 0.1 x).
# At z = z_s:  f = (0.4, -1.5),  r = z - f = (0.6, -0.5),  ||r||_1 = 1.1.
# Prior: mean (0.8, -1.6), variance 1 - 0.64 = 0.36;  z - mean = (0.2, -0.4):
#   -sum log q = (0.04 + 0.16) / 0.72 = 5/18.   lambda = 0.36:  F = 1.1 + 0.1 = 1.2.
# dF/dx = sign(r_x) - sign(r_y) df_y/dx + lambda 0.2 / 0.36 = 1 + 0.1 + 0.2 = 1.3
# dF/dy = sign(r_y) - sign(r_x) df_x/dy - lambda 0.4 / 0.36 = -1 - 0.2 - 0.4 = -1.6
Z_S = two(1.0, -2.0)
LAM, F, G = 0.36, 1.2, two(1.3, -1.6)


def one_step(solver):
    """Return the iterate of ``solver`` after one step from ``z_s``."""
    return solver(problem(swapped, Z_S), Z_S).z


def test_rnri_paper_by_hand():
    expected = Z_S - F / (2 * (G + 0.01))
    stepped = one_step(RNRIPaper(iterations=1, prior_weight=LAM, eta=0.01, keep_best=False))
    torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-12)


def test_rnri_paper_differentiates_the_network():
    detached = torch.tensor([1.2, -1.4]).double().view_as(G)  # signs and prior only
    stepped = one_step(RNRIPaper(iterations=1, prior_weight=LAM, eta=0.01, keep_best=False))
    assert (stepped - (Z_S - F / (2 * (detached + 0.01)))).abs().min() > 0.02


def test_rnri_by_hand():
    stepped = one_step(RNRIMeanSign(iterations=1, prior_weight=LAM, keep_best=False))
    torch.testing.assert_close(stepped, Z_S - 0.6 * two(1.0, -1.0), rtol=0, atol=1e-12)


def test_rnri_minimum_norm_by_hand():
    stepped = one_step(RNRIMinimumNorm(iterations=1, prior_weight=LAM, keep_best=False))
    torch.testing.assert_close(stepped, Z_S - F * G / (1.3**2 + 1.6**2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [RNRIPaper, RNRIMeanSign, RNRIMinimumNorm])
def test_zero_prior_weight_leaves_the_residual(kind):
    gradient = two(1.1, -1.2)
    steps = {
        RNRIPaper: 1.1 / (2 * (gradient + 1e-6)),
        RNRIMeanSign: 0.55 * two(1.0, -1.0),
        RNRIMinimumNorm: 1.1 * gradient / (1.1**2 + 1.2**2),
    }
    stepped = one_step(kind(iterations=1, prior_weight=0, keep_best=False))
    torch.testing.assert_close(stepped, Z_S - steps[kind], rtol=0, atol=1e-12)


def test_rnri_steps_are_per_sample():
    z_s = torch.cat([Z_S, 3 * Z_S, -Z_S])
    for kind in (RNRIPaper, RNRIMeanSign, RNRIMinimumNorm):
        solver = kind(iterations=1, prior_weight=LAM, keep_best=False)
        batched = solver(problem(swapped, z_s), z_s).z
        alone = torch.cat([solver(problem(swapped, z), z).z for z in z_s.split(1)])
        torch.testing.assert_close(batched, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [RNRIPaper(), RNRIMeanSign(), RNRIMinimumNorm(), FixedPoint(), Anderson()])
def test_best_evaluated_iterate_is_returned(solver):
    evaluated = []

    def logged(z, number):
        evaluated.append(z.detach().clone())
        return wavy(z, number)

    z_s = torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    solution = solver(problem(logged, z_s, b=1.5), z_s)
    values = [0.8 * z_s + 1.5 * wavy(z, torch.zeros(1, 1, 1, 1)) for z in evaluated]
    residuals = torch.stack([(z - f).abs().mean() for z, f in zip(evaluated, values, strict=True)])
    best = int(residuals.argmin())
    assert solution.residual[0] == pytest.approx(residuals[best].item())
    expected = evaluated[best] if solution.converged[0] else values[best]
    torch.testing.assert_close(solution.z, expected)
    assert solution.nfe[0] == len(evaluated)


def test_forward_and_backward_counts_of_rnri():
    z_s = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for solver, backward in [
        (RNRIPaper(3, tolerance=0), 2),  # no step follows the last evaluation
        (RNRIPaper(3, tolerance=0, keep_best=False), 3),
        (RNRIMinimumNorm(3, tolerance=0), 2),
        (RNRISign(3, tolerance=0), 0),
    ]:
        solution = solver(problem(wavy, z_s), z_s)
        assert solution.nfe.tolist() == [3, 3] and solution.backward.tolist() == [backward] * 2


def test_converged_samples_leave_the_batch():
    sizes = []

    def network(z, number):
        sizes.append(len(z))
        return torch.where(number == 0, 0.01, 0.9) * z

    z_s = torch.ones(3, 1, 1, 2, dtype=torch.float64)
    solution = FixedPoint(8, tolerance=1e-6)(problem(network, z_s), z_s)
    first = solution.nfe[0].item()
    assert solution.converged.tolist() == [True, False, False] and first < 8
    assert solution.nfe.tolist() == [first, 8, 8]
    assert sizes == [3] * first + [2] * (8 - first)


def test_each_solve_counts_from_zero():
    equation = problem(wavy, torch.ones(1, 1, 1, 2, dtype=torch.float64))
    solver = FixedPoint(3, tolerance=0)
    assert [solver(equation, equation.z_s).nfe.item() for _ in range(2)] == [3, 3]


def test_anderson_is_exact_on_linear_problems():
    generator = torch.Generator().manual_seed(0)
    n = 4
    matrices = torch.randn(3, n, n, dtype=torch.float64, generator=generator)  # not contractive

    def linear(z, number):
        chosen = matrices[number.flatten()]
        return torch.einsum("bij,bj->bi", chosen, z.flatten(1)).view_as(z)

    z_s = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=generator)
    solution = Anderson(n + 2, tolerance=1e-8, memory=n, regularization=1e-15)(problem(linear, z_s), z_s)
    exact = torch.linalg.solve(torch.eye(n) - 0.5 * matrices, 0.8 * z_s.flatten(1))
    assert solution.converged.all()
    torch.testing.assert_close(solution.z.flatten(1), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", [Anderson, SafeguardedAnderson])
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_anderson_with_full_memory_is_gmres(solver, k):
    """Walker & Ni 2011, Theorem 2.2: after k differences, Anderson's iterate is f of the k-th of GMRES."""
    generator = torch.Generator().manual_seed(3)
    n = 8
    matrix = torch.randn(n, n, dtype=torch.float64, generator=generator) / n
    z_s = torch.randn(1, 2, 2, 2, dtype=torch.float64, generator=generator)

    def linear(z, _):
        return (z.flatten(1) @ matrix.T).view_as(z)

    options = {"growth": 100.0} if solver is SafeguardedAnderson else {"keep_best": False}
    anderson = solver(k + 1, tolerance=0, memory=k, regularization=1e-15, **options)
    result = anderson(problem(linear, z_s), z_s).z.flatten().numpy()
    slope = 0.5 * matrix.numpy()  # f(z) = slope z + offset
    offset = 0.8 * z_s.flatten().numpy()
    gmres, _ = scipy.sparse.linalg.gmres(
        np.eye(n) - slope, offset, x0=z_s.flatten().numpy(), restart=k, maxiter=1, rtol=0, atol=0
    )
    np.testing.assert_allclose(result, slope @ gmres + offset, rtol=0, atol=1e-9)


def test_anderson_with_one_difference_is_the_secant_method():
    z_s = torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    equation = problem(wavy, z_s)
    z0 = z_s
    f0 = equation(z0)
    f1 = equation(f0)
    r1 = f1 - f0
    dr = r1 - (f0 - z0)
    gamma = (dr * r1).sum() / (dr * dr).sum()
    expected = f1 - gamma * (f1 - f0)
    stepped = Anderson(2, tolerance=0, keep_best=False, memory=1)(equation, z_s).z
    torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-9)


def test_anderson_finds_the_root_of_scipy():
    z_s = torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    equation = problem(wavy, z_s)

    def residual(x):
        z = torch.from_numpy(x).view_as(z_s)
        return (z - equation(z)).numpy().ravel()

    root = scipy.optimize.root(residual, z_s.numpy().ravel(), tol=1e-12).x
    solution = Anderson(40, tolerance=1e-12)(equation, z_s)
    np.testing.assert_allclose(solution.z.numpy().ravel(), root, atol=1e-9)


def test_anderson_handles_equal_iterates():
    constant = problem(lambda z, _: torch.zeros_like(z), torch.ones(1, 1, 1, 2, dtype=torch.float64), a=0.5)
    solution = Anderson(5, tolerance=0)(constant, constant.z_s)
    assert solution.converged.all() and torch.equal(solution.z, 0.5 * constant.z_s)


@pytest.mark.parametrize("kind", [FixedPoint, Anderson, RNRIPaper, RNRISign, RNRIMinimumNorm])
def test_empty_step_takes_one_evaluation(kind):
    """``a = 1, b = 0``: the prior has no variance and the cleaner latent is the solution."""
    empty = problem(wavy, Z_S, a=1.0, b=0.0)
    solution = kind()(empty, Z_S)
    assert solution.converged.all() and torch.equal(solution.z, Z_S) and solution.nfe.tolist() == [1]


@pytest.mark.parametrize("kind", [RNRIPaper, RNRIMinimumNorm])
def test_zero_derivative_returns_the_best_iterate(kind):
    """f(z) = z + 1 has no root: the residual is 1 everywhere, its derivative is 0, and the step is not finite."""
    z_s = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    shifted = problem(lambda z, _: (z - 0.8 * z_s + 1) / 0.5, z_s)
    options = {"eta": 0.0} if kind is RNRIPaper else {}
    solution = kind(iterations=5, prior_weight=0, **options)(shifted, z_s)
    assert not solution.converged.any() and solution.nfe.tolist() == [1]
    assert solution.residual.tolist() == [1.0] and torch.equal(solution.z, z_s + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedPoint(0), "iterations: .* got 0"),
        (lambda: FixedPoint(tolerance=-1), "tolerance: .* got -1"),
        (lambda: Anderson(memory=0), "memory: .* got 0"),
        (lambda: RNRIPaper(prior_weight=-0.1), r"prior_weight: .* got -0\.1"),
    ],
)
def test_invalid_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# In swapped's problem f is linear with J = [[0, 0.2], [0.1, 0]]; the root solves (I - J) z = (0.8, -1.6).
ROOT = two((0.8 - 0.32) / 0.98, (0.08 - 1.6) / 0.98)


def test_newton_krylov_is_exact_on_linear_problems():
    solution = NewtonKrylov(iterations=4, tolerance=1e-12, krylov_dim=2)(problem(swapped, Z_S), Z_S)
    torch.testing.assert_close(solution.z, ROOT, rtol=0, atol=1e-12)
    assert solution.converged.all() and solution.nfe.tolist() == [4] and solution.backward.tolist() == [2]


def test_newton_krylov_halves_failed_steps():
    z_s = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)  # Newton's step on z = 0.8 * 2 - 5 tanh z overshoots
    evaluated = []

    def steep(z, _):
        evaluated.append(z.item())
        return -10 * torch.tanh(z)

    solution = NewtonKrylov(iterations=40, tolerance=1e-10, krylov_dim=1)(problem(steep, z_s), z_s)
    assert solution.converged.all()
    assert abs(evaluated[3] - 1.6 + 5 * np.tanh(evaluated[3])) < 10


def test_newton_krylov_converges_quadratically():
    z_s = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    residuals = [
        NewtonKrylov(iterations=1 + 19 * n, tolerance=0, krylov_dim=18)(problem(wavy, z_s, b=0.4), z_s).residual.max()
        for n in range(4)
    ]
    assert residuals[1] < 0.2 * residuals[0]
    assert residuals[2] < residuals[1] ** 1.5
    assert residuals[3] < residuals[2] ** 1.5


@pytest.mark.parametrize(("iterations", "expected"), [(1, (0.4, -1.5)), (2, (0.5, -1.56)), (3, (0.488, -1.55))])
def test_fixed_point_by_hand(iterations, expected):
    """Each iterate is f of the previous iterate: (0.8 + 0.2 y, -1.6 + 0.1 x)."""
    solution = FixedPoint(iterations, tolerance=0)(problem(swapped, Z_S), Z_S)
    torch.testing.assert_close(solution.z, two(*expected))


def test_averaged_fixed_point_by_hand():
    averaged = AveragedFixedPoint(iterations=2, tolerance=0, keep_best=False)(problem(swapped, Z_S), Z_S).z
    f0 = two(0.4, -1.5)
    f1 = two(0.8 - 0.3, -1.6 + 0.04)
    torch.testing.assert_close(averaged, (f0 + f1) / 2, rtol=0, atol=1e-12)


def test_forward_step_halves_its_rate():
    z_s = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    flipping = problem(lambda z, _: -9 * z, z_s, a=1.0, b=0.5)  # z <- z - rate (5.5 z - 1): diverges at 0.5
    assert not ForwardStep(60, tolerance=1e-8, patience=None)(flipping, z_s).converged.any()
    assert ForwardStep(60, tolerance=1e-8, patience=1)(flipping, z_s).converged.all()


def test_gradient_descent_by_hand():
    # r = (0.6, -0.5); gradient (I - J)^T r = (0.6 + 0.1 * 0.5, -0.5 - 0.2 * 0.6)
    stepped = one_step(GradientDescent(iterations=1, rate=0.5, keep_best=False))
    torch.testing.assert_close(stepped, Z_S - 0.5 * two(0.65, -0.62), rtol=0, atol=1e-12)


def test_safeguarded_anderson_equals_anderson_without_failures():
    z_s = torch.randn(2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = Anderson(6, tolerance=0, keep_best=False)(problem(wavy, z_s, b=0.3), z_s)
    safe = SafeguardedAnderson(6, tolerance=0, memory=3)(problem(wavy, z_s, b=0.3), z_s)
    torch.testing.assert_close(safe.z, plain.z, rtol=0, atol=1e-8)  # other differences with the same span
    torch.testing.assert_close(safe.residual, plain.residual, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("memory", [3, 4, 5, 10])
@pytest.mark.parametrize("name", NONLINEAR)
def test_safeguard_solves_scipys_nonlinear_problems(name, memory):
    function, start = NONLINEAR[name]
    z = torch.tensor(start, dtype=torch.float64).view(1, 1, 1, -1)
    equation = problem(lambda z, _: z - function(z.flatten()).view_as(z), torch.zeros_like(z), b=1.0)
    solution = SafeguardedAnderson(200, 1e-8, memory=memory)(equation, z)
    assert solution.converged.all() and function(solution.z.flatten()).abs().mean() <= 1e-8


def test_safeguard_approaches_the_minimum_without_a_root():
    """``|z - f(z)| = 1 + z^2 / 10``: the steps shrink towards the minimum instead of cycling."""
    z = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    rootless = problem(lambda z, _: z - 1 - 0.1 * z.square(), torch.zeros_like(z), b=1.0)
    solution = SafeguardedAnderson(60, 0)(rootless, z)
    assert not solution.converged.any() and solution.residual.item() < 1.01


def test_safeguarded_anderson_returns_the_best_of_two():
    z_s = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    evaluated = []

    def steep(z, _):
        evaluated.append(z.detach().clone())
        return -4 * torch.tanh(z)

    solution = SafeguardedAnderson(2, tolerance=0)(problem(steep, z_s, b=1.0), z_s)
    residuals = [(z - 1.6 + 4 * torch.tanh(z)).abs().item() for z in evaluated]
    best = int(np.argmin(residuals))
    assert best == 0  # the second residual is larger
    torch.testing.assert_close(solution.z, 1.6 - 4 * torch.tanh(evaluated[best]))


def test_safeguard_converges_more_often_than_anderson():
    generator = torch.Generator().manual_seed(1)
    z_s = torch.randn(16, 2, 3, 3, dtype=torch.float64, generator=generator)

    def violent(z, number):
        return torch.sin(3 * z + number) - 2 * z

    plain = Anderson(60, tolerance=1e-8)(problem(violent, z_s, b=1.2), z_s)
    safe = SafeguardedAnderson(60, tolerance=1e-8, memory=3)(problem(violent, z_s, b=1.2), z_s)
    assert safe.converged.sum() > plain.converged.sum()


def test_renoise_regularization_whitens_noise():
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(2, 4, 64, 64, dtype=torch.float64, generator=generator)
    reference = torch.randn(2, 4, 64, 64, dtype=torch.float64, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(white, 3, 1, 1) * 1.5
    assert (autocorrelation(smooth) > 5 * autocorrelation(white)).all()
    assert torch.equal(patch_divergence(white, white), torch.zeros(2, dtype=torch.float64))
    whiter = gentle_regularizer(smooth, reference, ReNoise(rounds=4, kl_weight=0), None)
    assert (autocorrelation(whiter) < 0.9 * autocorrelation(smooth)).all()
    nearer = gentle_regularizer(smooth, reference, ReNoise(rounds=4, correlation_weight=0), None)
    assert (patch_divergence(nearer, reference) < 0.99 * patch_divergence(smooth, reference)).all()
    first = gentle_regularizer(smooth[:1], reference[:1], ReNoise(rounds=4), None)
    both = gentle_regularizer(smooth, reference, ReNoise(rounds=4), None)
    torch.testing.assert_close(both[:1], first, rtol=0, atol=1e-12)


def test_renoise_counts_its_reference_evaluation():
    z_s = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = ReNoise(iterations=5, rounds=2, clean_from=1, tolerance=0)(problem(wavy, z_s), z_s)
    assert solution.nfe.tolist() == [6, 6] and solution.backward.tolist() == [0, 0]


@pytest.mark.parametrize("solver", [FixedPoint(), SafeguardedAnderson(), NewtonKrylov(krylov_dim=1), RNRIPaper()])
def test_max_nfe_is_per_sample(solver):
    z_s = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solver = type(solver)(tolerance=0)
    batched = solver(problem(wavy, z_s), z_s, torch.tensor([1, 5, 9]))
    assert (batched.nfe <= torch.tensor([1, 5, 9])).all()
    assert batched.nfe[0] == 1
    for k, max_nfe in enumerate([1, 5, 9]):
        equation = problem(lambda z, n, k=k: wavy(z, n + k), z_s[k : k + 1])
        alone = solver(equation, z_s[k : k + 1], torch.tensor([max_nfe]))
        torch.testing.assert_close(batched.z[k], alone.z[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SafeguardedAnderson(growth=0.5), "growth: .* got 0.5"),
        (lambda: SafeguardedAnderson(damping=1), "damping: .* got 1"),
        (lambda: NewtonKrylov(krylov_dim=0), "krylov_dim: .* got 0"),
        (lambda: ForwardStep(rate=0), "rate: .* got 0"),
        (lambda: ReNoise(keep_best=True), "keep_best: must be false"),
    ],
)
def test_invalid_arguments_of_other_solvers(make, message):
    with pytest.raises(ValueError, match=message):
        make()
