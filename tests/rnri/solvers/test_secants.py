"""What one step of a walk tells the next of the network's derivative, by hand and where it matters."""

from dataclasses import replace

import pytest
import torch

from rnri import ImplicitInverter, SafeguardedAnderson, anderson_inverter
from rnri.solvers.anderson import DRIFT
from rnri.solvers.secants import SecantRecorder, Secants
from tests.problems import function_predictor, schedule, wavy
from tests.rnri.solvers.test_solvers import Z_S, problem, swapped, two


def latents(*rows):
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), 1, 1, 2)


def test_a_trail_by_hand():
    trail = SecantRecorder(Secants.none(latents([0, 0], [0, 0]), 2))
    both, second = torch.tensor([0, 1]), torch.tensor([1])
    trail.note(both, latents([0, 0], [0, 0]), latents([1, 1], [0, 0]))
    assert not trail.secants.dz.any() and not trail.secants.dy.any()  # one evaluation tells no derivative
    trail.note(both, latents([3, 4], [0, 2]), latents([11, 1], [6, 0]))
    trail.note(second, latents([8, 2]), latents([6, 4]))
    trail.note(second, latents([8, 2]), latents([9, 9]))  # the same latent again: no direction
    trail.note(second, latents([9, 2]), latents([torch.inf, 0]))  # not finite: tells nothing
    dz = torch.tensor([[[0, 0], [0.6, 0.8]], [[0, 1], [1, 0]]], dtype=torch.float64)
    dy = torch.tensor([[[0, 0], [2, 0]], [[3, 0], [0, 0.5]]], dtype=torch.float64)
    torch.testing.assert_close(trail.secants.dz, dz)
    torch.testing.assert_close(trail.secants.dy, dy)


def test_a_step_begins_with_what_the_one_before_told():
    """b = 0.5, y along x is (0, 0.2): df = (0, 0.1), dr = (-1, 0.1); at z_s r = (-0.6, 0.5), f = (0.4, -1.5)."""
    known = Secants(Z_S.new_tensor([[[1.0, 0.0]]]), Z_S.new_tensor([[[0.0, 0.2]]]))
    gamma = (0.6 + 0.05) / (1.01 + (DRIFT * 0.5**2) ** 2)
    solution = SafeguardedAnderson(1, 0)(problem(swapped, Z_S).with_secants(known), Z_S)
    torch.testing.assert_close(solution.z, two(0.4, -1.5 - 0.1 * gamma))
    alone = SafeguardedAnderson(1, 0, carried=0)(problem(swapped, Z_S).with_secants(known), Z_S)
    torch.testing.assert_close(alone.z, two(0.4, -1.5))


def test_own_differences_take_the_place_of_carried_ones():
    """Once a step has ``memory`` differences of its own it is solved as if nothing had been known before."""
    z_s = torch.randn(2, 1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wrong = Secants(torch.full((2, 2, 6), 6**-0.5).double(), torch.full((2, 2, 6), 40.0).double())
    solution = SafeguardedAnderson(60, 1e-12, memory=2)(problem(wavy, z_s).with_secants(wrong), z_s)
    assert solution.converged.all()


@pytest.mark.parametrize(
    ("b", "predicts", "short"), [(0.95, "epsilon", True), (0.8, "epsilon", False), (0.95, "flow", False)]
)
def test_a_walk_of_one_step_remembers_the_last_two_differences(b, predicts, short):
    z_s = torch.randn(2, 1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = replace(problem(wavy, z_s, b=b), predicts=predicts)
    nothing = Secants.none(z_s, 2)
    found, two_alone = (
        SafeguardedAnderson(6, 0, memory=memory)(whole.with_secants(nothing), z_s).z for memory in (4, 2)
    )
    assert torch.equal(found, two_alone) == short


@pytest.mark.parametrize("nfe", [2, 3])
def test_what_alternates_is_met_before_it_is_magnified(nfe):
    """A map with eigenvalues near -1, whose residual the sampler magnifies: what loses images without carrying."""

    def steep(z, number):
        pull = z.flatten(1).mean(1).view(-1, 1, 1, 1)
        return 0.5 * torch.sin(2 * z) - (4 + number) * pull

    generator = torch.Generator().manual_seed(0)
    z0, steps = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=generator) + 0.5, schedule(10)
    errors = {}
    for carried in (0, 2):
        solver = SafeguardedAnderson(nfe, 1e-9, carried=carried)
        inverter, predictor = ImplicitInverter(solver, "fitted", "schedule"), function_predictor(steep, 3)
        inversion = inverter.invert(z0, predictor, steps)
        assert (inversion.nfe.sum(0) <= 10 * nfe).all()
        errors[carried] = (inverter.reconstruct(inversion, predictor, steps) - z0).square().mean((1, 2, 3))
    assert (errors[2] < errors[0] / 4).all()


def test_the_default_carries():
    assert anderson_inverter().solver.carried > 0
