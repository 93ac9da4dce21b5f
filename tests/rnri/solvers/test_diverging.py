"""Functions with NaN or infinite values: solutions report divergence, and solvers with a safeguard recover."""

import pytest
import torch

from rnri import FixedPoint, NewtonKrylov, SafeguardedAnderson
from tests.rnri.solvers.test_solvers import problem
from tests.rnri.test_inversion import SOLVER_IDS, SOLVERS

START = torch.ones(1, 1, 1, 2, dtype=torch.float64)


def cliff(evaluations, slope=1e4):
    """Return ``f(z) = slope z`` below 10 and NaN above, with root 0; append each ``(z, f(z))`` to ``evaluations``."""

    def f(z, _):
        value = torch.where(z < 10, slope * z, torch.nan)
        evaluations.append((z.detach().clone(), value.detach().clone()))
        return value

    return problem(f, torch.zeros_like(START), b=1.0)


@pytest.mark.parametrize("solver", [FixedPoint(5, 0), SafeguardedAnderson(5, 0)], ids=["FixedPoint", "Safeguarded"])
def test_nonfinite_second_evaluation_returns_the_start(solver):
    solution = solver(cliff([]), START)
    assert solution.residual.isinf().all() and not solution.converged.any()
    assert torch.equal(solution.z, START)  # the best evaluated iterate, where f is finite


@pytest.mark.parametrize("solver", SOLVERS, ids=SOLVER_IDS)
@pytest.mark.parametrize("iterations", [2, 5, 11])
def test_nonfinite_last_evaluation_has_infinite_residual(solver, iterations):
    evaluations = []
    solver = type(solver)(**(vars(solver) | {"iterations": iterations, "tolerance": 0.0}))
    solution = solver(cliff(evaluations), START)
    assert solution.z.isfinite().all()
    assert not solution.converged.any() or not solution.z.any()  # a Newton step may land on the root, 0
    if not evaluations[-1][1].isfinite().all():
        assert solution.residual.isinf().all()
    failed = [z for z, value in evaluations if not value.isfinite().all()]
    if solution.residual.isfinite().all():
        assert not any(torch.equal(solution.z, z) for z in failed)


def test_safeguarded_anderson_recovers():
    evaluations = []
    solution = SafeguardedAnderson(8, 1e-8)(cliff(evaluations, slope=40), START)
    assert not evaluations[1][1].isfinite().all()  # f(1) = 40 is above 10
    assert solution.converged.all() and solution.z.abs().max() < 1e-8


def test_newton_krylov_recovers():
    def f(z, _):  # Newton's first step on arctan z = 0 leads from 3 to -9.5
        return torch.where(z.abs() < 5, z - z.atan(), torch.nan)

    solution = NewtonKrylov(60, 1e-8, krylov_dim=1)(problem(f, torch.zeros_like(START), b=1.0), 3 * START)
    assert solution.converged.all() and solution.z.abs().max() < 1e-7


def test_diverging_sample_does_not_affect_others():
    def f(z, number):
        return torch.where((number == 1) & (z >= 10), torch.nan, torch.where(number == 1, 1e4, -0.5) * z)

    z = torch.ones(3, 1, 1, 2, dtype=torch.float64)
    solution = SafeguardedAnderson(8, 1e-10)(problem(f, torch.zeros_like(z), b=1.0), z)
    assert solution.converged.tolist() == [True, False, True] and solution.residual.isinf().tolist()[1]
    assert torch.equal(solution.z[0], solution.z[2])
